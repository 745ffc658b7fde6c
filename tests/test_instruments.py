"""Messages about instruments that a model replaces by others."""

import pytest
from inputs import random_notes

from spectrodiff.config import TokenizerConfig
from spectrodiff.notes.instruments import program_name, replacements
from spectrodiff.notes.tokenizer import NoteTokenizer

PIECE = random_notes(0, programs=(0, 42, 73), voices=20, drums=5)
CELLO, FLUTE = "Cello (42) is played by Violin (40)", "Flute (73) is played by Piccolo (72)"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"program_map": "midi_class"}, f"instruments that the weights do not have: {CELLO}, {FLUTE}"),
        ({"program_map": "midi_class", "own_programs": (42,)}, f"instruments that the weights do not have: {FLUTE}"),
        ({"program_map": "slakh"}, ""),
        ({"program_map": "full"}, ""),
        ({"program_map": "flat"}, ""),
    ],
)
def test_only_replaced_instruments_are_named(options, said):
    assert replacements(PIECE, NoteTokenizer(TokenizerConfig(**options))) == said


def test_drums_are_never_replaced():
    drums = PIECE.select(PIECE.is_drum)
    assert replacements(drums, NoteTokenizer(TokenizerConfig(program_map="midi_class"))) == ""


def test_program_names_count_from_0():
    assert program_name(0) == "Acoustic Grand Piano (0)"
    assert program_name(127) == "Gunshot (127)"
