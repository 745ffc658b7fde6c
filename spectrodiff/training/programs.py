"""Instruments that a model gains: programs of their own, that begin as copies of others."""

from collections.abc import Iterable, Mapping

import numpy as np

from spectrodiff.config import TokenizerConfig, is_whole
from spectrodiff.errors import InputError
from spectrodiff.models.spectrogram_model import SpectrogramModel
from spectrodiff.notes.tokenizer import NoteTokenizer

_EVERY = np.arange(128)


def check_range(programs: Iterable[int], what: str) -> None:
    """Raises InputError for what is no MIDI program."""
    for program in programs:
        if not is_whole(program, 0, 127):
            raise InputError(f"{what} have {program!r}; choose programs from 0 to 127")


def check_new(new: Mapping[int, int], tokenizer: TokenizerConfig) -> None:
    """Raises InputError unless each program in `new`, relatives by program, is played as itself and it alone is."""
    check_range([*new, *new.values()], "new_programs")
    played_as = NoteTokenizer(tokenizer).mapped(_EVERY)
    for program, relative in new.items():
        if tokenizer.program_map == "flat":
            raise InputError(f"program {program} cannot be new: the program map 'flat' drops every program")
        if relative in new:
            raise InputError(f"new program {program} cannot begin as {relative}, which is new too; name a known one")
        if played_as[program] != program:
            raise InputError(f"new program {program} would be played as {played_as[program]}; add it to own_programs")
        others = _EVERY[(played_as == program) & (program != _EVERY)]
        if len(others):
            raise InputError(f"program {program} cannot be new, {others[0]} is played as it; choose another number")


def add_programs(
    model: SpectrogramModel, new: Mapping[int, int], theirs: TokenizerConfig, ours: TokenizerConfig
) -> None:
    """Gives each program in `new` the token embedding of its relative, which is the one that this is played as.

    No other parameter of a network is one program's. `theirs` is the tokenizer that the weights were trained with; what
    they learnt as new stays what they learnt.

    Raises:
      InputError: they know no programs, or learnt one as new that `ours` plays as another.
    """
    kept = NoteTokenizer(ours).mapped(_EVERY)
    for program in theirs.own_programs:
        if kept[program] != program:
            raise InputError(f"these weights learnt program {program}: add it to own_programs, or it is lost")
    added = [program for program in new if program not in theirs.own_programs]
    if not added:
        return
    if theirs.program_map == "flat":
        raise InputError("these weights know no programs, so a new one has no relative; give them no new_programs")
    row = model.note_encoder.vocabulary.program
    relatives = NoteTokenizer(theirs).mapped(np.array([new[program] for program in added]))
    table = model.note_encoder.embedding.embedding
    table[...] = table[...].at[row(np.array(added))].set(table[row(relatives)])
