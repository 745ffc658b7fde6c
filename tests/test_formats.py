"""Weight formats are recognised by the files of a folder, and give equal networks."""

import dataclasses
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from flax import nnx
from inputs import OURS, PAPER
from weights import FORMATS, random_arrays, write_weights

from spectrodiff import synthesizer
from spectrodiff.config import ModelConfig, TokenizerConfig
from spectrodiff.errors import InputError
from spectrodiff.models.layers import Buffer
from spectrodiff.models.spectrogram_model import SpectrogramConfig
from spectrodiff.pretrained.formats import open_checkpoint
from spectrodiff.pretrained.kinds import MELGAN
from spectrodiff.pretrained.native import flatten, shapes_of, write
from spectrodiff.synthesizer import Synthesizer
from spectrodiff.vocoder.generator import GeneratorConfig
from spectrodiff.vocoder.griffin_lim import GriffinLim
from spectrodiff.vocoder.streaming import MelGAN

CONFIG = SpectrogramConfig(TokenizerConfig(1, "slakh", PAPER.model.max_tokens), PAPER.model)
ARRAYS = random_arrays(CONFIG)


@pytest.fixture(params=FORMATS)
def folder(request, tmp_path):
    write_weights(tmp_path / request.param, request.param, CONFIG, ARRAYS)
    return tmp_path / request.param


def test_formats_are_recognised_and_load_equal_networks(folder):
    found = open_checkpoint(folder)
    assert folder.name.startswith(found.format)
    assert found.config == CONFIG
    assert found.shapes() == {name: array.shape for name, array in ARRAYS.items()}
    assert found.specs() == {name: (array.shape, "float32") for name, array in ARRAYS.items()}
    network = flatten(nnx.state(found.build(), nnx.Any(nnx.Param, Buffer)))
    assert network.keys() == ARRAYS.keys()
    for name, array in network.items():
        np.testing.assert_array_equal(array, ARRAYS[name])


def test_t5x_checkpoint_is_found_by_its_folder_or_its_parent(tmp_path):
    write_weights(tmp_path / "run", "t5x", CONFIG, ARRAYS)
    for path in (tmp_path / "run", tmp_path / "run" / "checkpoint_500000", str(tmp_path / "run")):
        found = open_checkpoint(path)
        assert (found.format, found.card, found.config) == ("t5x", {"steps": 500_000}, CONFIG)


def test_card_and_config_are_read(checkpoint):
    assert open_checkpoint(checkpoint).card == {}
    assert open_checkpoint(checkpoint).config == OURS


def test_float16_weights_load_as_a_float32_network(tmp_path):
    halves = {name: array.astype(np.float16) for name, array in ARRAYS.items()}
    write_weights(tmp_path / "halves", "diffusers", CONFIG, halves)
    found = open_checkpoint(tmp_path / "halves")
    assert {spec.dtype for spec in found.specs().values()} == {"float16"}
    network = flatten(nnx.state(found.build(), nnx.Any(nnx.Param, Buffer)))
    for name, array in network.items():
        np.testing.assert_array_equal(array, halves[name].astype(np.float32))


@pytest.mark.parametrize("name", ["decoder.blocks.0.mlp.wo.kernel", "decoder.positions.table"])
def test_parameters_with_wrong_shapes_are_named(folder, name):
    """The position table is a case of its own, as other lengths could be interpolated."""
    shape = ARRAYS[name].shape
    write_weights(folder.with_name("wrong"), folder.name, CONFIG, {**ARRAYS, name: ARRAYS[name][:-1]})
    found = open_checkpoint(folder.with_name("wrong"))
    found_shape, wanted = re.escape(str((shape[0] - 1, shape[1]))), re.escape(str(shape))
    for take in (found.build, found.specs):
        with pytest.raises(InputError, match=rf"wrong: .*\b{name} .*{found_shape}.*{wanted}$"):
            take()


@pytest.mark.parametrize("rows", [1280, 1390])
def test_too_small_embedding_table_raises_input_error(tmp_path, rows):
    config = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, vocabulary_rows=rows))
    write_weights(tmp_path / "small", "diffusers", config, random_arrays(config))
    with pytest.raises(InputError, match=rf"\b{rows}\b.* 1391$"):
        open_checkpoint(tmp_path / "small")


def test_empty_folder_raises_input_error(tmp_path):
    with pytest.raises(InputError, match=f"^{tmp_path} .*weights"):
        open_checkpoint(tmp_path)


# ---- synthesizers


def test_synthesizer_loads_every_format(folder):
    made = Synthesizer.from_pretrained(folder)
    assert made.config == CONFIG
    assert made.tokenizer.config.program_map == "slakh"
    assert isinstance(made.vocoder, GriffinLim)
    np.testing.assert_array_equal(made.model.decoder.out.kernel[...], ARRAYS["decoder.out.kernel"])


@pytest.fixture
def onnx_vocoder_file(tmp_path):
    write_weights(tmp_path / "pipeline", "diffusers", CONFIG, ARRAYS)
    vocoder = tmp_path / "pipeline" / "melgan" / "model.onnx"
    vocoder.parent.mkdir()
    vocoder.write_bytes(b"an ONNX file")
    return vocoder


def test_onnx_vocoder_of_a_pipeline_is_used(onnx_vocoder_file, monkeypatch):
    made = GriffinLim()
    paths = []
    monkeypatch.setattr(synthesizer, "OnnxVocoder", lambda path: paths.append(path) or made)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "onnxruntime")
    assert open_checkpoint(onnx_vocoder_file.parent.parent).onnx_vocoder == onnx_vocoder_file
    assert Synthesizer.from_pretrained(onnx_vocoder_file.parent.parent).vocoder is made
    assert paths == [onnx_vocoder_file]


def test_missing_onnxruntime_warns_and_uses_griffin_lim(onnx_vocoder_file, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.warns(UserWarning, match=r"model\.onnx .*spectrodiff\[onnx\].*Griffin-Lim"):
        assert isinstance(Synthesizer.from_pretrained(onnx_vocoder_file.parent.parent).vocoder, GriffinLim)


def test_our_melgan_takes_precedence_over_onnx(onnx_vocoder_file):
    config = GeneratorConfig(channels=16)
    arrays = {name: np.zeros(shape, np.float32) for name, shape in shapes_of(MELGAN, config).items()}
    write(onnx_vocoder_file.parent.parent, MELGAN, arrays, config, {})
    assert isinstance(Synthesizer.from_pretrained(onnx_vocoder_file.parent.parent).vocoder, MelGAN)


# ---- memory


@pytest.mark.trial
@pytest.mark.skipif(not pathlib.Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
@pytest.mark.parametrize("kind", FORMATS)
def test_loading_needs_little_more_memory_than_the_parameters(tmp_path, kind):
    """A second copy of all parameters would give a ratio of 2. benchmarks/loading.py describes the measurement.

    Buffers of the readers, tens of megabytes, are about a third of the parameters of a model as small as this.
    """
    sizes = {"width": 512, "mlp_width": 1024, "note_layers": 2, "context_layers": 2, "decoder_layers": 2}
    config = SpectrogramConfig(TokenizerConfig(1, "slakh"), ModelConfig(heads=8, **sizes))
    write_weights(tmp_path / kind, kind, config, random_arrays(config))
    script = pathlib.Path(__file__).parent.parent / "benchmarks" / "loading.py"
    command = [sys.executable, str(script), "--measure", str(tmp_path / kind)]
    measured = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    ratio, megabytes = (float(part) for part in measured.split("peak ")[1].removesuffix(" MB\n").split(" x "))
    assert megabytes > 100
    assert 0.9 < ratio < 1.5
