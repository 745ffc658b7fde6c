"""Names of instruments, and the instruments of a piece that a model replaces by others."""

import numpy as np

from spectrodiff.notes.sequence import Notes, import_silently
from spectrodiff.notes.tokenizer import NoteTokenizer


def program_name(program: int) -> str:
    """Returns the name of a MIDI program in General MIDI with its number from 0, such as "Cello (42)"."""
    pretty_midi = import_silently("pretty_midi")  # 0.2 s, which most pieces need not spend
    return f"{pretty_midi.program_to_instrument_name(program)} ({program})"


def replacements(notes: Notes, tokenizer: NoteTokenizer) -> str:
    """Returns one line that names the instruments of a piece that the program map replaces, or "" if there are none.

    Drums are never replaced. For a tokenizer without programs ("flat"), the result is "".
    """
    programs = np.unique(notes.program[~notes.is_drum])
    pairs = zip(programs.tolist(), tokenizer.mapped(programs).tolist(), strict=True)
    replaced = [f"{program_name(old)} is played by {program_name(new)}" for old, new in pairs if old != new]
    return f"instruments that the weights do not have: {', '.join(replaced)}" if replaced else ""
