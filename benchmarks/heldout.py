"""Log-mel error of samples on held-out windows and whole pieces, with that of trivial predictions, and a picture.

python benchmarks/heldout.py --checkpoint demo --dataset rendered --plot heldout.png
"""

import argparse
import itertools

import numpy as np
from matplotlib.figure import Figure

from spectrodiff.audio.mel import log_mel_on_host, scale_mel, unscale_mel
from spectrodiff.data.mixture import Mixture
from spectrodiff.data.recordings import Recording, decode
from spectrodiff.pretrained.formats import open_checkpoint
from spectrodiff.pretrained.hub import find_checkpoint
from spectrodiff.synthesizer import Synthesizer
from spectrodiff.training import state as states
from spectrodiff.training.heldout import NATS, guesses, mel_l1, sample_windows
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

    found = open_checkpoint(find_checkpoint(options.checkpoint))
    model, config = found.build(), found.config
    mixture = Mixture(options.data_dir, options.dataset)
    task = SpectrogramTask(mixture, config, heldout_windows=options.windows, heldout_split=options.split)
    target, mask = task.heldout["target"], task.heldout["target_mask"]

    print(f"log-mel L1 in nats, {len(target)} windows of the {options.split} split, after the true window before each")
    for name, value in guesses(task.heldout).items():
        print(f"{name:>28}  {value:.3f}")
    own = (config.decoder.sampling.steps, config.decoder.sampling.guidance)
    for steps, guidance in dict.fromkeys([own, *itertools.product(options.steps, options.guidance)]):
        decoder = config.decoder.sampled(steps=steps, guidance=guidance)
        sampled = sample_windows(states.split(model), decoder, task.heldout)
        print(
            f"{f'sampled, {steps} steps, guidance {guidance:g}':>28}  {mel_l1(sampled, target, mask):.3f}", flush=True
        )
        if options.plot and (steps, guidance) == own:
            plot(options.plot, target, sampled)
    records = [(part, index) for part in mixture.heldout(options.split) for index in range(len(part))]
    chosen = np.linspace(0, len(records) - 1, min(len(records), options.pieces)).astype(int)
    synthesizer = Synthesizer(model, config)
    errors = [whole_piece(synthesizer, decode(part[index])) for part, index in (records[i] for i in chosen)]
    print(f"{f'{len(chosen)} whole pieces':>28}  {np.mean(np.concatenate(errors)):.3f}")


def whole_piece(synthesizer: Synthesizer, recording: Recording) -> np.ndarray:
    """Returns the log-mel L1 of each frame of a piece in nats. The context of a window is the sampled previous one."""
    true = scale_mel(log_mel_on_host(recording.audio))
    mel = scale_mel(np.concatenate(list(synthesizer.mels(recording.notes))))
    frames = min(len(mel), len(true))
    return NATS * np.abs(mel[:frames] - true[:frames]).mean(-1)


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
