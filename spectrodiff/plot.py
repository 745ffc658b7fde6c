"""Plots of a piece: notes, log-mel and waveform."""

import os
import pathlib

import numpy as np
from jaxtyping import Float

from spectrodiff.audio.mel import FRAMES_PER_SECOND, LOG_CEILING, LOG_FLOOR, SAMPLE_RATE
from spectrodiff.errors import InputError
from spectrodiff.files import check_writable, replacing
from spectrodiff.notes.instruments import program_name
from spectrodiff.notes.midi import Notes

_FORMATS = (".png", ".pdf", ".svg")
_COLUMNS = 2000  # points of the waveform: more than the width in pixels


def check_plot_path(path: str | os.PathLike) -> None:
    """Checks, before long work, that `plot_piece` can write to `path`; raises InputError if not."""
    path = pathlib.Path(path)
    if path.suffix.lower() not in _FORMATS:
        raise InputError(f"cannot draw {path}: give it one of the suffixes {', '.join(_FORMATS)}")
    check_writable(path)


def plot_piece(
    path: str | os.PathLike, notes: Notes, mel: Float[np.ndarray, "t m"], audio: Float[np.ndarray, " s"]
) -> None:
    """Plots the piano roll (a colour per instrument, drums as crosses), unscaled log-mel and waveform of a piece.

    Raises:
      InputError: `path` is no .png, .pdf or .svg, or cannot be written.
    """
    from matplotlib.figure import Figure  # pyplot would need a display

    check_plot_path(path)
    figure = Figure(figsize=(12, 7), layout="constrained")
    roll, spectrogram, waveform = figure.subplots(3, 1, sharex=True, height_ratios=(3, 4, 1.2))

    for order, program in enumerate(np.unique(notes.program[~notes.is_drum]).tolist()):
        these = ~notes.is_drum & (notes.program == program)
        colour, label = f"C{order % 10}", program_name(program)
        roll.hlines(notes.pitch[these], notes.start[these], notes.end[these], colour, linewidth=3, label=label)
    if notes.is_drum.any():
        roll.plot(notes.start[notes.is_drum], notes.pitch[notes.is_drum], "kx", markersize=4, label="drums")
    figure.legend(loc="outside upper left", ncols=5, fontsize="small", frameon=False)
    roll.set_ylabel("MIDI pitch")

    seconds = len(mel) / FRAMES_PER_SECOND
    spectrogram.imshow(
        mel.T,
        origin="lower",
        aspect="auto",
        extent=(0, seconds, 0, mel.shape[1]),
        cmap="magma",
        vmin=LOG_FLOOR,
        vmax=LOG_CEILING,
    )
    spectrogram.set_ylabel("mel bin")

    stride = max(1, len(audio) // _COLUMNS)
    places = np.arange(0, len(audio), stride)
    low, high = np.minimum.reduceat(audio, places), np.maximum.reduceat(audio, places)
    waveform.fill_between(places / SAMPLE_RATE, low, high, linewidth=0.3)
    waveform.set(ylabel="amplitude", xlabel="seconds", xlim=(0, seconds))
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)
