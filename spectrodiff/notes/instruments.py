"""Names of instruments, and the instruments of a piece that a model replaces by others."""

import numpy as np

from spectrodiff.notes.sequence import Notes, import_silently
from spectrodiff.notes.tokenizer import NoteTokenizer


def instrument_name(program: int) -> str:
    """Returns the name of a MIDI program, numbered from 0, in General MIDI, such as "Cello" for 42."""
    return import_silently("pretty_midi").program_to_instrument_name(program)  # 0.2 s, which most pieces need not spend


def family_name(program: int) -> str:
    """Returns the name of a MIDI program's family in General MIDI, such as "Strings" for 42."""
    return import_silently("pretty_midi").program_to_instrument_class(program)


def program_name(program: int) -> str:
    """Returns the name of a MIDI program with its number, such as "Cello (42)"."""
    return f"{instrument_name(program)} ({program})"


def replacements(notes: Notes, tokenizer: NoteTokenizer) -> str:
    """Returns one line that names the instruments of a piece that the program map replaces, or "" if there are none.

    Drums are never replaced. For a tokenizer without programs ("flat"), the result is "".
    """
    programs = np.unique(notes.program[~notes.is_drum])
    pairs = zip(programs.tolist(), tokenizer.mapped(programs).tolist(), strict=True)
    replaced = [f"{program_name(old)} is played by {program_name(new)}" for old, new in pairs if old != new]
    return f"instruments that the weights do not have: {', '.join(replaced)}" if replaced else ""
