"""Quality against the number of sampling steps, for each sampler of a diffusion decoder: a table and a picture.

python benchmarks/steps.py --checkpoint demo_diffusion runs/eps/export --data_dir data --plot steps.png

The weights are sampled on held-out windows, each after the true window before it. L1 is that of log-mels in nats, which
favours smooth samples; roughness is relative to that of the true mels, so that 1 is right.
docs/results.md has the command that trained `runs/eps`, whose weights predict eps as the paper's do.
"""

import argparse
import pathlib
import time

from matplotlib.figure import Figure
from tqdm import tqdm

from spectrodiff.commands.common import keep_compiled_programs
from spectrodiff.data.mixture import Mixture
from spectrodiff.diffusion.samplers import STEPS
from spectrodiff.files import replacing
from spectrodiff.mel_sampler import MelSampler
from spectrodiff.training import heldout
from spectrodiff.training import state as states
from spectrodiff.training.spectrogram import SpectrogramTask

FIGURES = {"heldout_mel_l1": "log-mel L1, nats", "heldout_roughness": "roughness, relative to the true mels"}
Point = tuple[int, dict[str, float]]  # steps, and the figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", nargs="+", default=["demo_diffusion"])
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--dataset", nargs="+", default=["rendered"])
    parser.add_argument("--split", default="test")
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--sampler", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4, 8, 12, 20, 50, 100, 250, 1000])
    parser.add_argument("--guidance", type=float, help="default: that of each checkpoint; 1 is none")
    parser.add_argument("--plot", type=pathlib.Path, default=pathlib.Path("steps.png"))
    options = parser.parse_args()
    keep_compiled_programs()
    lines = {}
    print("| weights | sampler | steps | L1 | roughness | s |\n|---|---|---|---|---|---|", flush=True)
    for checkpoint in options.checkpoint:
        for sampler, points in measure(checkpoint, options).items():
            lines[f"{checkpoint}, {sampler}"] = points
            draw(options.plot, lines)  # after each, as a thousand steps take long


def measure(checkpoint: str, options: argparse.Namespace) -> dict[str, list[Point]]:
    """Samples the held-out windows with each sampler and number of steps, and prints rows of the table."""
    sampler = MelSampler.from_pretrained(checkpoint)
    weights, decoder = states.split(sampler.model), sampler.config.decoder
    mixture = Mixture(options.data_dir, options.dataset)
    task = SpectrogramTask(mixture, sampler.config, heldout_windows=options.windows, heldout_split=options.split)
    lines: dict[str, list[Point]] = {name: [] for name in options.sampler}
    asked = [(steps, name) for steps in sorted(options.steps) for name in options.sampler]
    for steps, name in tqdm(asked, checkpoint, leave=False):
        chosen = decoder.sampled(sampler=name, steps=steps, guidance=options.guidance)
        start = time.perf_counter()
        sampled = heldout.sample_windows(weights, chosen, task.heldout)
        seconds = time.perf_counter() - start
        figures = heldout.mel_figures(task.heldout, mixture.names, sampled)
        lines[name].append((steps, figures))
        numbers = " | ".join(f"{figures[key]:.3f}" for key in FIGURES)
        tqdm.write(f"| {checkpoint} | {name} | {steps} | {numbers} | {seconds:.1f} |")
    return lines


def draw(path: pathlib.Path, lines: dict[str, list[Point]]) -> None:
    """Plots each figure against the number of steps, one line for each checkpoint and sampler."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axis, (key, title) in zip(figure.subplots(1, len(FIGURES)), FIGURES.items(), strict=True):
        for name, points in lines.items():
            steps, found = zip(*points, strict=True)
            axis.plot(steps, [figures[key] for figures in found], marker="o", markersize=3, label=name)
        axis.set_xscale("log")
        axis.set_xticks(steps, [f"{count}" for count in steps], minor=False)
        axis.minorticks_off()
        axis.set_xlabel("steps")
        axis.set_ylabel(title)
        if key == "heldout_roughness":
            axis.axhline(1.0, color="grey", linewidth=0.8)
    axis.legend(fontsize="small")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, format=path.suffix.removeprefix("."))


if __name__ == "__main__":
    main()
