"""The train loop, top to bottom."""

import json
import pathlib
import time
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import gin
import grain
import jax
import numpy as np
import optax
from flax import nnx
from tqdm import tqdm

from spectrodiff.training import state as states
from spectrodiff.training.checkpoints import Checkpoints
from spectrodiff.training.steps import Loss, make_train_step


@runtime_checkable
class Task(Protocol):
    """What is learnt: a model, data for it, a loss, and figures that say how well it went."""

    loss: Loss

    def build(self, rngs: nnx.Rngs) -> nnx.Module: ...

    def load(self, checkpoint: str) -> nnx.Module: ...

    def batches(self, seed: int) -> grain.DatasetIterator: ...

    def evaluate(self, graph: nnx.GraphDef, params: nnx.State, buffers: nnx.State) -> dict[str, float]: ...

    def baselines(self) -> dict[str, float]: ...

    def save(self, folder: pathlib.Path, model: nnx.Module, card: dict) -> None: ...


@gin.configurable
def train(
    workdir: pathlib.Path | str,
    *,
    task: Task,
    optimizer: optax.GradientTransformation | Callable[[], optax.GradientTransformation],
    steps: int,
    init_from: str | None = None,
    seed: int = 0,
    average_decay: float = 0.999,
    log_every: int = 20,
    evaluate_every: int = 1000,
    checkpoint_every: int = 500,
    checkpoints_kept: int = 2,
    stop_after_minutes: float | None = None,
) -> None:
    """Trains `task` for `steps` steps in `workdir`, from its newest checkpoint when it has one.

    A fresh run starts from random parameters, or from those of `init_from`: a checkpoint's name or folder.
    Writes `log.jsonl` (every figure, with its step), `checkpoints/`, `config.gin`, and `export/`, the averaged weights
    in the format that `Synthesizer.from_pretrained` reads. `stop_after_minutes` saves and stops early.
    """
    workdir = pathlib.Path(workdir)
    checkpoints = Checkpoints(workdir, checkpoints_kept)
    deadline = time.monotonic() + 60 * stop_after_minutes if stop_after_minutes else float("inf")

    # ---- data
    data = task.batches(seed)

    # ---- model and state
    fresh = checkpoints.manager.latest_step() is None
    model = task.load(init_from) if init_from is not None and fresh else task.build(nnx.Rngs(seed))
    graph, params, buffers = states.split(model)
    state = states.create(params, buffers, optimizer)
    del model, params, buffers
    print(f"{sum(x.size for x in jax.tree.leaves(state.params)) / 1e6:.2f} M parameters", flush=True)

    # ---- resume
    restored = checkpoints.restore(state)
    if restored is not None:
        state, data_state = restored
        data.set_state(data_state)
        print(f"resuming at step {int(state.step)}", flush=True)
    (workdir / "config.gin").write_text(gin.config_str())
    log = (workdir / "log.jsonl").open("a", buffering=1)

    def record(step: int, figures: dict[str, float]) -> None:
        log.write(json.dumps({"step": step, **{name: float(value) for name, value in figures.items()}}) + "\n")

    if restored is None:
        figures = task.baselines()
        record(0, figures)
        print("held-out baselines: " + _line(figures), flush=True)

    # ---- steps
    train_step = make_train_step(graph, task.loss, optimizer, jax.random.key(seed), average_decay)
    first = step = int(state.step)
    bar = tqdm(total=steps, initial=step, desc="training", unit="step", mininterval=2.0, smoothing=0.05)
    since, waited, metrics, examples = time.monotonic(), 0.0, [], 0
    while step < steps and time.monotonic() < deadline:
        asked = time.monotonic()
        batch = next(data)
        waited += time.monotonic() - asked
        state, measured = train_step(state, batch)
        # One step ahead of the device and no more: or waiting for data while it still has much to do would count.
        jax.block_until_ready(metrics[-1:])
        metrics.append(measured)
        examples += len(next(iter(batch.values())))
        step += 1
        bar.update()
        if step % log_every == 0 or step == first + 1:
            measured = jax.device_get(metrics)
            elapsed = time.monotonic() - since
            figures = {name: float(np.mean([m[name] for m in measured])) for name in measured[0]}
            figures |= {"examples_per_second": examples / elapsed, "waiting": waited / elapsed}
            record(step, figures)
            bar.set_postfix_str(_line(figures))
            since, waited, metrics, examples = time.monotonic(), 0.0, [], 0
        if step % evaluate_every == 0 or step == steps:
            figures = task.evaluate(graph, state.average, state.buffers)
            record(step, figures)
            bar.write(f"step {step}: " + _line(figures))
            since = time.monotonic()
        if step % checkpoint_every == 0:
            checkpoints.save(step, state, data.get_state())
    bar.close()

    # ---- leave
    if step % evaluate_every and step != steps:
        record(step, task.evaluate(graph, state.average, state.buffers))
    checkpoints.save(step, state, data.get_state())
    checkpoints.close()
    task.save(workdir / "export", nnx.merge(graph, state.average, state.buffers), {"steps": step, "seed": seed})
    print(f"step {step}: averaged weights are in {workdir / 'export'}", flush=True)


def _line(figures: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.3g}" for name, value in figures.items())
