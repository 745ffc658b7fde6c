"""ONNX vocoders, tested with a convolutional decoder whose receptive field is smaller than the chunk overlap."""

import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from spectrodiff.audio.mel import LOG_FLOOR
from spectrodiff.errors import InputError
from spectrodiff.vocoder.onnx import OnnxVocoder
from spectrodiff.vocoder.published import CHUNK, OVERLAP
from spectrodiff.vocoder.streaming import Vocoder

FLOAT, DOUBLE = TensorProto.FLOAT, TensorProto.DOUBLE


def model_of(nodes, weights, inputs, outputs):
    """An in-memory ONNX model; inputs are (name, type, shape), outputs are float32 of any shape."""
    graph = helper.make_graph(
        nodes,
        "decoder",
        [helper.make_tensor_value_info(*given) for given in inputs],
        [helper.make_tensor_value_info(name, FLOAT, None) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def decoder(shape=(1, "frames", 128), hop=320, outputs=("audio",)):
    """A model with a receptive field of 4 frames to either side, zero-padded at the ends."""
    rng = np.random.default_rng(0)
    weights = {
        "mix": 0.02 * rng.normal(size=(8, 128, 9)),
        "shift": np.linspace(-1, 1, 8),
        "wave": 0.3 * rng.normal(size=(8, 1, 2 * hop)),
    }
    nodes = [
        helper.make_node("Transpose", ["input_features"], ["bins"], perm=[0, 2, 1]),
        helper.make_node("Conv", ["bins", "mix", "shift"], ["mixed"], pads=[4, 4]),
        helper.make_node("Tanh", ["mixed"], ["bent"]),
        helper.make_node("ConvTranspose", ["bent", "wave"], ["waves"], strides=[hop], pads=[hop // 2, hop // 2]),
        helper.make_node("Flatten", ["waves"], ["audio"]),
    ]
    weights = {name: value.astype(np.float32) for name, value in weights.items()}
    return model_of(nodes, weights, [("input_features", FLOAT, shape)], outputs)


def model_with_inputs(*inputs):
    """A model with these inputs, each (type, shape), that is not a vocoder."""
    inputs = [(f"input{i}", *given) for i, given in enumerate(inputs)]
    return model_of([helper.make_node("Cast", ["input0"], ["audio"], to=FLOAT)], {}, inputs, ["audio"])


def random_mel(frames):
    return np.random.default_rng(frames).normal(-3.0, 2.0, (frames, 128)).astype(np.float32)


def decode_whole(mel):
    """Decodes the mel in one piece, with the numpy interpreter of the onnx package."""
    return ReferenceEvaluator(decoder()).run(None, {"input_features": mel[None]})[0][0]


@pytest.fixture
def path(tmp_path):
    onnx.save(decoder(), tmp_path / "decoder.onnx")
    return tmp_path / "decoder.onnx"


@pytest.fixture
def load_error(tmp_path, capfd):
    """A function that writes a model or bytes to a file and returns the one-line error of loading it."""

    def run(content):
        content = content if isinstance(content, bytes) else content.SerializeToString()
        (tmp_path / "bad.onnx").write_bytes(content)
        with pytest.raises(InputError) as error:
            OnnxVocoder(tmp_path / "bad.onnx")
        message = str(error.value)
        assert "bad.onnx" in message
        assert "\n" not in message
        assert capfd.readouterr().err == ""
        return message

    return run


@pytest.mark.parametrize("frames", [1, CHUNK, CHUNK + 1, CHUNK + OVERLAP, 500])
def test_decoding_in_chunks_equals_decoding_whole(path, frames):
    vocoder, mel = OnnxVocoder(path), random_mel(frames)
    assert isinstance(vocoder, Vocoder)
    audio = vocoder(mel)
    assert (audio.shape, audio.dtype) == ((frames * 320,), np.float32)
    np.testing.assert_allclose(audio, decode_whole(mel), atol=1e-5)


@pytest.mark.parametrize("frames", [2 * OVERLAP + 1, 256])
def test_fixed_length_model_decodes_mels_of_other_lengths(tmp_path, frames):
    onnx.save(decoder((1, frames, 128)), tmp_path / "fixed.onnx")
    mel = random_mel(300)
    surrounded = np.pad(mel, ((8, 8), (0, 0)), constant_values=np.float32(LOG_FLOOR))
    expected = decode_whole(surrounded)[8 * 320 : -8 * 320]
    np.testing.assert_allclose(OnnxVocoder(tmp_path / "fixed.onnx")(mel), expected, atol=1e-5)


def test_symbolic_dimensions_are_accepted(tmp_path):
    onnx.save(decoder(("batch", None, "bins")), tmp_path / "open.onnx")
    assert OnnxVocoder(tmp_path / "open.onnx")(random_mel(3)).shape == (3 * 320,)


@pytest.mark.parametrize("pieces", [[500], [1] * 500, [0, 256, 0, 244]])
def test_stream_does_not_depend_on_piece_sizes(path, pieces):
    vocoder, mel = OnnxVocoder(path), random_mel(500)
    arriving = np.split(mel, np.cumsum(pieces)[:-1])
    assert np.array_equal(np.concatenate(list(vocoder.stream(arriving))), vocoder(mel))


def test_stream_yields_after_one_window(path):
    arriving = iter(random_mel(600).reshape(600, 1, 128))
    assert len(next(OnnxVocoder(path).stream(arriving))) == CHUNK * 320
    assert len(list(arriving)) == 600 - 256


@pytest.mark.parametrize("mel", [np.zeros((0, 128)), np.zeros((5, 64)), np.full((5, 128), np.nan)])
def test_invalid_mel_raises_input_error(path, mel):
    with pytest.raises(InputError, match="mel"):
        OnnxVocoder(path)(mel)


@pytest.mark.parametrize("content", [b"", bytes(1000), b"no model" * 100, decoder().SerializeToString()[:-1000]])
def test_invalid_onnx_file_raises_input_error(load_error, content):
    assert all(part in load_error(content) for part in ("bad.onnx", "[ONNXRuntimeError]"))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            model_with_inputs((FLOAT, (1, "frames", 80))),
            "input0 tensor(float)[1, 'frames', 80]",
        ),
        (model_with_inputs((FLOAT, (2, "frames", 128))), "input0 tensor(float)[2, 'frames', 128]"),
        (model_with_inputs((FLOAT, ("frames", 128))), "input0 tensor(float)['frames', 128]"),
        (model_with_inputs((DOUBLE, (1, "frames", 128))), "input0 tensor(double)[1, 'frames', 128]"),
        (
            model_with_inputs((FLOAT, (1, "frames", 128)), (FLOAT, (1,))),
            "input1 tensor(float)[1]",
        ),
        (decoder(outputs=["audio", "bent"]), "bent tensor(float)"),
        (decoder((1, 2 * OVERLAP, 128)), "64 frames"),
        (decoder(hop=160), "46080 samples"),
    ],
)
def test_model_with_wrong_inputs_or_outputs_raises_input_error(load_error, model, message):
    assert message in load_error(model)


def test_model_that_fails_at_run_time_raises_input_error(load_error):
    model = decoder()
    model.graph.initializer.append(numpy_helper.from_array(np.array([7, 7]), "sizes"))
    model.graph.node[-1].CopyFrom(helper.make_node("Reshape", ["waves", "sizes"], ["audio"]))
    assert "float32 mel [1, 288, 128]" in load_error(model)


def test_missing_file_or_folder_raises_input_error(tmp_path):
    for path in (tmp_path / "no.onnx", tmp_path):
        with pytest.raises(InputError, match=f" {path}; "):
            OnnxVocoder(path)


def test_missing_onnxruntime_raises_input_error(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r"onnxruntime.*spectrodiff\[onnx\]"):
        OnnxVocoder(path)
