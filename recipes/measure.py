"""Measures training and sampling speed on this machine's device, and prints a table for docs/scaling.md.

python recipes/measure.py                                 the paper's small and base, and the vocoders
python recipes/measure.py --configs tiny --batches 2 4    a quick check that everything runs

Training is measured at the largest of `--batches` that fits in memory, on random tokens and mels; sampling on one
window at a time, as a user hears it, and on a batch. Speeds of synthesis are in seconds of audio per second.
"""

import argparse
import dataclasses
import functools
import statistics
import time
from collections.abc import Callable

import gin
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tqdm import tqdm

from spectrodiff.audio.mel import FRAMES_PER_SECOND, MEL_BINS
from spectrodiff.config import WINDOW_FRAMES
from spectrodiff.mel_sampler import MelSampler
from spectrodiff.pretrained.vocoders import find_vocoder
from spectrodiff.training import state as states
from spectrodiff.training.flops import peak_flops, step_flops
from spectrodiff.training.gin_config import read_config
from spectrodiff.training.spectrogram import SpectrogramTask
from spectrodiff.training.steps import Others, make_train_step

SECONDS = WINDOW_FRAMES / FRAMES_PER_SECOND  # of audio in a window


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--configs", nargs="+", default=["small", "base"], help="of configs/")
    parser.add_argument("--batches", nargs="+", type=int, default=[8, 16, 32, 64, 128, 256])
    parser.add_argument("--tokens", type=int, default=1024, help="of a window")
    parser.add_argument("--steps", nargs="+", type=int, default=[20, 1000], help="of sampling")
    parser.add_argument("--vocoder", nargs="+", default=["griffin_lim", "demo"], help="as for synthesize")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    device = jax.devices()[0]
    print(f"{device.device_kind}, jax {jax.__version__}\n", flush=True)

    print("| config | dtype | batch | step, s | examples/s | utilisation |\n|---|---|---|---|---|---|", flush=True)
    tasks = {}
    for name in options.configs:
        bindings = ["ModelConfig.dtype = 'bfloat16'", "ModelConfig.remat = True"]
        read_config([f"configs/{name}.gin"], [*bindings, f"SpectrogramTask.tokens = {options.tokens}"])
        train = gin.get_bindings("train")
        tasks[name] = train["task"], train["optimizer"]
        print(training_row(name, *tasks[name], options.batches, options.repeats, device), flush=True)

    print("\n| config | batch | steps | guidance | x realtime |\n|---|---|---|---|---|", flush=True)
    for name in options.configs:
        for row in sampling_rows(tasks[name][0], options.steps, options.repeats):
            print(f"| {name} {row}", flush=True)

    print("\n| vocoder | x realtime |\n|---|---|", flush=True)
    mel = np.random.default_rng(0).normal(-4.0, 1.0, (60 * FRAMES_PER_SECOND, MEL_BINS)).astype(np.float32)
    for name in options.vocoder:
        vocoder = find_vocoder(name)
        seconds = timed(lambda vocoder=vocoder: vocoder(mel), options.repeats)
        print(f"| {name} | {60 / seconds:.1f} |", flush=True)


def timed(function: Callable, repeats: int) -> float:
    """Returns the median seconds of a call, after a first one that compiles."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        jax.block_until_ready(function())
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def random_batch(task: SpectrogramTask) -> dict[str, jax.Array]:
    """Returns a batch of random mels and of tokens of the vocabulary, all frames valid."""
    rng = np.random.default_rng(0)
    batch = {}
    for name, shape in task.batch_shapes().items():
        if name == "tokens":
            batch[name] = rng.integers(3, 1000, shape.shape, np.int32)
        elif name.endswith("mask"):
            batch[name] = np.ones(shape.shape, bool)
        else:
            batch[name] = rng.uniform(-1.0, 1.0, shape.shape).astype(np.float32)
    return jax.device_put(batch)


def training_row(name: str, task: SpectrogramTask, optimizer, batches: list[int], repeats: int, device) -> str:
    """Times training steps at growing batches until one does not fit, and returns a row for the last that did."""
    row = f"| {name} | {task.dtype} | none fits | | | |"
    for size in tqdm(batches, name, leave=False):
        sized = dataclasses.replace(task, batch_size=size)
        try:
            seconds, flops = time_training(sized, optimizer, repeats)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            break
        used = flops / seconds / peak_flops(device, task.dtype)
        row = f"| {name} | {task.dtype} | {size} | {seconds:.3f} | {size / seconds:.1f} | {used:.0%} |"
    return row


def time_training(task: SpectrogramTask, optimizer, repeats: int) -> tuple[float, int]:
    """Returns the median seconds of a training step, and its operations."""
    graph, params, buffers = states.split(task.build(nnx.Rngs(0)))
    merge = functools.partial(nnx.merge, graph)
    batch = random_batch(task)
    step = make_train_step(merge, task.loss, optimizer, jax.random.key(0))

    def loss(params, buffers):
        return task.loss(merge(params, buffers), batch, jax.random.key(0), Others(lambda: None, {}))

    flops = step_flops(loss, params, buffers)
    state = states.create(params, buffers, optimizer)

    def run():
        nonlocal state
        state, metrics = step(state, batch)
        return metrics

    return timed(run, repeats), flops


def sampling_rows(task: SpectrogramTask, steps: list[int], repeats: int):
    """Yields a row for each number of steps, guided, for one window and for a batch of eight."""
    sampler = MelSampler(task.build(nnx.Rngs(0)), task.config)
    for batch in (1, 8):
        given = random_batch(dataclasses.replace(task, batch_size=batch))
        keys = jax.random.split(jax.random.key(0), batch)
        inputs = given["tokens"], given["context"], jnp.ones((batch, WINDOW_FRAMES), bool), keys
        for count in steps:
            run = functools.partial(sampler.sample_windows, *inputs, steps=count, guidance=2.0)
            speed = batch * SECONDS / timed(run, max(1, repeats if count < 100 else 1))
            yield f"| {batch} | {count} | 2 | {speed:.1f} |"


if __name__ == "__main__":
    main()
