"""Names of instruments, and the instruments of a piece that a model replaces by others."""

import contextlib
import io
import warnings

import numpy as np

from spectrodiff.notes.sequence import Notes
from spectrodiff.notes.tokenizer import NoteTokenizer


def program_name(program: int) -> str:
    """Returns the name of a MIDI program in General MIDI with its number from 0, such as "Cello (42)"."""
    # pyfluidsynth, which pretty_midi imports, prints messages if CI is set.
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        import pretty_midi  # 0.2 s, which most pieces need not spend
    return f"{pretty_midi.program_to_instrument_name(program)} ({program})"


def replacements(notes: Notes, tokenizer: NoteTokenizer) -> str:
    """Returns one line that names the instruments of a piece that the program map replaces, or "" if there are none.

    Drums are never replaced. For a tokenizer without programs ("flat"), the result is "".
    """
    programs = np.unique(notes.program[~notes.is_drum])
    pairs = zip(programs.tolist(), tokenizer.mapped(programs).tolist(), strict=True)
    replaced = [f"{program_name(old)} is played by {program_name(new)}" for old, new in pairs if old != new]
    return f"instruments that the weights do not have: {', '.join(replaced)}" if replaced else ""
