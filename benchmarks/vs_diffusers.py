"""Sampling and training time of the paper's network in this package and in diffusers, with equal weights and inputs.

python benchmarks/vs_diffusers.py --peer .venv-peers/bin/python [--size base] [--steps 10] [--repeats 3] [--train]

`--peer` is a Python with diffusers, as `make peers` sets up. Both run in processes of their own, in turns, on random
weights in diffusers' format and one window of 512 tokens with a full context, in float32. Theirs has no guidance; ours
is timed without and with it. `--train` times forward and backward of the network at batch 1 instead. The last line is
the ratio of their median time to ours without guidance.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

ROOT = pathlib.Path(__file__).parent.parent
TOKENS = 512
SIZES = ("small", "base", "large")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", default=ROOT / ".venv-peers/bin/python", help="a Python with diffusers")
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--worker", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=pathlib.Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        write(pathlib.Path(folder), options.size)
        compare(options, folder)


def write(folder: pathlib.Path, size: str) -> None:
    """Writes random weights in diffusers' format, and the inputs of one window."""
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]  # for the writers of other formats
    from weights import random_arrays, write_weights

    from spectrodiff.commands import weights
    from spectrodiff.config import ModelConfig, TokenizerConfig
    from spectrodiff.models.spectrogram_model import SpectrogramConfig

    width, heads, head_dim, mlp_width, layers = weights.SIZES[size]
    stacks = dict.fromkeys(("note_layers", "context_layers", "decoder_layers"), layers)
    model = ModelConfig(width=width, heads=heads, head_dim=head_dim, mlp_width=mlp_width, **stacks)
    config = SpectrogramConfig(TokenizerConfig(program_map="slakh"), model)
    write_weights(folder / "weights", "diffusers", config, random_arrays(config))
    rng = np.random.default_rng(0)
    context = rng.uniform(-1, 1, (1, 256, 128)).astype(np.float32)
    tokens = rng.integers(3, 1390, (1, TOKENS)).astype(np.int32)
    np.savez(folder / "inputs.npz", tokens=tokens, context=context, target=context[:, ::-1])


def compare(options: argparse.Namespace, folder: str) -> None:
    """Runs the tasks of both workers in turns, and prints medians."""
    flags = ["--size", options.size, "--steps", str(options.steps), "--folder", folder]
    flags += ["--train"] if options.train else []
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    pythons = {"ours": sys.executable, "theirs": options.peer}
    workers = {
        name: subprocess.Popen([python, __file__, "--worker", name, *flags], **pipes)
        for name, python in pythons.items()
    }
    times = {name: {} for name in workers}
    for repeat in range(options.repeats + 1):
        for name, worker in workers.items():
            print(file=worker.stdin, flush=True)
            for task, seconds in json.loads(worker.stdout.readline()).items():
                if repeat:  # the first compiles
                    times[name].setdefault(task, []).append(seconds)
    memory = {}
    for name, worker in workers.items():
        worker.stdin.close()
        memory[name] = json.loads(worker.stdout.readline())
        worker.wait()
    print(f"{options.size}, {TOKENS} tokens, " + ("a training step" if options.train else f"{options.steps} steps"))
    for name, tasks in times.items():
        for task, seconds in tasks.items():
            spread = f"{min(seconds):.2f} to {max(seconds):.2f}"
            print(f"{name:>7}  {task:<18} {statistics.median(seconds):7.2f} s  ({spread})")
        if "window" in tasks:
            window, encoders = (statistics.median(tasks[task]) for task in ("window", "encoders"))
            print(f"{name:>7}  a step             {(window - encoders) / options.steps:7.3f} s  (the rest of a window)")
        print(f"{name:>7}  peak memory        {memory[name]:7.0f} MB")
    task = next(iter(times["theirs"]))
    theirs, ours = (statistics.median(times[name][task]) for name in ("theirs", "ours"))
    print(f"ratio {theirs / ours:.2f}")


def work(options: argparse.Namespace) -> None:
    """Times every task once for each line on stdin, and at the end prints this process's peak memory in MB."""
    inputs = np.load(options.folder / "inputs.npz")
    make = {"ours": our_tasks, "theirs": their_tasks}[options.worker]
    tasks = make(options.folder / "weights", inputs, options.steps, options.train)
    for _ in sys.stdin:
        times = {}
        for name, task in tasks.items():
            start = time.perf_counter()
            task()
            times[name] = time.perf_counter() - start
        print(json.dumps(times), flush=True)
    status = pathlib.Path("/proc/self/status").read_text()
    print(json.dumps(int(status.split("VmHWM:")[1].split()[0]) / 1e3), flush=True)


def our_tasks(weights: pathlib.Path, inputs, steps: int, train: bool) -> dict:
    sys.path.insert(0, str(ROOT))
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from spectrodiff.config import WINDOW_FRAMES
    from spectrodiff.mel_sampler import MelSampler

    sampler = MelSampler.from_pretrained(weights)
    graph, params, rest = nnx.split(sampler.model, nnx.Param, ...)
    mask = np.ones((1, WINDOW_FRAMES), bool)
    keys = jax.random.split(jax.random.key(0), 1)

    @jax.jit
    def encode(params):
        return nnx.merge(graph, params, rest).encode(inputs["tokens"], inputs["context"], mask, WINDOW_FRAMES)

    @jax.jit
    def gradient(params):
        def loss(params):
            model, rngs = nnx.merge(graph, params, rest), nnx.Rngs(dropout=1)  # theirs trains with dropout, too
            conditioning = model.encode(inputs["tokens"], inputs["context"], mask, WINDOW_FRAMES, rngs)
            target = jnp.asarray(inputs["target"])
            return model.decoder.loss(conditioning, target, jnp.asarray(mask), keys[0], rngs)[0].mean()

        return jax.grad(loss)(params)

    def window(**sampling):
        given = inputs["tokens"], inputs["context"], mask, keys
        return lambda: sampler.sample_windows(*given, sampler="ddpm", steps=steps, **sampling).block_until_ready()

    if train:
        return {"step": lambda: jax.block_until_ready(gradient(params))}
    return {
        "window": window(guidance=1.0),
        "encoders": lambda: jax.block_until_ready(encode(params)),
        "window, guided": window(guidance=2.0),
        "guided from -3 to 3": window(guidance=2.0, guidance_interval=(-3.0, 3.0)),  # log-SNR
    }


def their_tasks(weights: pathlib.Path, inputs, steps: int, train: bool) -> dict:
    import torch
    from diffusers import pipelines
    from diffusers.pipelines.deprecated import spectrogram_diffusion
    from diffusers.pipelines.deprecated.spectrogram_diffusion.pipeline_spectrogram_diffusion import (
        SpectrogramDiffusionPipeline,
    )

    pipelines.spectrogram_diffusion = spectrogram_diffusion  # where the published index looks for the encoders
    pipeline = SpectrogramDiffusionPipeline.from_pretrained(weights, melgan=None)
    tokens, context, target = (torch.from_numpy(inputs[name].copy()) for name in ("tokens", "context", "target"))
    mask = torch.ones(1, context.shape[1], dtype=torch.bool)
    networks = pipeline.notes_encoder, pipeline.continuous_encoder, pipeline.decoder

    def encode():
        notes, notes_mask = pipeline.notes_encoder(tokens, tokens > 0)
        frames, frames_mask = pipeline.continuous_encoder(context, mask)
        return [(notes, notes_mask), (frames, frames_mask)]

    @torch.no_grad()
    def window():
        memory, z = encode(), torch.randn(1, 256, 128)
        pipeline.scheduler.set_timesteps(steps)
        for step in pipeline.scheduler.timesteps:
            time = torch.full((1,), step / pipeline.scheduler.config.num_train_timesteps)
            z = pipeline.scheduler.step(pipeline.decoder(memory, z, time), step, z).prev_sample
        return z

    def gradient():
        for network in networks:
            network.zero_grad()
        noise = torch.randn_like(target)
        eps = pipeline.decoder(encode(), 0.7 * target + 0.7 * noise, torch.full((1,), 0.5))
        (eps - noise).abs().mean().backward()

    if train:
        for network in networks:
            network.train()
        return {"step": gradient}
    return {"window": window, "encoders": torch.no_grad()(encode)}


if __name__ == "__main__":
    main()
