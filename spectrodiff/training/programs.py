"""Addition of instruments to a model: new MIDI programs, whose embeddings are initialised from existing ones."""

from collections.abc import Iterable, Mapping

import numpy as np

from spectrodiff.config import TokenizerConfig, is_whole
from spectrodiff.errors import InputError
from spectrodiff.models.spectrogram_model import SpectrogramModel
from spectrodiff.notes.tokenizer import NoteTokenizer

_EVERY = np.arange(128)


def check_range(programs: Iterable[int], what: str) -> None:
    """Raises InputError if one of `programs` is not a MIDI program; `what` is their name in the message."""
    for program in programs:
        if not is_whole(program, 0, 127):
            raise InputError(f"{what} have {program!r}; choose programs from 0 to 127")


def check_new(new: Mapping[int, int], tokenizer: TokenizerConfig) -> None:
    """Checks the programs to be added; `new` maps each to the related program that its embedding is copied from.

    Raises:
      InputError: the program map of `tokenizer` maps a new program to another one, or another program to it, or a
        related program is new too.
    """
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
    """Initialises the token embedding of each program in `new` with that of its related program, mapped by `theirs`.

    No other parameters are specific to a program. `theirs` is the config of the tokenizer that the weights were trained
    with, `ours` that of the model. Programs that the weights were already trained with keep their embeddings.

    Raises:
      InputError: the weights were trained without programs, or with an added program that `ours` maps to another one.
    """
    kept = NoteTokenizer(ours).mapped(_EVERY)
    for program in theirs.own_programs:
        if kept[program] != program:
            raise InputError(f"these weights learnt program {program}: add it to own_programs, or it is lost")
    added = [program for program in new if program not in theirs.own_programs]
    if not added:
        return
    if theirs.program_map == "flat":
        raise InputError(
            "these weights were trained without programs (program_map 'flat'), so that there is no embedding to copy "
            "for a new one; leave out new_programs"
        )
    row = model.note_encoder.vocabulary.program
    relatives = NoteTokenizer(theirs).mapped(np.array([new[program] for program in added]))
    table = model.note_encoder.embedding.embedding
    table[...] = table[...].at[row(np.array(added))].set(table[row(relatives)])
