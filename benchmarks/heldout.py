"""Log-mel error of samples on held-out windows and whole pieces, with that of trivial predictions, and a picture.

Errors are log-mel L1 in nats; roughness is relative to that of the true mels, so that below 1 a model blurs in time.
The flux is the mean absolute change of the log-mel from frame to frame; where windows meet or are cross-faded, relative
to all other frames, it should be near that of the true mels at the same frames, or there are seams.

python benchmarks/heldout.py --checkpoint demo --dataset rendered --plot heldout.png
"""

import argparse
import itertools

import numpy as np
from matplotlib.figure import Figure

from spectrodiff.audio.mel import FRAMES_PER_SECOND, LOG_FLOOR, log_mel_on_host, scale_mel, unscale_mel
from spectrodiff.config import WINDOW_FRAMES, to_dict
from spectrodiff.data.mixture import Mixture
from spectrodiff.data.recordings import Recording, decode
from spectrodiff.mel_sampler import MelSampler
from spectrodiff.models.texture_decoder import TextureConfig
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
    parser.add_argument("--overlap", type=int, help="of the windows of whole pieces (default: the checkpoint's)")
    parser.add_argument("--plot", help="picture of five windows, true, mean and sampled")
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
            rows = {"true": target}
            if isinstance(decoder, TextureConfig):
                rows["mean"] = heldout.sample_windows(weights, decoder.sampled(steps=0), windows)
            plot(options.plot, {**rows, "sampled": sampled})
    records = [(part, index) for part in mixture.heldout(options.split) for index in range(len(part))]
    chosen = np.linspace(0, len(records) - 1, min(len(records), options.pieces)).astype(int)
    recordings = [decode(part[index]) for part, index in (records[i] for i in chosen)]
    if recordings:
        error, roughness, flux, true_flux = whole_pieces(sampler, recordings, options.overlap)
        row(f"{len(recordings)} whole pieces", error, roughness)
        row("flux at borders, sampled", flux)
        row("flux at borders, true", true_flux)


def row(name: str, error: float, roughness: float | None = None) -> None:
    print(f"{name:>40}  {error:.3f}" + ("" if roughness is None else f"  {roughness:.3f}"), flush=True)


def described(sampling) -> str:
    return ", ".join(f"{name} {value}" for name, value in to_dict(sampling).items()) or "sampled"


def whole_pieces(
    sampler: MelSampler, recordings: list[Recording], overlap: int | None
) -> tuple[float, float, float, float]:
    """Error, roughness and flux over all frames of pieces, when every window's context is the sampled window before.

    The flux where windows meet, relative to other frames, is returned for the sampled and for the true mels.
    """
    errors, roughness, borders, others = [], [], [], []
    overlap = sampler.sampling(overlap=overlap).overlap
    for place, song in sampler.songs(((recording.notes, 0) for recording in recordings), overlap=overlap):
        true = scale_mel(log_mel_on_host(recordings[place].audio))
        frames = min(len(song.mel), len(true))
        mels = np.stack([mel[:frames] for mel in (np.asarray(scale_mel(song.mel)), true)])
        errors.append(heldout.NATS * np.abs(mels[0] - mels[1]).mean(-1))
        roughness.append([frames * heldout.roughness(mel[None], np.ones((1, frames), bool)) for mel in mels])
        flux = np.abs(np.diff(mels, axis=1)).mean(-1)
        since_start = np.arange(1, frames) % (WINDOW_FRAMES - overlap)
        at_border = (
            (overlap // 2 <= since_start) & (since_start <= overlap) & (np.arange(1, frames) >= WINDOW_FRAMES - overlap)
        )
        borders.append(flux[:, at_border])
        others.append(flux[:, ~at_border])
    sampled, true = np.sum(roughness, axis=0)
    ratios = np.concatenate(borders, 1).mean(1) / np.concatenate(others, 1).mean(1)
    return float(np.concatenate(errors).mean()), float(sampled / true), *map(float, ratios)


def plot(path: str, rows: dict[str, np.ndarray]) -> None:
    """Plots the mels of five of the held-out windows, one column each, with the given rows."""
    figure = Figure(figsize=(16, 2.4 * len(rows)), layout="constrained")
    chosen = np.linspace(0, len(rows["true"]) - 1, 7).astype(int)[1:6]
    for line, (name, mels) in zip(figure.subplots(len(rows), 5, sharex=True, sharey=True), rows.items(), strict=True):
        for axis, window in zip(line, chosen, strict=True):
            image = np.asarray(unscale_mel(mels[window])).T
            extent = (0, WINDOW_FRAMES / FRAMES_PER_SECOND, 0, image.shape[0])
            axis.imshow(image, origin="lower", aspect="auto", extent=extent, cmap="magma", vmin=LOG_FLOOR, vmax=4)
            axis.set_title(f"{name}, window {window}", fontsize="small")
    figure.supxlabel("seconds")
    figure.supylabel("mel bin")
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    main()
