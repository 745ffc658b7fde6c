"""SavedModel vocoders, tested with a decoder whose receptive field is smaller than the chunk overlap.

All but two tests need TensorFlow, and are skipped where it is not installed.
"""

import shutil
import sys

import numpy as np
import pytest

from spectrodiff.errors import InputError
from spectrodiff.vocoder.published import CHUNK
from spectrodiff.vocoder.saved_model import SavedModelVocoder, load_model
from spectrodiff.vocoder.streaming import Vocoder

RNG = np.random.default_rng(0)
MIX = (0.02 * RNG.normal(size=(9, 128, 8))).astype(np.float32)
WAVE = (0.3 * RNG.normal(size=(8, 320))).astype(np.float32)


@pytest.fixture(scope="module")
def tf():
    return pytest.importorskip("tensorflow")


@pytest.fixture(scope="module")
def save_decoder(tf, tmp_path_factory):
    """A function that saves a decoder of `frames` frames (None: any number) and `hop` samples each to a new folder."""

    class Decoder(tf.Module):
        def __init__(self, hop):
            super().__init__()
            self.mix, self.wave = tf.Variable(MIX), tf.Variable(WAVE[:, :hop])

        @tf.function
        def __call__(self, mel):
            mixed = tf.tanh(tf.nn.conv1d(mel, self.mix, 1, "SAME"))
            return tf.reshape(mixed @ self.wave, [1, -1])

    def write(frames=None, hop=320):
        folder, model = tmp_path_factory.mktemp("decoder"), Decoder(hop)
        signature = model.__call__.get_concrete_function(tf.TensorSpec([1, frames, 128]))
        tf.saved_model.save(model, str(folder), signatures=signature)
        return folder

    return write


@pytest.fixture(scope="module")
def folder(save_decoder):
    return save_decoder()


def random_mel(frames):
    return np.random.default_rng(frames).normal(-3.0, 2.0, (frames, 128)).astype(np.float32)


def decode_whole(mel):
    """The decoder in numpy, applied to the whole mel."""
    padded = np.pad(mel, ((4, 4), (0, 0)))
    mixed = sum(padded[k : k + len(mel)] @ MIX[k] for k in range(9))
    return (np.tanh(mixed) @ WAVE).reshape(-1)


@pytest.mark.parametrize("frames", [1, CHUNK + 1, 500])
def test_decoding_in_chunks_equals_decoding_whole(folder, frames):
    vocoder, mel = SavedModelVocoder(folder), random_mel(frames)
    assert isinstance(vocoder, Vocoder)
    audio = vocoder(mel)
    assert (audio.shape, audio.dtype) == ((frames * 320,), np.float32)
    np.testing.assert_allclose(audio, decode_whole(mel), atol=1e-5)


def test_stream_does_not_depend_on_piece_sizes(folder):
    vocoder, mel = SavedModelVocoder(folder), random_mel(500)
    assert np.array_equal(np.concatenate(list(vocoder.stream(np.split(mel, [0, 256, 300])))), vocoder(mel))


def test_invalid_mel_raises_input_error(folder):
    with pytest.raises(InputError, match=r"\[5, 64\]"):
        SavedModelVocoder(folder)(np.zeros((5, 64)))


def load_error(folder):
    """The one-line error of loading a folder."""
    with pytest.raises(InputError) as error:
        SavedModelVocoder(folder)
    message = str(error.value)
    assert str(folder) in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("saved_model.pb", b""),
        ("saved_model.pb", b"no model" * 100),
        ("variables/variables.index", b""),
        ("variables/variables.data-00000-of-00001", bytes(100)),
    ],
)
def test_damaged_file_raises_input_error(folder, tmp_path, name, content):
    damaged = shutil.copytree(folder, tmp_path / "damaged")
    (damaged / name).write_bytes(content)
    assert "TensorFlow" in load_error(damaged)


def test_missing_variables_raise_input_error(folder, tmp_path):
    lacking = shutil.copytree(folder, tmp_path / "lacking", ignore=shutil.ignore_patterns("variables"))
    assert "TensorFlow" in load_error(lacking)


def test_uncallable_model_raises_input_error(tf, tmp_path):
    tf.saved_model.save(tf.Module(), str(tmp_path))
    with pytest.raises(InputError, match=rf"^{tmp_path} .*\bscorer\b"):
        load_model(tmp_path, "scorer")


def test_fixed_length_model_raises_input_error(save_decoder):
    assert "float32 mel [1, 288, 128]" in load_error(save_decoder(frames=256))


def test_other_hop_size_raises_input_error(save_decoder):
    error = load_error(save_decoder(hop=160))
    assert all(part in error for part in ("46080 samples", "288 frames", "92160"))


def test_folder_without_saved_model_raises_input_error(tmp_path):
    assert f"saved_model.pb in {tmp_path};" in load_error(tmp_path)
    assert f"saved_model.pb in {tmp_path}/nowhere;" in load_error(tmp_path / "nowhere")


def test_missing_tensorflow_raises_input_error(tmp_path, monkeypatch):
    (tmp_path / "saved_model.pb").touch()
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    assert load_error(tmp_path).endswith('TensorFlow: pip install "spectrodiff[tf]"')
