"""A SavedModel that hears less than the overlap: in chunks it must sound as it does in one go.

All but two tests need TensorFlow, and are skipped where it is not installed.
"""

import shutil
import sys

import numpy as np
import pytest

from spectrodiff.errors import InputError
from spectrodiff.vocoder.published import CHUNK
from spectrodiff.vocoder.saved_model import SavedModelVocoder
from spectrodiff.vocoder.streaming import Vocoder

RNG = np.random.default_rng(0)
MIX = (0.02 * RNG.normal(size=(9, 128, 8))).astype(np.float32)
WAVE = (0.3 * RNG.normal(size=(8, 320))).astype(np.float32)


@pytest.fixture(scope="module")
def tf():
    return pytest.importorskip("tensorflow")


@pytest.fixture(scope="module")
def written(tf, tmp_path_factory):
    """Saves a decoder for `frames` frames (None: any number) that makes `hop` samples of each; returns its folder."""

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
def folder(written):
    return written()


def mel_of(frames):
    return np.random.default_rng(frames).normal(-3.0, 2.0, (frames, 128)).astype(np.float32)


def decoded_whole(mel):
    """The same in numpy, at once."""
    padded = np.pad(mel, ((4, 4), (0, 0)))
    mixed = sum(padded[k : k + len(mel)] @ MIX[k] for k in range(9))
    return (np.tanh(mixed) @ WAVE).reshape(-1)


@pytest.mark.parametrize("frames", [1, CHUNK + 1, 500])
def test_chunks_equal_decoding_whole(folder, frames):
    vocoder, mel = SavedModelVocoder(folder), mel_of(frames)
    assert isinstance(vocoder, Vocoder)
    audio = vocoder(mel)
    assert (audio.shape, audio.dtype) == ((frames * 320,), np.float32)
    np.testing.assert_allclose(audio, decoded_whole(mel), atol=1e-5)


def test_how_frames_arrive_changes_nothing(folder):
    vocoder, mel = SavedModelVocoder(folder), mel_of(500)
    assert np.array_equal(np.concatenate(list(vocoder.stream(np.split(mel, [0, 256, 300])))), vocoder(mel))


def test_a_bad_mel_is_an_input_error(folder):
    with pytest.raises(InputError, match=r"\[5, 64\]"):
        SavedModelVocoder(folder)(np.zeros((5, 64)))


def refusal(folder):
    """The one line that is said of a folder."""
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
def test_a_damaged_folder(folder, tmp_path, name, content):
    damaged = shutil.copytree(folder, tmp_path / "damaged")
    (damaged / name).write_bytes(content)
    assert "TensorFlow cannot load" in refusal(damaged)


def test_a_folder_without_variables(folder, tmp_path):
    lacking = shutil.copytree(folder, tmp_path / "lacking", ignore=shutil.ignore_patterns("variables"))
    assert "TensorFlow cannot load" in refusal(lacking)


def test_a_model_that_cannot_be_called(tf, tmp_path):
    tf.saved_model.save(tf.Module(), str(tmp_path))
    assert "the model in it cannot be called" in refusal(tmp_path)


def test_a_model_of_one_length(written):
    assert "cannot decode a float32 mel [1, 288, 128]" in refusal(written(frames=256))


def test_a_model_of_another_hop(written):
    assert "it returns 46080 samples for 288 frames, not 92160" in refusal(written(hop=160))


def test_a_folder_that_holds_no_saved_model(tmp_path):
    assert "there is no saved_model.pb in" in refusal(tmp_path)
    assert "there is no saved_model.pb in" in refusal(tmp_path / "nowhere")


def test_without_tensorflow(tmp_path, monkeypatch):
    (tmp_path / "saved_model.pb").touch()
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    assert refusal(tmp_path).endswith('needs TensorFlow: pip install "spectrodiff[tf]"')
