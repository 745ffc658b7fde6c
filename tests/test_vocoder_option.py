"""Selection of vocoders by name or path, in Python and on the command line."""

import sys

import jax.numpy as jnp
import numpy as np
import onnx
import pytest
import soundfile
from flax import nnx
from inputs import random_notes
from onnx import TensorProto, helper, numpy_helper

from spectrodiff import mel_sampler
from spectrodiff.cli import main
from spectrodiff.errors import InputError
from spectrodiff.notes.midi import write_midi
from spectrodiff.pretrained.kinds import MELGAN
from spectrodiff.pretrained.native import save
from spectrodiff.pretrained.vocoders import find_vocoder, packaged_vocoders
from spectrodiff.synthesizer import Synthesizer
from spectrodiff.vocoder.generator import Generator, GeneratorConfig
from spectrodiff.vocoder.griffin_lim import GriffinLim
from spectrodiff.vocoder.onnx import OnnxVocoder
from spectrodiff.vocoder.streaming import MelGAN

WAVES = (0.002 * np.random.default_rng(0).normal(size=(128, 320))).astype(np.float32)  # the waveform of each mel bin


@pytest.fixture
def folder(tmp_path):
    """A folder with song.mid and sum.onnx, a vocoder that sums the WAVES of each frame's bins."""
    nodes = [
        helper.make_node("MatMul", ["mel", "waves"], ["frames"]),
        helper.make_node("Flatten", ["frames"], ["audio"]),
    ]
    inputs = [helper.make_tensor_value_info("mel", TensorProto.FLOAT, [1, "frames", 128])]
    outputs = [helper.make_tensor_value_info("audio", TensorProto.FLOAT, [1, "samples"])]
    graph = helper.make_graph(nodes, "sum", inputs, outputs, [numpy_helper.from_array(WAVES, "waves")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "sum.onnx")
    write_midi(random_notes(0, seconds=6.0), tmp_path / "song.mid")
    return tmp_path


@pytest.fixture
def melgan(tmp_path):
    """An exported folder, and its generator."""
    config = GeneratorConfig(channels=16, dilations=(1,))
    generator = Generator(config, rngs=nnx.Rngs(0))
    save(tmp_path / "melgan", MELGAN, generator, config, {})
    return tmp_path / "melgan", generator


@pytest.fixture(autouse=True)
def noise(monkeypatch):
    """Replaces sampling by fixed noise, so that no model is compiled."""
    mel = np.random.default_rng(1).uniform(-1, 0, (1, 256, 128)).astype(np.float32)
    monkeypatch.setattr(mel_sampler, "window_sampler", lambda graph: lambda *_: jnp.asarray(mel))


def test_vocoder_is_found_by_name():
    assert find_vocoder("griffin_lim") == GriffinLim()


def test_vocoder_is_loaded_from_an_onnx_file(folder):
    mel = np.random.default_rng(2).normal(-3, 2, (7, 128)).astype(np.float32)
    vocoder = find_vocoder(folder / "sum.onnx")
    assert isinstance(vocoder, OnnxVocoder)
    np.testing.assert_allclose(vocoder(mel), (mel @ WAVES).reshape(-1), atol=1e-5)


def test_vocoder_is_loaded_from_an_exported_melgan(melgan):
    path, generator = melgan
    mel = np.random.default_rng(2).normal(-3, 2, (7, 128)).astype(np.float32)
    np.testing.assert_array_equal(find_vocoder(path)(mel), MelGAN(generator)(mel))


def test_vocoder_folder_is_recognised_as_saved_model(tmp_path, monkeypatch):
    """Its error without TensorFlow shows that the format is recognised."""
    (tmp_path / "saved_model.pb").touch()
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(InputError, match=r"spectrodiff\[tf\]"):
        find_vocoder(str(tmp_path))


@pytest.mark.parametrize("name", ["", ".", "nope", "song.mid", "x" * 300], ids=repr)
def test_unknown_vocoder_raises_input_error(folder, name):
    with pytest.raises(InputError, match=r"griffin_lim, demo, .*\.onnx.*SavedModel"):
        find_vocoder(folder / name)


def test_vocoder_argument_overrides_the_checkpoint(checkpoint, folder):
    assert isinstance(Synthesizer.from_pretrained(checkpoint).vocoder, GriffinLim)
    assert isinstance(Synthesizer.from_pretrained(checkpoint, vocoder=folder / "sum.onnx").vocoder, OnnxVocoder)


def arguments(command, folder, checkpoint, vocoder, *others):
    named = {"--midi": folder / "song.mid", "--checkpoint": checkpoint, "--vocoder": vocoder, "--level": "raw"}
    return [command, *(str(part) for pair in named.items() for part in pair), *map(str, others)]


def test_synthesize_uses_the_vocoder_option(folder, checkpoint):
    out = ("--out", folder / "a.wav", "--mel_out", folder / "a.npz")
    main(arguments("synthesize", folder, checkpoint, folder / "sum.onnx", *out))
    audio = np.load(folder / "a.npz")["mel"] @ WAVES
    assert 0.05 < np.abs(audio).max() < 1.0
    np.testing.assert_allclose(soundfile.read(folder / "a.wav")[0], audio.reshape(-1), atol=1e-4)


def test_demo_uses_the_vocoder_option(folder, checkpoint):
    main(arguments("demo", folder, checkpoint, folder / "sum.onnx", "--out", folder / "out"))
    main(arguments("demo", folder, checkpoint, "griffin_lim", "--out", folder / "other"))
    ours, theirs = (soundfile.read(folder / name / "song.wav")[0] for name in ("out", "other"))
    assert len(ours) == len(theirs)
    assert np.abs(ours - theirs).max() > 0.01


def test_demo_vocoder_is_a_melgan_that_corrects_griffin_lim():
    own = Synthesizer.from_pretrained("demo").vocoder
    assert isinstance(own, MelGAN)
    assert own.griffin_lim.identity() == find_vocoder("refiner").identity() != GriffinLim().identity()
    for name in ("demo", "melgan"):
        assert find_vocoder(name).identity() == own.identity()
    assert Synthesizer.from_pretrained("demo", "griffin_lim").vocoder.refiner is None


def test_first_window_of_the_demo_yields_audio():
    """It has 240 frames, as the next one overlaps with it."""
    taken = []

    def windows():
        for seed in range(3):
            taken.append(seed)
            yield np.random.default_rng(seed).normal(-5, 1, (240, 128)).astype(np.float32)

    assert len(next(find_vocoder("demo").stream(windows()))) == 96 * 320
    assert taken == [0]


def test_names_of_packaged_vocoders():
    assert list(packaged_vocoders()) == ["demo", "melgan", "refiner"]


@pytest.mark.parametrize(
    ("vocoder", "message"),
    [
        ("nope", "'nope': "),
        ("nope.onnx", " nope.onnx; "),
        ("{}/bad.onnx", "/bad.onnx"),
        ("{}", "'{}': "),
    ],
)
def test_invalid_vocoder_option_prints_one_error_line(folder, checkpoint, capfd, vocoder, message):
    (folder / "bad.onnx").write_bytes(b"no model")
    before = sorted(folder.iterdir())
    with pytest.raises(SystemExit) as exit:
        main(arguments("synthesize", folder, checkpoint, vocoder.format(folder), "--out", folder / "a.wav"))
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("spectrodiff: ")
    assert message.format(folder) in line
    assert exit.value.code == 2
    assert sorted(folder.iterdir()) == before
