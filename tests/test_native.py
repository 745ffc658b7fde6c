import json

import jax
import numpy as np
import pytest
from flax import nnx
from inputs import OURS, PAPER
from safetensors.numpy import load_file

from spectrodiff.errors import InputError
from spectrodiff.models.layers import Buffer
from spectrodiff.pretrained.arrays import save_arrays
from spectrodiff.pretrained.kinds import MELGAN, SPECTROGRAM
from spectrodiff.pretrained.native import flatten, holds, load, save
from spectrodiff.vocoder.generator import Generator, GeneratorConfig

WEIGHTS, CONFIG = "spectrogram.safetensors", "spectrogram.json"


def arrays_of(network):
    return flatten(nnx.state(network, nnx.Any(nnx.Param, Buffer)))


@pytest.fixture
def folder(tmp_path, paper_model):
    save(tmp_path / "weights", SPECTROGRAM, paper_model, PAPER, {"steps": 7})
    return tmp_path / "weights"


@pytest.mark.parametrize("config", [PAPER, OURS], ids=["paper", "ours"])
def test_what_is_loaded_is_what_was_saved_to_the_bit(tmp_path, config, request):
    model = request.getfixturevalue("paper_model" if config is PAPER else "our_model")
    save(tmp_path, SPECTROGRAM, model, config, {})
    loaded, loaded_config = load(tmp_path, SPECTROGRAM)
    assert loaded_config == config
    assert nnx.graphdef(loaded) == nnx.graphdef(model)
    saved, found = arrays_of(model), arrays_of(loaded)
    assert saved.keys() == found.keys()
    assert all(np.array_equal(saved[name], found[name]) for name in saved)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(nnx.state(loaded)))


def test_a_vocoder_lies_beside_it(tmp_path, folder):
    config = GeneratorConfig(channels=16)
    generator = Generator(config, rngs=nnx.Rngs(0))
    assert not holds(folder, MELGAN)
    save(folder, MELGAN, generator, config, {})
    assert holds(folder, MELGAN)
    assert holds(folder, SPECTROGRAM)
    loaded, loaded_config = load(folder, MELGAN)
    assert loaded_config == config
    saved, found = arrays_of(generator), arrays_of(loaded)
    assert saved.keys() == found.keys()
    assert all(np.array_equal(saved[name], found[name]) for name in saved)


def test_half_precision_halves_the_file_and_is_loaded_as_single(tmp_path, folder, paper_model):
    save(tmp_path / "half", SPECTROGRAM, paper_model, PAPER, {}, dtype="float16")
    sizes = [(place / WEIGHTS).stat().st_size for place in (tmp_path / "half", folder)]
    assert sizes[0] < 0.55 * sizes[1]
    saved, found = arrays_of(paper_model), arrays_of(load(tmp_path / "half", SPECTROGRAM)[0])
    for name, array in found.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, saved[name].astype(np.float16))


def test_parameters_have_readable_names_and_the_card_is_kept(folder):
    assert "decoder.blocks.0.mlp.wo.kernel" in load_file(folder / WEIGHTS)
    assert json.loads((folder / CONFIG).read_text())["card"] == {"steps": 7}


def edit_missing(arrays):
    del arrays["decoder.out.kernel"]


def edit_unknown(arrays):
    arrays["decoder.in.kernel"] = np.zeros(1, np.float32)


def edit_shape(arrays):
    arrays["decoder.out.kernel"] = arrays["decoder.out.kernel"][:-1]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (edit_missing, "lacks .*decoder.out.kernel"),
        (edit_unknown, "unknown .*decoder.in.kernel"),
        (edit_shape, r"decoder.out.kernel.*\(31, 128\).*\(32, 128\)"),
    ],
)
def test_weights_that_do_not_fit_are_named(folder, edit, message):
    arrays = load_file(folder / WEIGHTS)
    edit(arrays)
    save_arrays(folder / WEIGHTS, arrays.items())
    with pytest.raises(InputError, match=message):
        load(folder, SPECTROGRAM)


def test_a_truncated_or_missing_file_is_named(folder):
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=WEIGHTS):
        load(folder, SPECTROGRAM)
    path.unlink()
    with pytest.raises(InputError, match=WEIGHTS):
        load(folder, SPECTROGRAM)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"format_version": 1, "config": []}', '{"format_version": 1, "config": {"model": 3}}',
     '{"format_version": 1, "config": {}, "card": 3}', "[" * 200_000],
    ids=["empty", "cut", "list", "nothing", "config a list", "model a number", "card a number", "deep"],
)  # fmt: skip
def test_a_damaged_description_is_named(folder, text):
    (folder / CONFIG).write_text(text)
    with pytest.raises(InputError, match=CONFIG):
        load(folder, SPECTROGRAM)


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(InputError, match=r"not a spectrodiff checkpoint.*spectrogram\.json"):
        load(tmp_path, SPECTROGRAM)


def test_another_version_and_other_fields_are_refused(folder):
    description = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(description | {"format_version": 99}))
    with pytest.raises(InputError, match="version 99"):
        load(folder, SPECTROGRAM)
    description["config"]["model"]["colour"] = "red"
    (folder / CONFIG).write_text(json.dumps(description))
    with pytest.raises(InputError, match="colour"):
        load(folder, SPECTROGRAM)
