"""CLAP, tested on a stand-in ONNX model with the published network's signature that returns the mean of its input."""

import numpy as np
import pytest

from spectrodiff.errors import InputError
from spectrodiff.evaluation.clap import clap_mel
from spectrodiff.evaluation.embeddings import Embedding, find_embedding


def librosas_clap_mel(audio):
    librosa = pytest.importorskip("librosa")
    options = {"n_fft": 1024, "hop_length": 480, "n_mels": 64, "fmin": 50, "fmax": 14000}
    power = librosa.feature.melspectrogram(y=audio, sr=48000, pad_mode="reflect", **options)
    return librosa.power_to_db(power, ref=1.0, top_db=None).T


def test_clap_mel_equals_librosa():
    audio = np.random.default_rng(0).normal(size=100000).astype(np.float32)
    np.testing.assert_allclose(clap_mel(audio), librosas_clap_mel(audio), atol=1e-3)
    np.testing.assert_allclose(clap_mel(np.zeros(48000, np.float32)), -100, atol=1e-4)


@pytest.fixture(scope="module")
def clap_file(tmp_path_factory):
    """Writes such a model; its output is the mean over time of each mel bin, repeated `times` times."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")

    def write(times=8, frames=1001):
        means = onnx.helper.make_node("ReduceMean", ["input_features", "axes"], ["means"], keepdims=0)
        node = onnx.helper.make_node("Tile", ["means", "repeats"], ["audio_embeds"])
        numbers = [
            onnx.numpy_helper.from_array(np.array(values, np.int64), name)
            for name, values in (("axes", [1, 2]), ("repeats", [1, times]))
        ]
        tensor, kind = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
        graph = onnx.helper.make_graph(
            [means, node],
            "clap",
            [tensor("input_features", kind, ["batch", 1, frames, 64])],
            [tensor("audio_embeds", kind, ["batch", 64 * times])],
            numbers,
        )
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
        path = tmp_path_factory.mktemp("clap") / "audio_model.onnx"
        onnx.save(model, path)
        return path

    return write


def test_clap_embeds_ten_second_windows_with_one_second_hop(clap_file):
    clap = find_embedding(f"clap={clap_file()}")
    assert isinstance(clap, Embedding)
    audio = np.random.default_rng(0).normal(size=12 * 48000 + 100) * np.linspace(0.01, 1, 12 * 48000 + 100)
    frames = clap(audio.astype(np.float32))
    assert frames.shape == (3, 512)
    for second in range(3):
        expected = np.tile(librosas_clap_mel(audio[48000 * second : 48000 * (second + 10)]).mean(axis=0), 8)
        np.testing.assert_allclose(frames[second], expected / np.linalg.norm(expected), atol=1e-5)
    short = audio[:130000].astype(np.float32)  # shorter than a window: repeated three times, then silence
    filled = np.concatenate([short, short, short, np.zeros(90000, np.float32)])
    np.testing.assert_array_equal(clap(short), clap(filled))
    assert clap(short[:0]).shape == (1, 512)


def test_onnx_model_with_another_signature_raises_input_error(clap_file):
    with pytest.raises(InputError, match=r"\[1, 256\].*\[1, 512\]"):
        find_embedding(f"clap={clap_file(times=4)}")
    with pytest.raises(InputError, match="CLAP"):
        find_embedding(f"clap={clap_file(frames=500)}")
