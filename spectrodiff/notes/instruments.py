"""Names of instruments, and which of them a model has played by others."""

import warnings

import numpy as np

from spectrodiff.notes.sequence import Notes
from spectrodiff.notes.tokenizer import NoteTokenizer


def program_name(program: int) -> str:
    """Returns a MIDI program's number after its name in General MIDI, such as "Cello (42)"; programs count from 0."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pretty_midi  # 0.2 s, which a piece without replaced instruments need not spend
    return f"{pretty_midi.program_to_instrument_name(program)} ({program})"


def replacements(notes: Notes, tokenizer: NoteTokenizer) -> str:
    """Returns one line about the instruments of a piece that the program map has played by others, or "" if none are.

    Drums are never replaced. A tokenizer without programs ("flat") plays all instruments alike, and names none.
    """
    programs = np.unique(notes.program[~notes.is_drum])
    pairs = zip(programs.tolist(), tokenizer.mapped(programs).tolist(), strict=True)
    played = [f"{program_name(own)} is played by {program_name(other)}" for own, other in pairs if own != other]
    return f"instruments that the weights do not have: {', '.join(played)}" if played else ""
