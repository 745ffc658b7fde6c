import dataclasses
import json

import jax
import numpy as np
import pytest
from flax import nnx
from inputs import OURS, PAPER
from safetensors.numpy import load_file

from spectrodiff.diffusion.objective import X0, Preconditioned
from spectrodiff.diffusion.process import Process
from spectrodiff.diffusion.schedule import Karras, LogNormal
from spectrodiff.errors import InputError
from spectrodiff.models.autoregressive_decoder import AutoregressiveConfig, AutoregressiveSamplingConfig
from spectrodiff.models.diffusion_decoder import DiffusionConfig
from spectrodiff.models.layers import Buffer
from spectrodiff.models.spectrogram_model import SpectrogramModel
from spectrodiff.pretrained.arrays import save_arrays
from spectrodiff.pretrained.hub import find_checkpoint
from spectrodiff.pretrained.kinds import KINDS, MELGAN, SPECTROGRAM, vocoder_kind
from spectrodiff.pretrained.native import flatten, load, read, save
from spectrodiff.vocoder.generator import Generator, GeneratorConfig

WEIGHTS, CONFIG = "spectrogram.safetensors", "spectrogram.json"


def arrays_of(network):
    return flatten(nnx.state(network, nnx.Any(nnx.Param, Buffer)))


@pytest.fixture
def folder(tmp_path, paper_model):
    save(tmp_path / "weights", SPECTROGRAM, paper_model, PAPER, {"steps": 7})
    return tmp_path / "weights"


FRAMES = dataclasses.replace(
    OURS, decoder=AutoregressiveConfig(mean=-0.3, std=0.375, components=2, sampling=AutoregressiveSamplingConfig(0.1))
)
OTHER_PROCESS = dataclasses.replace(
    PAPER, decoder=DiffusionConfig(process=Process(Preconditioned(0.3), LogNormal(), Karras()), condition_drop=0.2)
)


@pytest.mark.parametrize(
    "config", [PAPER, OURS, FRAMES, OTHER_PROCESS], ids=["paper", "ours", "frames", "other process"]
)
def test_saved_model_is_loaded_bit_for_bit(tmp_path, config):
    model = SpectrogramModel(config, rngs=nnx.Rngs(0))
    save(tmp_path, SPECTROGRAM, model, config, {})
    loaded, loaded_config = load(tmp_path, SPECTROGRAM)
    assert loaded_config == config
    assert nnx.graphdef(loaded) == nnx.graphdef(model)
    saved, found = arrays_of(model), arrays_of(loaded)
    assert saved.keys() == found.keys()
    assert all(np.array_equal(saved[name], found[name]) for name in saved)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(nnx.state(loaded)))


def test_vocoder_is_saved_beside_the_model(tmp_path, folder):
    config = GeneratorConfig(channels=16)
    generator = Generator(config, rngs=nnx.Rngs(0))
    assert vocoder_kind(folder) is None
    save(folder, MELGAN, generator, config, {})
    assert vocoder_kind(folder) is MELGAN
    assert [kind for kind in KINDS.values() if kind.exists_in(folder)] == [SPECTROGRAM, MELGAN]
    loaded, loaded_config = load(folder, MELGAN)
    assert loaded_config == config
    saved, found = arrays_of(generator), arrays_of(loaded)
    assert saved.keys() == found.keys()
    assert all(np.array_equal(saved[name], found[name]) for name in saved)


def test_half_precision_file_is_loaded_as_float32(tmp_path, folder, paper_model):
    save(tmp_path / "half", SPECTROGRAM, paper_model, PAPER, {}, dtype="float16")
    sizes = [(place / WEIGHTS).stat().st_size for place in (tmp_path / "half", folder)]
    assert sizes[0] < 0.55 * sizes[1]
    saved, found = arrays_of(paper_model), arrays_of(load(tmp_path / "half", SPECTROGRAM)[0])
    for name, array in found.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, saved[name].astype(np.float16))


def test_parameter_names_and_card_are_stored(folder):
    assert "decoder.blocks.0.mlp.wo.kernel" in load_file(folder / WEIGHTS)
    assert json.loads((folder / CONFIG).read_text())["card"] == {"steps": 7}


def remove_parameter(arrays):
    del arrays["decoder.out.kernel"]


def add_parameter(arrays):
    arrays["decoder.in.kernel"] = np.zeros(1, np.float32)


def change_shape(arrays):
    arrays["decoder.out.kernel"] = arrays["decoder.out.kernel"][:-1]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (remove_parameter, r"parameter decoder\.out\.kernel$"),
        (add_parameter, r"parameter decoder\.in\.kernel$"),
        (change_shape, r"decoder.out.kernel.*\(31, 128\).*\(32, 128\)"),
    ],
)
def test_mismatched_weights_raise_input_error(folder, edit, message):
    arrays = load_file(folder / WEIGHTS)
    edit(arrays)
    save_arrays(folder / WEIGHTS, arrays.items())
    with pytest.raises(InputError, match=message):
        load(folder, SPECTROGRAM)


def test_truncated_or_missing_file_raises_input_error(folder):
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=WEIGHTS):
        load(folder, SPECTROGRAM)
    path.unlink()
    with pytest.raises(InputError, match=WEIGHTS):
        load(folder, SPECTROGRAM)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"format_version": 2, "config": []}', '{"format_version": 2, "config": {"model": 3}}',
     '{"format_version": 2, "config": {}, "card": 3}', "[" * 200_000],
    ids=["empty", "cut", "list", "nothing", "config a list", "model a number", "card a number", "deep"],
)  # fmt: skip
def test_invalid_config_file_raises_input_error(folder, text):
    (folder / CONFIG).write_text(text)
    with pytest.raises(InputError, match=CONFIG):
        load(folder, SPECTROGRAM)


def test_folder_without_a_model_raises_input_error(tmp_path):
    with pytest.raises(InputError, match=r"spectrogram\.json"):
        load(tmp_path, SPECTROGRAM)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"decoder": {"kind": "fourier"}}, "kind 'fourier'"),
        ({"decoder": {"kind": 3}}, "kind 3"),
        ({"decoder": {"kind": "diffusion", "colour": "red"}}, "field 'colour'"),
        ({"decoder": 3}, "decoder is 3"),
        ({"decoder": {"kind": "diffusion", "sampling": []}}, "sampling is \\[\\]"),
        ({"decoder": {"kind": "diffusion", "sampling": {"steps": 0}}}, "steps is 0"),
        ({"model": {"colour": "red"}}, "field 'colour'"),
        ([], "is \\[\\]"),
    ],
)
def test_invalid_settings_raise_input_error(folder, values, message):
    (folder / CONFIG).write_text(json.dumps({"format_version": 2, "config": values}))
    with pytest.raises(InputError, match=f"spectrogram\\.json.*{message}"):
        read(folder, SPECTROGRAM)


def test_bundled_checkpoints_are_readable():
    config, arrays, _ = read(find_checkpoint("demo_diffusion"), SPECTROGRAM)
    assert config.decoder.process == Process(X0())
    assert (config.decoder.mean, config.decoder.std) == (-0.3, 0.375)
    assert "decoder.out.kernel" in arrays
    config, arrays, _ = read(folder := find_checkpoint("demo"), SPECTROGRAM)
    assert config.decoder.kind == "texture"
    assert config.decoder.mean_decoder.process.objective == X0()
    assert "decoder.texture.leave.kernel" in arrays
    assert vocoder_kind(folder) is MELGAN


def test_unknown_version_or_field_raises_input_error(folder):
    description = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(description | {"format_version": 99}))
    with pytest.raises(InputError, match="version 99"):
        load(folder, SPECTROGRAM)
    description["config"]["model"]["colour"] = "red"
    (folder / CONFIG).write_text(json.dumps(description))
    with pytest.raises(InputError, match="colour"):
        load(folder, SPECTROGRAM)
