"""Messages about instruments that a model replaces by others."""

import re

import pytest
from inputs import random_notes

from spectrodiff.config import TokenizerConfig
from spectrodiff.notes.instruments import program_name, replacements
from spectrodiff.notes.tokenizer import NoteTokenizer

PIECE = random_notes(0, programs=(0, 42, 73), voices=20, drums=5)
CELLO, FLUTE = ["Cello (42)", "Violin (40)"], ["Flute (73)", "Piccolo (72)"]  # and what plays them


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"program_map": "midi_class"}, CELLO + FLUTE),
        ({"program_map": "midi_class", "own_programs": (42,)}, FLUTE),
        ({"program_map": "slakh"}, []),
        ({"program_map": "full"}, []),
        ({"program_map": "flat"}, []),
    ],
)
def test_only_replaced_instruments_are_named(options, named):
    said = replacements(PIECE, NoteTokenizer(TokenizerConfig(**options)))
    assert re.findall(r"\w+ \(\d+\)", said) == named
    assert bool(said) == bool(named)


def test_drums_are_never_replaced():
    drums = PIECE.select(PIECE.is_drum)
    assert replacements(drums, NoteTokenizer(TokenizerConfig(program_map="midi_class"))) == ""


def test_program_names_count_from_0():
    assert program_name(0) == "Acoustic Grand Piano (0)"
    assert program_name(127) == "Gunshot (127)"
