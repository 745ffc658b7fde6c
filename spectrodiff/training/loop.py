"""The training loop."""

import functools
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import gin
import jax
import optax
from flax import nnx
from tqdm import tqdm

from spectrodiff.data.pipeline import SOURCE
from spectrodiff.errors import InputError
from spectrodiff.files import write_text
from spectrodiff.training import state as states
from spectrodiff.training.adaptation import Adaptation, everything
from spectrodiff.training.checkpoints import Checkpoints
from spectrodiff.training.evaluators import Evaluator
from spectrodiff.training.flops import step_flops
from spectrodiff.training.metric_writer import MetricWriter
from spectrodiff.training.preemption import preemption
from spectrodiff.training.report import write_report
from spectrodiff.training.sharding import check_batch, distribute, make_mesh, replicated, shard_batch, shardings
from spectrodiff.training.steps import make_train_step
from spectrodiff.training.summaries import divergence_message, mean_metrics, one_line
from spectrodiff.training.task import Task
from spectrodiff.training.throughput import ThroughputMeter, mesh_peak_flops


@gin.configurable
def train(
    workdir: pathlib.Path | str,
    *,
    task: Task,
    optimizer: optax.GradientTransformation,
    steps: int,
    evaluators: Sequence[Evaluator] = (),
    init_from: str | None = None,
    adaptation: Adaptation | None = None,
    seed: int = 0,
    accumulate: int = 1,
    model_parallel: int = 1,
    average_decay: float = 0.999,
    log_every: int = 20,
    checkpoint_every: int = 500,
    checkpoints_kept: int = 2,
    keep_every: int | None = None,
    most_skipped: int = 10,
    stop_after_minutes: float | None = None,
    export_minutes: float | None = None,
    profile: Sequence[int] | None = None,
    describe: Callable[[], str] | None = None,
) -> None:
    """Trains `task` until step `steps`, and resumes from the newest checkpoint in `workdir` if there is one.

    Args:
      workdir: the folder for `log.jsonl` and `tensorboard/` (metrics), `checkpoints/`, `export/` (the EMA weights in
        the format that `Synthesizer.from_pretrained` reads) and, depending on other arguments, `config.gin`,
        `report.md` and `profile/`.
      task: the model, its data and its loss.
      optimizer: the optimiser of the trainable parameters.
      steps: the number of training steps.
      evaluators: evaluators of the EMA weights, each called at its own interval.
      init_from: the name or folder of a checkpoint whose parameters a new run starts from, instead of random ones. Such
        a run also writes `report.md`, the held-out metrics before and after training.
      adaptation: which parameters are trained; by default all.
      seed: the seed of parameters, data and all random numbers.
      accumulate: the number of microbatches that a batch is divided into.
      model_parallel: the number of devices that share each example (tensor parallelism). The batch is sharded over the
        others.
      average_decay: the decay of the exponential moving average (EMA) of parameters.
      log_every: the interval in steps at which metrics are logged. Each is the mean over the steps since the last
        entry, without skipped steps; `skipped` is their number.
      checkpoint_every: the interval in steps at which the state is saved.
      checkpoints_kept: the number of newest checkpoints that are kept.
      keep_every: checkpoints of steps that are multiples of this are kept for good.
      most_skipped: the number of consecutive steps with a loss or gradients that are not finite, and which are
        therefore skipped, that ends the run.
      stop_after_minutes: the time after which the run ends as after its last step. The same command continues it.
      export_minutes: the interval in minutes at which the state is saved and `export/` is written during training.
      profile: a range (from, to) of steps to trace with JAX's profiler, counted from the start of this process.
      describe: returns the content of `config.gin`.

    Raises:
      InputError: the config or the data cannot be used, `workdir` cannot be written to or has a run of another seed, or
        `most_skipped` consecutive steps were skipped.
    """
    for name, value, least in (
        ("steps", steps, 0),
        ("seed", seed, 0),
        ("accumulate", accumulate, 1),
        ("log_every", log_every, 1),
        ("checkpoint_every", checkpoint_every, 1),
        ("checkpoints_kept", checkpoints_kept, 1),
        ("keep_every", keep_every, 1),
        ("most_skipped", most_skipped, 1),
    ):
        if value is not None and value < least:
            raise InputError(f"train.{name} is {value}; choose {least} or more")
    if not 0 <= average_decay < 1:
        raise InputError(f"train.average_decay is {average_decay}; choose 0 to below 1")
    for name, value in (("stop_after_minutes", stop_after_minutes), ("export_minutes", export_minutes)):
        if value is not None and not value > 0:
            raise InputError(f"train.{name} is {value}; choose more than 0")
        if value is not None and jax.process_count() > 1:
            raise InputError(f"train.{name} is for one process: clocks of several differ")
    if profile and not 0 <= profile[0] < profile[1]:
        raise InputError(f"train.profile is {tuple(profile)}; choose a step from 0 on, and a later one")
    workdir = pathlib.Path(workdir)
    adaptation = everything() if adaptation is None else adaptation
    deadline = float("inf") if stop_after_minutes is None else time.monotonic() + 60 * stop_after_minutes
    is_main = jax.process_index() == 0  # the process that prints and writes

    for evaluator in evaluators:
        if hasattr(evaluator, "check"):
            evaluator.check(task)

    # ---- devices and checkpoints
    mesh = make_mesh(model_parallel)
    checkpoints = Checkpoints(workdir, checkpoints_kept, keep_every)
    resuming = checkpoints.newest is not None

    # ---- model and state
    def split(model: nnx.Module) -> tuple[nnx.GraphDef, Any, nnx.State]:
        return adaptation.split(model, nnx.Rngs(seed))

    graph, *parts = nnx.eval_shape(lambda: split(task.build(nnx.Rngs(seed))))
    abstract = jax.eval_shape(functools.partial(states.create, optimizer=optimizer), *parts)
    layout = shardings(abstract, mesh)
    if resuming:
        like = jax.tree.map(lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), abstract, layout)
        state, progress = checkpoints.restore(like)
        if progress["seed"] != seed:
            raise InputError(
                f"the run in {workdir} began with train.seed {progress['seed']}, not {seed}: give it that one again, "
                "or another --workdir"
            )
        examples = progress["examples"]
    else:
        _, *parts = split(task.build(nnx.Rngs(seed)) if init_from is None else task.load(init_from))
        parts = distribute(parts, [layout.params, layout.frozen])
        create = jax.jit(functools.partial(states.create, optimizer=optimizer), out_shardings=layout)
        state, examples = create(*parts), 0
        del parts
    first_step = step = int(state.step)

    def merge(params, frozen) -> nnx.Module:
        return adaptation.merge(graph, params, frozen)

    def ema_weights() -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
        return states.split(merge(*replicated((state.ema, state.frozen), mesh)))

    # ---- data
    data = task.batches(seed, examples)

    # ---- log
    writer = MetricWriter(workdir, step if resuming else -1) if is_main else None
    throughput = ThroughputMeter(mesh_peak_flops(mesh, task.dtype))

    def record(figures: dict[str, float], title: str = "") -> None:
        if is_main:
            writer.write_scalars(step, figures)
        if is_main and title:
            tqdm.write(f"{title}: {one_line(figures)}")

    def evaluate(title: str, due: Sequence[Evaluator]) -> None:
        if not due:
            return
        with throughput.paused():
            weights = ema_weights()  # in every process, as it communicates
            if not is_main:
                return
            figures = {}
            for found in (evaluator(task, weights) for evaluator in due):
                figures |= found.figures
                writer.write_images(step, found.pictures)
                writer.write_audio(step, found.sounds)
            if figures:
                record(figures, title)

    def save() -> None:
        with throughput.paused():
            checkpoints.save(step, state, {"examples": examples, "seed": seed})

    def export(weights: tuple[nnx.GraphDef, nnx.State, nnx.State]) -> None:
        with throughput.paused():
            task.save(workdir / "export", nnx.merge(*weights), {"steps": step, "examples": examples, "seed": seed})

    if is_main:
        print(f"{sum(x.size for x in jax.tree.leaves(state.params)) / 1e6:.2f} M parameters to train", flush=True)
    if resuming and is_main:
        print(f"resuming at step {step}", flush=True)
    if describe is not None and is_main:
        config = describe()
        write_text(workdir / "config.gin", config)
        writer.write_texts(step, {"config": config})
    repeated = [evaluator for evaluator in evaluators if evaluator.every]
    if not resuming:
        evaluate("held-out baselines", [evaluator for evaluator in evaluators if not evaluator.every])
        if init_from is not None:
            evaluate(f"{init_from}, before training", repeated)

    # ---- step
    key = jax.random.fold_in(jax.random.key(seed), 2**31)  # no key of nnx.Rngs(seed), which counts from 0
    frozen_modules = task.frozen_modules()
    train_step = make_train_step(
        merge,
        task.loss,
        optimizer,
        key,
        ema_decay=average_decay,
        accumulate=accumulate,
        shardings=layout,
        frozen_modules=frozen_modules,
    )

    # ---- loop
    metrics, sources = [], []  # of the steps since the last entry in the log
    skipped_in_a_row, exported = 0, time.monotonic()
    preempted, ends = False, step >= steps
    bar = tqdm(
        total=steps, initial=step, desc="training", unit="step", mininterval=2.0, smoothing=0.05, disable=not is_main
    )
    with bar, preemption() as asked_to_stop:
        while not ends:
            with throughput.waiting():
                local = next(data)
            sources.append({name: local.pop(name) for name in SOURCE})
            size = len(sources[-1]["record"]) * jax.process_count()
            if step == first_step:
                check_batch(size, mesh, accumulate)
            batch = shard_batch(local, mesh)
            if step == first_step:
                throughput.flops = None if frozen_modules else step_flops(train_step.loss, state, batch)
            if profile and step - first_step == profile[0]:
                jax.profiler.start_trace(workdir / "profile")
            state, step_metrics = train_step(state, batch)
            # At most one step is dispatched ahead, or waiting for data would be counted while the device is busy.
            jax.block_until_ready(metrics[-1:])
            metrics.append(step_metrics)
            step, examples = step + 1, examples + size
            bar.update()
            preempted = asked_to_stop(step)
            ends = preempted or step == steps or time.monotonic() >= deadline
            if profile and step - first_step == profile[1]:
                jax.block_until_ready(step_metrics)
                jax.profiler.stop_trace()
            if step % log_every == 0 or step == first_step + 1 or ends:
                rows = jax.device_get(metrics)
                figures = mean_metrics(rows) | throughput.read(len(rows), len(rows) * size)
                record(figures)
                bar.set_postfix_str(one_line(figures))
                for row, source in zip(rows, sources, strict=True):
                    skipped_in_a_row = skipped_in_a_row + 1 if row["skipped"] else 0
                    if skipped_in_a_row == most_skipped:
                        examples_of_step = task.sources(jax.device_get(source))
                        raise InputError(divergence_message(skipped_in_a_row, step, examples_of_step))
                metrics, sources = [], []
            if export_minutes and time.monotonic() - exported > 60 * export_minutes:
                save()
                export(ema_weights())
                exported = time.monotonic()
            if step % checkpoint_every == 0:
                save()
            if not ends:
                evaluate(f"step {step}", [evaluator for evaluator in repeated if step % evaluator.every == 0])
        if profile and profile[0] < step - first_step < profile[1]:  # the run ended within the range
            jax.profiler.stop_trace()
        save()
        checkpoints.close()
        if not preempted:
            evaluate(f"step {step}", repeated)

    # ---- export
    weights = ema_weights()
    if not is_main:
        return
    writer.close()
    if preempted:
        print(f"asked to stop: step {step} is saved; the same command resumes from it", flush=True)
        return
    export(weights)
    print(f"step {step}: averaged weights are in {workdir / 'export'}", flush=True)
    if init_from is not None and (report := write_report(workdir)):
        print(report, flush=True)
