"""Options that several subcommands share."""

import argparse
from typing import Any


def add_rendering_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of how MIDI files become audio, in groups."""
    model = parser.add_argument_group("model")
    model.add_argument(
        "--checkpoint", default="demo", help="name or folder of the weights, or hf://owner/name (default: demo)"
    )
    model.add_argument(
        "--vocoder",
        help="demo (also called melgan), refiner, griffin_lim, a folder that training exported, an .onnx file or the "
        "folder of a SavedModel (default: the checkpoint's)",
    )
    add_sampling_options(parser.add_argument_group("sampling"))
    notes = parser.add_argument_group("notes")
    notes.add_argument(
        "--on_overflow",
        choices=("error", "thin"),
        default="error",
        help="a window with too many notes is an error, or loses its quietest ones (default: error)",
    )
    notes.add_argument("--max_minutes", type=float, default=60.0, help="refuse longer pieces (default: 60)")
    level = parser.add_argument_group("level of the audio")
    level.add_argument(
        "--level",
        choices=("loudness", "peak", "raw"),
        default="loudness",
        help="loudness: -16 LUFS (ITU-R BS.1770), or less, so that the true peak is at most -1 dBFS; peak: a peak of "
        "0.9; raw: as the model was trained, scaled only where it would clip (default: loudness)",
    )


def add_sampling_options(group, several: bool = False) -> None:
    """Adds the seed and the sampling options of decoders; with `several`, --steps and --guidance take many values."""
    values = {"nargs": "+"} if several else {}
    group.add_argument("--steps", type=int, **values, help="sampling steps (default: the checkpoint's)")
    group.add_argument("--sampler", help="ddpm, ddim or dpmpp (default: the checkpoint's)")
    group.add_argument(
        "--guidance",
        type=float,
        **values,
        help="weight of classifier-free guidance, 1 is none (default: the checkpoint's)",
    )
    group.add_argument(
        "--dither",
        type=float,
        help="standard deviation of the noise added to an autoregressive decoder's frames (default: the checkpoint's)",
    )
    group.add_argument(
        "--overlap",
        type=int,
        help="frames of 20 ms by which windows overlap, to be cross-faded (default: the checkpoint's)",
    )
    group.add_argument(
        "--tone_temperature",
        type=float,
        help="factor of the sampled texture below 1.5 kHz, from 0 to 1, for a decoder of mean and texture: with less, "
        "tones are cleaner, and further from recordings by the Fréchet distance (default: the checkpoint's)",
    )
    group.add_argument("--seed", type=int, default=0, help="the same seed gives the same audio (default: 0)")


def sampling_of(options: argparse.Namespace) -> dict[str, Any]:
    """Returns the sampling options that `add_sampling_options` added, by name, without the seed."""
    names = ("steps", "sampler", "guidance", "dither", "overlap", "tone_temperature")
    return {name: getattr(options, name) for name in names}
