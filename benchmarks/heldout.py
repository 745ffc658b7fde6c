"""How near sampled mels come to true ones on held-out windows, beside what guessing scores; and a picture.

python benchmarks/heldout.py --checkpoint demo --data_dir data/rendered --plot heldout.png
"""

import argparse
import itertools

import numpy as np
from matplotlib.figure import Figure

from spectrodiff.audio.mel import unscale_mel
from spectrodiff.pretrained.hub import find_checkpoint
from spectrodiff.pretrained.native import SPECTROGRAM, load
from spectrodiff.training import state as states
from spectrodiff.training.spectrogram import SpectrogramTask, mel_l1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default="demo")
    parser.add_argument("--data_dir", default="data/rendered")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 4, 20])
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 1.5, 2.0])
    parser.add_argument("--plot", help="picture of three windows: true above, sampled below")
    options = parser.parse_args()

    model, config = load(find_checkpoint(options.checkpoint), SPECTROGRAM)
    graph, params, buffers = states.split(model)
    task = SpectrogramTask(options.data_dir, config, heldout_windows=options.windows, heldout_split=options.split)
    target, mask = task.heldout["target"], task.heldout["target_mask"]

    print(f"log-mel L1 in nats, {len(target)} windows of the {options.split} split")
    for name, value in task.baselines().items():
        print(f"{name:>28}  {value:.3f}")
    for steps, guidance in itertools.product(options.steps, options.guidance):
        sampled = task.sample_heldout(graph, params, buffers, steps=steps, guidance=guidance)
        print(
            f"{f'sampled, {steps} steps, guidance {guidance:g}':>28}  {mel_l1(sampled, target, mask):.3f}", flush=True
        )
    if options.plot:
        plot(options.plot, target, sampled)


def plot(path: str, target: np.ndarray, sampled: np.ndarray) -> None:
    """Three windows spread over the held-out ones."""
    figure = Figure(figsize=(13, 6), layout="constrained")
    axes = figure.subplots(2, 3, sharex=True, sharey=True)
    for column, window in zip(axes.T, np.linspace(0, len(target) - 1, 5).astype(int)[1:4], strict=True):
        for axis, mel, name in zip(column, (target[window], sampled[window]), ("true", "sampled"), strict=True):
            image = np.asarray(unscale_mel(mel)).T
            axis.imshow(
                image, origin="lower", aspect="auto", extent=(0, 5.12, 0, 128), cmap="magma", vmin=-11.5, vmax=4
            )
            axis.set_title(f"{name}, window {window}", fontsize="small")
    figure.supxlabel("seconds")
    figure.supylabel("mel bin")
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
