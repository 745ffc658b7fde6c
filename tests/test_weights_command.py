"""`spectrodiff info` and `spectrodiff convert`."""

import dataclasses
import json
import pathlib
import re

import gin
import numpy as np
import pytest
from inputs import PAPER
from weights import FORMATS, random_arrays, write_weights

from spectrodiff.cli import main
from spectrodiff.commands.weights import SIZES
from spectrodiff.config import ModelConfig, TokenizerConfig, to_dict
from spectrodiff.models.autoregressive_decoder import AutoregressiveConfig
from spectrodiff.models.diffusion_decoder import DiffusionConfig, SamplingConfig
from spectrodiff.models.spectrogram_model import SpectrogramConfig
from spectrodiff.pretrained import kinds, native
from spectrodiff.pretrained.arrays import LazyArrays, Spec
from spectrodiff.pretrained.formats import open_checkpoint

ROOT = pathlib.Path(__file__).parent.parent
CONFIG = SpectrogramConfig(TokenizerConfig(1, "slakh", PAPER.model.max_tokens), PAPER.model)
ARRAYS = random_arrays(CONFIG)


@pytest.fixture(params=FORMATS)
def source(request, tmp_path):
    write_weights(tmp_path / request.param, request.param, CONFIG, ARRAYS)
    return tmp_path / request.param


@pytest.fixture
def error_line(capsys, tmp_path):
    """A function that runs a command, checks that it left no files and returns its one-line error."""

    def run(*arguments):
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(SystemExit) as exit:
            main([str(argument) for argument in arguments])
        assert exit.value.code == 2
        assert sorted(tmp_path.rglob("*")) == before
        (line,) = capsys.readouterr().err.splitlines()
        return line

    return run


def info(capsys, path):
    main(["info", str(path)])
    return {line[:14].strip(): line[14:] for line in capsys.readouterr().out.splitlines()}


def converted(source, destination, kind):
    main(["convert", str(source), str(destination), "--to", kind])
    return open_checkpoint(destination)


# ---- info


def test_info_describes_a_checkpoint(source, capsys):
    rows = info(capsys, source)
    assert source.name.startswith(rows["format"])
    count = sum(array.size for array in ARRAYS.values())
    assert rows["parameters"] == f"{count / 1e6:.1f} M"
    assert rows["dtype"] == "float32"
    assert rows["size"] == "none of small, base, large"
    assert rows["vocabulary"] == "1536 embeddings, programs slakh"
    assert rows["velocity bins"] == "1"
    assert rows["step"] == ("500000" if rows["format"] == "t5x" else "unknown")
    assert rows["decoder"] == "diffusion, predicts eps"
    assert rows["vocoder"] == "none"


def test_info_accepts_the_checkpoint_option(checkpoint, capsys, error_line):
    rows = info(capsys, checkpoint)
    main(["info", "--checkpoint", str(checkpoint)])
    assert [line[14:] for line in capsys.readouterr().out.splitlines()] == list(rows.values())
    assert "PATH --checkpoint" in error_line("info")
    assert re.search(r"--checkpoint: .*\bPATH\b", error_line("info", checkpoint, "--checkpoint", checkpoint))


def test_info_lists_our_model_options(checkpoint, capsys):
    rows = info(capsys, checkpoint)
    assert rows["our options"] == "compact_notes, event_times, note_roll, continuation"
    assert rows["decoder"] == "diffusion, predicts x0"
    assert rows["velocity bins"] == "32"


def test_info_of_an_autoregressive_model(tmp_path, capsys):
    model = dataclasses.replace(PAPER.model, with_context=False, mask_padding=False)
    config = SpectrogramConfig(CONFIG.tokenizer, model, AutoregressiveConfig(components=3))
    arrays = random_arrays(config)
    write_weights(tmp_path / "frames", "spectrodiff", config, arrays)
    rows = info(capsys, tmp_path / "frames")
    assert rows["decoder"].startswith("autoregressive")
    assert rows["parameters"] == f"{sum(array.size for array in arrays.values()) / 1e6:.1f} M"


class ShapesOnly(LazyArrays):
    """Parameters with shapes but no values."""

    def __init__(self, shapes):
        super().__init__(shapes)
        self.shapes = shapes

    def __getitem__(self, name):
        return np.zeros(0, np.float16)

    def spec(self, name):
        return Spec(self.shapes[name], "float16")


@pytest.mark.parametrize(
    ("size", "model", "parameters"),
    [
        ("small", ModelConfig(512, 6, 64, 1024, 8, 8, 8), "104.0 M"),
        ("base", ModelConfig(768, 12, 64, 2048, 12, 12, 12), "411.7 M"),
        ("base", ModelConfig(768, 12, 64, 2048, 12, 0, 12, with_context=False), "326.4 M"),
        ("none of small, base, large", ModelConfig(512, 6, 64, 1024, 8, 7, 8), "101.7 M"),  # one layer of 2.4 M less
    ],
)
def test_info_names_the_papers_sizes(size, model, parameters, tmp_path, capsys, monkeypatch):
    """It does not read the weights for that."""
    config = SpectrogramConfig(model=model)
    shapes = native.shapes_of(kinds.SPECTROGRAM, config)
    monkeypatch.setattr(native, "SafetensorsArrays", lambda path: ShapesOnly(shapes))
    description = {"format_version": native.FORMAT_VERSION, "config": to_dict(config), "card": {"steps": 3}}
    (tmp_path / "spectrogram.json").write_text(json.dumps(description))
    rows = info(capsys, tmp_path)
    assert (rows["size"], rows["step"], rows["parameters"], rows["dtype"]) == (size, "3", parameters, "float16")


@pytest.mark.parametrize("name", SIZES)
def test_sizes_match_the_configs(name):
    gin.clear_config()
    try:
        gin.add_config_file_search_path(str(ROOT))
        gin.parse_config_file(str(ROOT / "configs" / f"{name}.gin"), skip_unknown=True)
        model = gin.get_configurable("ModelConfig")()
    finally:
        gin.clear_config()
    sizes = (model.width, model.heads, model.head_dim, model.mlp_width)
    stacks = (model.note_layers, model.context_layers, model.decoder_layers)
    assert {(*sizes, layers) for layers in stacks} == {SIZES[name]}


MISFIT = r"parameter decoder\.out\.kernel .*\(31, 128\).*\(32, 128\)"


def test_info_reports_wrong_or_missing_parameters(tmp_path, error_line):
    wrong = {**ARRAYS, "decoder.out.kernel": ARRAYS["decoder.out.kernel"][:-1]}
    write_weights(tmp_path / "wrong", "spectrodiff", CONFIG, wrong)
    assert re.search(MISFIT, error_line("info", tmp_path / "wrong"))
    lacking = {name: array for name, array in ARRAYS.items() if name != "decoder.out.kernel"}
    write_weights(tmp_path / "lacking", "spectrodiff", CONFIG, lacking)
    assert "parameter decoder.out.kernel" in error_line("info", tmp_path / "lacking")


# ---- convert


@pytest.mark.parametrize(
    ("kind", "to"), [(kind, to) for kind in FORMATS for to in ("spectrodiff", "diffusers") if kind != to]
)
def test_conversion_keeps_arrays_exactly(tmp_path, kind, to):
    write_weights(tmp_path / "source", kind, CONFIG, ARRAYS)
    found = converted(tmp_path / "source", tmp_path / "out", to)
    assert (found.format, found.config) == (to, CONFIG)
    for name, array in found.arrays.items():
        np.testing.assert_array_equal(array, ARRAYS[name])
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    (tmp_path / "ordinary").mkdir()
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_conversion_round_trip_gives_the_same_file(tmp_path, dtype):
    write_weights(tmp_path / "a", "spectrodiff", CONFIG, {name: array.astype(dtype) for name, array in ARRAYS.items()})
    converted(tmp_path / "a", tmp_path / "b", "diffusers")
    converted(tmp_path / "b", tmp_path / "c", "spectrodiff")
    first, last = ((tmp_path / name / "spectrogram.safetensors").read_bytes() for name in "ac")
    assert first == last


def test_converted_card_names_the_source_format(tmp_path):
    write_weights(tmp_path / "run", "t5x", CONFIG, ARRAYS)
    assert converted(tmp_path / "run", tmp_path / "out", "spectrodiff").card == {
        "steps": 500_000,
        "converted_from": "t5x",
    }


def test_conversion_copies_the_onnx_vocoder(tmp_path):
    write_weights(tmp_path / "pipeline", "diffusers", CONFIG, ARRAYS)
    (tmp_path / "pipeline" / "melgan").mkdir()
    (tmp_path / "pipeline" / "melgan" / "model.onnx").write_bytes(b"an ONNX file")
    ours = converted(tmp_path / "pipeline", tmp_path / "ours", "spectrodiff")
    assert ours.onnx_vocoder.read_bytes() == b"an ONNX file"
    theirs = converted(tmp_path / "ours", tmp_path / "theirs", "diffusers")
    assert theirs.onnx_vocoder.read_bytes() == b"an ONNX file"
    assert json.loads((tmp_path / "theirs" / "model_index.json").read_text())["melgan"][1] == "OnnxRuntimeModel"


def test_conversion_reports_that_our_melgan_is_not_copied(tmp_path, capsys):
    write_weights(tmp_path / "ours", "spectrodiff", CONFIG, ARRAYS)
    (tmp_path / "ours" / "vocoder.json").touch()
    converted(tmp_path / "ours", tmp_path / "theirs", "diffusers")
    assert f" MelGAN in {tmp_path / 'ours'} " in capsys.readouterr().out


def test_conversion_to_diffusers_reports_lost_settings(tmp_path, capsys):
    config = dataclasses.replace(CONFIG, decoder=DiffusionConfig(sampling=SamplingConfig("ddim", 7, 3.0)))
    native.write(tmp_path / "ours", kinds.SPECTROGRAM, ARRAYS, config, {"steps": 5})
    converted(tmp_path / "ours", tmp_path / "theirs", "diffusers")
    _, line = capsys.readouterr().out.splitlines()
    defaults = '{"overlap": 0, "sampler": "ddim", "steps": 7, "guidance": 3.0, "guidance_interval": [-20.0, 20.0]}'
    assert f" {defaults} " in line
    assert ' {"steps": 5}' in line
    write_weights(tmp_path / "plain", "spectrodiff", CONFIG, ARRAYS)
    converted(tmp_path / "plain", tmp_path / "others", "diffusers")
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_destination_may_be_an_empty_folder(tmp_path):
    write_weights(tmp_path / "pipeline", "diffusers", CONFIG, ARRAYS)
    (tmp_path / "out").mkdir()
    assert converted(tmp_path / "pipeline", tmp_path / "out", "spectrodiff").format == "spectrodiff"


def test_existing_destination_is_not_overwritten(tmp_path, error_line):
    write_weights(tmp_path / "pipeline", "diffusers", CONFIG, ARRAYS)
    for name in ("folder", "file"):
        path = tmp_path / name
        if name == "folder":
            path.mkdir()
        (path / "song.mid" if name == "folder" else path).write_text("mine")
        line = error_line("convert", tmp_path / "pipeline", path, "--to", "spectrodiff")
        assert f"{path} " in line


@pytest.mark.parametrize("place", ["nowhere/out", "file/out", "x" * 300, "nul\0"], ids=["none", "file", "long", "nul"])
def test_unwritable_destination_raises_input_error(tmp_path, error_line, place):
    write_weights(tmp_path / "pipeline", "diffusers", CONFIG, ARRAYS)
    (tmp_path / "file").write_text("mine")
    line = error_line("convert", tmp_path / "pipeline", tmp_path / place, "--to", "spectrodiff")
    assert f" {tmp_path / place}: " in line


def test_impossible_conversions_raise_input_error(tmp_path, checkpoint, error_line):
    write_weights(tmp_path / "pipeline", "diffusers", CONFIG, ARRAYS)
    line = error_line("convert", tmp_path / "pipeline", tmp_path / "out", "--to", "diffusers")
    assert re.search(rf"{tmp_path / 'pipeline'} .*\bdiffusers\b", line)
    line = error_line("convert", checkpoint, tmp_path / "out", "--to", "diffusers")
    assert re.search(r"\bcompact_notes = True\b.*\bdiffusers\b.*\bFalse\b", line)
    wrong = {**ARRAYS, "decoder.out.kernel": ARRAYS["decoder.out.kernel"][:-1]}
    write_weights(tmp_path / "wrong", "diffusers", CONFIG, wrong)
    line = error_line("convert", tmp_path / "wrong", tmp_path / "out", "--to", "spectrodiff")
    assert re.search(MISFIT, line)
    assert f"'{tmp_path}/nope'" in error_line("info", tmp_path / "nope")
    assert "x" * 300 in error_line("info", tmp_path / ("x" * 300))
    assert re.search(rf"{tmp_path} .*\bweights\b", error_line("info", tmp_path))


def test_full_disk_leaves_no_files(tmp_path, error_line, monkeypatch):
    write_weights(tmp_path / "pipeline", "diffusers", CONFIG, ARRAYS)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.numpy.save_file", full)
    line = error_line("convert", tmp_path / "pipeline", tmp_path / "out", "--to", "spectrodiff")
    assert "No space left on device" in line
