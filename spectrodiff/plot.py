"""A picture of a piece: its notes, the spectrogram made from them, the sound made from that."""

import os

import numpy as np
from jaxtyping import Float

from spectrodiff.audio.mel import FRAMES_PER_SECOND, SAMPLE_RATE
from spectrodiff.files import replacing
from spectrodiff.notes.midi import Notes


def plot_piece(
    path: str | os.PathLike, notes: Notes, mel: Float[np.ndarray, "t m"], audio: Float[np.ndarray, " s"]
) -> None:
    """Draws piano roll (a colour a program, drums as crosses), unscaled log-mel and waveform on one time axis."""
    from matplotlib.figure import Figure  # without pyplot: no display is looked for

    figure = Figure(figsize=(12, 7), layout="constrained")
    roll, spectrogram, waveform = figure.subplots(3, 1, sharex=True, height_ratios=(3, 4, 1.2))

    colours = [f"C{program % 10}" for program in notes.program]
    pitched = np.flatnonzero(~notes.is_drum)
    roll.hlines(
        notes.pitch[pitched], notes.start[pitched], notes.end[pitched], [colours[i] for i in pitched], linewidth=3
    )
    drums = notes.is_drum
    roll.plot(notes.start[drums], notes.pitch[drums], "kx", markersize=4)
    for program in np.unique(notes.program[pitched]):
        roll.plot([], [], color=f"C{program % 10}", linewidth=3, label=f"program {program}")
    if drums.any():
        roll.plot([], [], "kx", label="drums")
    roll.legend(loc="upper right", fontsize="small")
    roll.set_ylabel("MIDI pitch")

    extent = (0, len(mel) / FRAMES_PER_SECOND, 0, mel.shape[1])
    spectrogram.imshow(mel.T, origin="lower", aspect="auto", extent=extent, cmap="magma", vmin=-11.5, vmax=4.0)
    spectrogram.set_ylabel("mel bin")
    waveform.plot(np.arange(len(audio)) / SAMPLE_RATE, audio, linewidth=0.3)
    waveform.set(ylabel="amplitude", xlabel="seconds", xlim=extent[:2])
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format=os.path.splitext(path)[1].lstrip(".") or "png")
