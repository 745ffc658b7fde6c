"""New instruments in existing weights: they start as a copy of a related program's embedding."""

import dataclasses
import json
import pathlib

import gin
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from inputs import OURS, jitted, random_notes
from weights import random_arrays, write_weights

from spectrodiff.config import TokenizerConfig
from spectrodiff.errors import InputError
from spectrodiff.models.spectrogram_model import SpectrogramConfig
from spectrodiff.notes.midi import write_midi
from spectrodiff.notes.tokenizer import NoteTokenizer
from spectrodiff.pretrained.native import flatten
from spectrodiff.synthesizer import Synthesizer
from spectrodiff.training.programs import check_new
from spectrodiff.training.spectrogram import SpectrogramTask

NEW, RELATIVE = 98, 14
TABLE = "note_encoder.embedding.embedding"


def with_tokenizer(**options):
    return dataclasses.replace(OURS, tokenizer=dataclasses.replace(OURS.tokenizer, **options))


def task(new=None, **options):
    return SpectrogramTask(config=with_tokenizer(**options), new_programs={NEW: RELATIVE} if new is None else new)


@pytest.fixture
def weights(tmp_path):
    """A function that writes weights for these tokenizer options and returns their folder and arrays."""

    def write(**options):
        config, folder = with_tokenizer(**options), tmp_path / "weights"
        arrays = random_arrays(config)
        write_weights(folder, "spectrodiff", config, arrays)
        return str(folder), arrays

    return write


def row(program, tokenizer=OURS.tokenizer):
    return NoteTokenizer(tokenizer).vocabulary.program(program)


@pytest.mark.parametrize(("program_map", "relative"), [("full", 14), ("midi_class", 8), ("slakh", 8)])
def test_new_program_copies_the_embedding_row_of_its_relative(weights, program_map, relative):
    folder, arrays = weights(program_map=program_map)
    model = task(program_map=program_map, own_programs=(NEW,)).load(folder)
    expected = {**arrays, TABLE: arrays[TABLE].copy()}
    expected[TABLE][row(NEW)] = arrays[TABLE][row(relative)]
    got = flatten(nnx.state(model))
    assert got.keys() == expected.keys()
    for name in got:
        np.testing.assert_array_equal(got[name], expected[name])


def test_new_program_initially_sounds_like_its_relative(weights):
    """No other parameter belongs to a single program, so the network's outputs for both are equal."""
    folder, _ = weights(program_map="midi_class")
    ours = task(program_map="midi_class", own_programs=(NEW,))
    model = ours.load(folder)
    notes = random_notes(0, programs=(NEW,), voices=4, drums=2)
    alike, other = (dataclasses.replace(notes, program=np.full_like(notes.program, p)) for p in (RELATIVE, 40))
    tokens = [ours.tokenizer.encode(piece)[:1, :256] for piece in (notes, alike, other)]
    assert not np.array_equal(tokens[0], tokens[1])
    empty = jnp.zeros((1, 256, 128))
    call = jitted(lambda model, tokens: model(tokens, empty, empty[..., 0] > 0, empty, jnp.zeros(1)))
    new, relative, violin = (np.asarray(call(model, window)) for window in tokens)
    np.testing.assert_array_equal(new, relative)
    assert np.abs(new - violin).max() > 1e-4


def test_trained_new_program_is_not_reinitialised(weights):
    """Exported weights can be trained further with the same config, and another instrument can be added."""
    folder, arrays = weights(program_map="midi_class", own_programs=(NEW,))
    further = task({NEW: RELATIVE, 99: NEW - 1}, program_map="midi_class", own_programs=(NEW, 99))
    table = flatten(nnx.state(further.load(folder)))[TABLE]
    np.testing.assert_array_equal(table[row(NEW)], arrays[TABLE][row(NEW)])
    np.testing.assert_array_equal(table[row(99)], arrays[TABLE][row(96)])
    with pytest.raises(InputError, match=r"program 98.*own_programs"):
        task({}, program_map="midi_class").load(folder)


def test_exported_weights_encode_the_new_program(weights, tmp_path):
    folder, _ = weights(program_map="midi_class")
    ours = task(program_map="midi_class", own_programs=(NEW,))
    ours.save(tmp_path / "export", ours.load(folder), {})
    write_midi(random_notes(1, programs=(NEW, NEW + 1), voices=6, drums=0), tmp_path / "song.mid")
    tokens = Synthesizer.from_pretrained(tmp_path / "export").tokenizer.encode_file(tmp_path / "song.mid")
    before = NoteTokenizer(with_tokenizer(program_map="midi_class").tokenizer).encode_file(tmp_path / "song.mid")

    def programs(tokens):
        return {int(token) - row(0) for token in np.unique(tokens) if row(0) <= token <= row(127)}

    assert programs(tokens) == {NEW, 96}
    assert programs(before) == {96}


def test_gin_defaults_do_not_apply_to_older_weights(weights):
    """Configs without `own_programs` are read as having none, so the new program is added."""
    folder, arrays = weights(program_map="midi_class")
    description = json.loads(pathlib.Path(folder, "spectrogram.json").read_text())
    del description["config"]["tokenizer"]["own_programs"]
    pathlib.Path(folder, "spectrogram.json").write_text(json.dumps(description))
    try:
        gin.parse_config(f"TokenizerConfig.own_programs = ({NEW},)")
        table = task(program_map="midi_class", own_programs=(NEW,)).load(folder).note_encoder.embedding.embedding
    finally:
        gin.clear_config()
    np.testing.assert_array_equal(table[row(NEW)], arrays[TABLE][row(8)])


@pytest.mark.parametrize(
    ("new", "options", "message"),
    [
        ({98: 14}, {"program_map": "midi_class"}, r"\b98\b.* 96\b"),
        (
            {96: 14},
            {"program_map": "midi_class"},
            r"program 96\b.*\b97\b",
        ),
        ({24: 14}, {"program_map": "slakh"}, r"program 24\b.*\b25\b"),
        ({90: 14}, {"program_map": "slakh"}, r"program 90\b.*\b88\b"),
        ({98: 14}, {"program_map": "flat"}, r"program 98 .*'flat'"),
        ({98: 98}, {}, r"\b98\b.* 98\b"),
        ({98: 99, 99: 8}, {}, r"program 98\b.*\b99\b"),
        ({98: 128}, {}, r"new_programs .*\b128\b"),
        ({-1: 8}, {}, r"new_programs .*-1\b"),
    ],
)
def test_invalid_new_programs_raise_input_error(new, options, message):
    with pytest.raises(InputError, match=message):
        check_new(new, TokenizerConfig(**options))
    with pytest.raises(InputError, match=message):
        SpectrogramTask(config=SpectrogramConfig(TokenizerConfig(**options)), new_programs=new)


def test_weights_without_programs_raise_input_error(weights):
    folder, _ = weights(program_map="flat")
    with pytest.raises(InputError, match="program_map 'flat'"):
        task(program_map="full").load(folder)
