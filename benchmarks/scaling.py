"""FLOPs and memory of training steps (state, residuals of the backward pass), counted without running them.

python benchmarks/scaling.py                                    the table of docs/scaling.md
python benchmarks/scaling.py --check demo --batch 8             one config, compared with XLA's analysis and timed steps
python benchmarks/scaling.py --check small --batch 1 --steps 3
"""

# ruff: noqa: E402 (memory is set up before JAX is imported, as `spectrodiff train` does)

import argparse
import dataclasses
import functools
import math
import statistics
import time

from spectrodiff.commands.common import keep_freed_memory

keep_freed_memory()

import gin
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from spectrodiff.audio.mel import MEL_BINS
from spectrodiff.config import WINDOW_FRAMES
from spectrodiff.training import state as states
from spectrodiff.training.flops import peak_flops, step_flops
from spectrodiff.training.gin_config import read_config
from spectrodiff.training.steps import Others, make_train_step

GIB = 2**30


def task_and_optimizer(name: str, bindings: list[str]):
    """Reads a config of configs/; returns its task, its optimiser and the number of tokens of a window."""
    read_config([f"configs/{name}.gin"], bindings)
    train = gin.get_bindings("train")
    return train["task"], train["optimizer"], gin.query_parameter("SpectrogramTask.tokens")


def batch_of(size: int, tokens: int, make=jax.ShapeDtypeStruct):
    """Returns a batch of `size` windows, whose arrays are `make(shape, dtype)`."""
    mel, mask = (size, WINDOW_FRAMES, MEL_BINS), (size, WINDOW_FRAMES)
    return {
        "tokens": make((size, tokens), jnp.int32),
        "target": make(mel, jnp.float32),
        "target_mask": make(mask, jnp.bool_),
        "context": make(mel, jnp.float32),
        "context_mask": make(mask, jnp.bool_),
    }


def size_of(tree) -> int:
    """Returns the size of a pytree in bytes."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


@dataclasses.dataclass(frozen=True)
class Cost:
    """The number of parameters of a model, and what a training step takes."""

    parameters: int
    state: int  # bytes of parameters, EMA and optimiser state
    kept: float  # bytes of residuals of the backward pass, per example
    flops: float  # of a step, per example


def cost_of(name: str, bindings: list[str]) -> Cost:
    task, optimizer, tokens = task_and_optimizer(name, bindings)
    graph, params, buffers = nnx.eval_shape(lambda: states.split(task.build(nnx.Rngs(0))))
    state = jax.eval_shape(functools.partial(states.create, optimizer=optimizer), params, buffers)
    key = jax.eval_shape(lambda: jax.random.key(0))

    def loss(params, buffers, batch, key):
        model = nnx.merge(graph, params, buffers)
        return task.loss(model, batch, key, Others(lambda: model, task.frozen_modules()))[0]

    def kept(size):
        """Returns the bytes that the backward pass keeps for a batch of `size`: residuals and parameters."""
        backward = jax.eval_shape(lambda *a: jax.vjp(loss, *a)[1], params, buffers, batch_of(size, tokens), key)
        return size_of(backward)

    return Cost(
        parameters=sum(math.prod(x.shape) for x in jax.tree.leaves(params)),
        state=size_of(state),
        kept=(kept(6) - kept(2)) / 4,
        flops=step_flops(loss, params, buffers, batch_of(4, tokens), key) / 4,
    )


def table(configs, chips, memory, peak, used, batch) -> None:
    print("| config | devices | state | kept for the gradient | gradients | in all, GiB | s a step |")
    print("|---|---|---|---|---|---|---|")
    for name, bindings in configs:
        cost = cost_of(name, bindings)
        for n in chips:
            state, kept, gradients = cost.state / n, batch / n * cost.kept, 4 * cost.parameters / n
            whole = state + kept + gradients
            seconds = batch * cost.flops / (n * peak * used)
            name_of_row = f"{name}, remat" if bindings else name
            fits = "" if whole < memory else ", too much"
            print(
                f"| {name_of_row} | {n} | {' | '.join(f'{x / GIB:.2f}' for x in (state, kept, gradients, whole))}",
                end="",
            )
            print(f" GiB{fits} | {seconds:.2f} |")


def check(name: str, bindings: list[str], batch: int, steps: int) -> None:
    cost = cost_of(name, bindings)
    task, optimizer, tokens = task_and_optimizer(name, bindings)
    graph, params, buffers = states.split(task.build(nnx.Rngs(0)))
    state = states.create(params, buffers, optimizer)
    step = make_train_step(functools.partial(nnx.merge, graph), task.loss, optimizer, jax.random.key(0))
    rng = np.random.default_rng(0)
    data = batch_of(batch, tokens, lambda shape, dtype: np.ones(shape, dtype))
    data["tokens"] = np.zeros_like(data["tokens"])
    data["tokens"][:, :200] = rng.integers(1, 400, (batch, 200))
    compiled = step.lower(state, data).compile()
    memory = compiled.memory_analysis()
    times = []
    for _ in range(steps):
        start = time.perf_counter()
        state, metrics = compiled(state, data)
        jax.block_until_ready(metrics)
        times.append(time.perf_counter() - start)
    seconds = statistics.median(times[1:])  # the first one faults its pages in
    device = jax.devices()[0]
    peak = peak_flops(device, task.dtype)
    print(f"{name}, batch {batch}, {cost.parameters / 1e6:.1f} M parameters")
    print(f"state: counted {cost.state / GIB:.3f} GiB, XLA's arguments {memory.argument_size_in_bytes / GIB:.3f}")
    counted = batch * cost.kept + 4 * cost.parameters
    print(f"kept + gradients: counted {counted / GIB:.3f} GiB, XLA's temporaries {memory.temp_size_in_bytes / GIB:.3f}")
    rate = batch * cost.flops / seconds
    print(f"step: {batch * cost.flops / 1e9:.1f} GFLOP in {seconds:.3f} s, {batch / seconds:.3g} examples/s")
    print(f"utilisation: {rate / peak:.0%} of the {peak / 1e9:.0f} GFLOP/s of {device.device_kind}, in {task.dtype}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", metavar="CONFIG", help="of configs/, such as demo")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=6, help="to time, of which the first does not count; 2 or more")
    parser.add_argument("--gin_param", action="append", default=[])
    parser.add_argument("--memory", type=float, default=80, help="of a device, GiB")
    parser.add_argument("--peak", type=float, default=494e12, help="of a device, operations a second")
    parser.add_argument("--used", type=float, default=0.4, help="the share of the peak that a step reaches")
    options = parser.parse_args()
    if options.check:
        check(options.check, options.gin_param, options.batch, options.steps)
        return
    remat = ["ModelConfig.remat = True"]
    configs = [(name, b) for name in ("small", "base", "large") for b in ([], remat)]
    table(configs, (1, 8, 64), options.memory * GIB, options.peak, options.used, options.batch)


if __name__ == "__main__":
    main()
