"""Log-mel error of samples on held-out windows and whole pieces, with that of trivial predictions, and a picture.

Errors are log-mel L1 in nats; roughness is relative to that of the true mels, so that below 1 a model blurs in time.

python benchmarks/heldout.py --checkpoint demo --dataset rendered --plot heldout.png
"""

import argparse
import itertools

import numpy as np
from matplotlib.figure import Figure

from spectrodiff.audio.mel import log_mel_on_host, scale_mel, unscale_mel
from spectrodiff.config import to_dict
from spectrodiff.data.mixture import Mixture
from spectrodiff.data.recordings import Recording, decode
from spectrodiff.mel_sampler import MelSampler
from spectrodiff.training import heldout
from spectrodiff.training import state as states
from spectrodiff.training.evaluators import Guesses
from spectrodiff.training.spectrogram import SpectrogramTask


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default="demo")
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--dataset", nargs="+", default=["rendered"])
    parser.add_argument("--split", default="test")
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 4, 20], help="to compare with the checkpoint's own")
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 2.0])
    parser.add_argument(
        "--pieces", type=int, default=8, help="pieces to sample in full, each window given the sampled previous one"
    )
    parser.add_argument("--plot", help="picture of three windows: true above, sampled below")
    options = parser.parse_args()

    sampler = MelSampler.from_pretrained(options.checkpoint)
    decoder, weights = sampler.config.decoder, states.split(sampler.model)
    mixture = Mixture(options.data_dir, options.dataset)
    task = SpectrogramTask(mixture, sampler.config, heldout_windows=options.windows, heldout_split=options.split)
    windows = task.heldout
    target = windows["target"]

    print(
        f"{len(target)} windows of the {options.split} split, after the true window before each: L1 in nats, roughness"
    )
    for name, value in Guesses()(task, weights).figures.items():
        row(name, value)
    grid = {"steps": options.steps, "guidance": options.guidance}
    grid = {name: values for name, values in grid.items() if name in to_dict(decoder.sampling)}
    asked = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    for some in dict.fromkeys([decoder, *(decoder.sampled(**values) for values in asked)]):
        sampled = heldout.sample_windows(weights, some, windows)
        for name, value in (figures := heldout.mel_figures(windows, mixture.names, sampled)).items():
            if name.startswith("heldout_mel_l1"):
                of = name.removeprefix("heldout_mel_l1")
                row(f"{described(some.sampling)} {of}".strip(), value, figures[f"heldout_roughness{of}"])
        if options.plot and some == decoder:
            plot(options.plot, target, sampled)
    records = [(part, index) for part in mixture.heldout(options.split) for index in range(len(part))]
    chosen = np.linspace(0, len(records) - 1, min(len(records), options.pieces)).astype(int)
    recordings = [decode(part[index]) for part, index in (records[i] for i in chosen)]
    if recordings:
        row(f"{len(recordings)} whole pieces", *whole_pieces(sampler, recordings))


def row(name: str, error: float, roughness: float | None = None) -> None:
    print(f"{name:>40}  {error:.3f}" + ("" if roughness is None else f"  {roughness:.3f}"), flush=True)


def described(sampling) -> str:
    return ", ".join(f"{name} {value}" for name, value in to_dict(sampling).items()) or "sampled"


def whole_pieces(sampler: MelSampler, recordings: list[Recording]) -> tuple[float, float]:
    """Error and roughness over all frames of pieces, when every window's context is the sampled window before it."""
    errors, roughness = [], []
    for place, song in sampler.songs((recording.notes, 0) for recording in recordings):
        true = scale_mel(log_mel_on_host(recordings[place].audio))
        frames = min(len(song.mel), len(true))
        mels = [mel[:frames] for mel in (np.asarray(scale_mel(song.mel)), true)]
        errors.append(heldout.NATS * np.abs(mels[0] - mels[1]).mean(-1))
        roughness.append([frames * heldout.roughness(mel[None], np.ones((1, frames), bool)) for mel in mels])
    sampled, true = np.sum(roughness, axis=0)
    return float(np.concatenate(errors).mean()), float(sampled / true)


def plot(path: str, target: np.ndarray, sampled: np.ndarray) -> None:
    """Plots true and sampled mels of three of the held-out windows."""
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
