"""Prints, for every odd file, how its log-mel as FluidSynth itself renders it correlates with that of its notes as
note-seq reads them, and as we do, rendered by the same synthesizer: `python tests/midi_correlations.py`, a minute.
"""

import pathlib
import tempfile

import midi_player
import numpy as np
import scipy.signal
from midi_cases import CASES, OURS_ALONE, plain

from spectrodiff.audio.mel import SAMPLE_RATE, log_mel
from spectrodiff.data.soundfont import play
from spectrodiff.errors import InputError
from spectrodiff.notes.midi import read_midi
from spectrodiff.notes.sequence import Notes, import_note_seq, notes_of

SECONDS = 2.0


def mel(audio: np.ndarray) -> np.ndarray:
    size = int(SECONDS * SAMPLE_RATE)
    return np.asarray(log_mel(np.pad(audio, (0, size))[:size].astype(np.float32))).ravel()


def synthesizers(name: str) -> tuple[np.ndarray, str]:
    """The log-mel of what FluidSynth plays, and which file that is: the odd one, or else the plain one."""
    odd, notes = CASES[name]
    audio = None if name in OURS_ALONE else midi_player.play(odd, SECONDS)
    which = "plain" if audio is None else "odd"
    if audio is None:
        audio = midi_player.play(plain(notes), SECONDS)
    return mel(scipy.signal.resample_poly(audio, 160, 441)), which


def correlation(notes: Notes, theirs: np.ndarray) -> float:
    return float(np.corrcoef(mel(play(notes)), theirs)[0, 1])


def by_note_seq(path: pathlib.Path) -> Notes:
    note_seq = import_note_seq()
    try:
        sequence = note_seq.midi_to_note_sequence(path.read_bytes())
    except note_seq.MIDIConversionError:
        raise InputError("refused") from None
    notes = notes_of(note_seq.apply_sustain_control_changes(sequence))
    if not len(notes):
        raise InputError("no notes")
    return notes


def main() -> None:
    print("| file | FluidSynth plays | note-seq | spectrodiff |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "odd.mid")
        for name, (odd, _) in CASES.items():
            path.write_bytes(odd)
            theirs, which = synthesizers(name)
            cells = []
            for read in (by_note_seq, read_midi):
                try:
                    cells.append(f"{correlation(read(path), theirs):.3f}")
                except InputError as error:
                    cells.append(str(error).removeprefix(f"{path} "))
            print(f"| {name} | {which} | {cells[0]} | {cells[1]} |", flush=True)


if __name__ == "__main__":
    main()
