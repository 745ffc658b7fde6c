"""Embeddings: Musicnn against outputs of the authors' graph, SavedModels by stand-ins with the same signatures.

Tests of SavedModels need TensorFlow, and are skipped where it is not installed.
"""

import numpy as np
import pytest

from spectrodiff.errors import InputError
from spectrodiff.evaluation.embeddings import Embedding, find_embedding, resample
from spectrodiff.evaluation.musicnn import HOP, PATCH, Musicnn, area_mel_matrix, loudness_mel


def plucked_tone(seconds):
    """A decaying tone with eight harmonics, struck twice a second."""
    time = np.arange(int(seconds * 16000)) / 16000
    partials = [0.2 / k * np.sin(2 * np.pi * 220 * k * time) for k in range(1, 9)]
    return (np.sum(partials, axis=0) * np.exp(-4 * (time % 0.5))).astype(np.float32)


@pytest.fixture(scope="module")
def musicnn():
    return Musicnn()


def test_musicnn_equals_the_authors_network():
    """Expected: every 25th feature of the package musicnn 0.1.0 on TensorFlow 2.21, given librosa's float32 mel."""
    features = Musicnn(step=PATCH)(plucked_tone(7))
    expected = [
        [-0.079952, 0.197629, 0.966325, -0.086772, 0.393190, -0.074193, -0.055188, 1.966624],
        [-0.079952, 0.220538, 0.986030, -0.086772, 0.297650, -0.074193, -0.052728, 1.919762],
    ]
    assert features.shape == (2, 200)
    np.testing.assert_allclose(features[:, ::25], expected, atol=1e-4)


def test_mel_spectrogram_equals_librosa():
    librosa = pytest.importorskip("librosa")  # installed along with note-seq
    filters = librosa.filters.mel(sr=16000, n_fft=512, n_mels=96)
    np.testing.assert_allclose(area_mel_matrix(), filters.T, atol=1e-7)
    audio = np.random.default_rng(0).normal(size=5000).astype(np.float32)
    power = librosa.feature.melspectrogram(y=audio, sr=16000, n_fft=512, hop_length=256, n_mels=96)
    np.testing.assert_allclose(loudness_mel(audio), np.log10(1 + 1e4 * power.T), atol=1e-4)


def test_musicnn_frames_follow_the_hop(musicnn):
    """A patch of audio gives one frame, and a hop more gives two; a sound changes only the frames that overlap it."""
    assert isinstance(musicnn, Embedding)
    assert musicnn.hop == pytest.approx(1.504)
    patch = (PATCH - 1) * HOP
    for samples, frames in [(0, 1), (100, 1), (patch, 1), (patch + 94 * HOP - 1, 1), (patch + 94 * HOP, 2)]:
        assert musicnn(np.zeros(samples, np.float32)).shape == (frames, 200)
    audio = np.zeros(16000 * 12, np.float32)
    audio[-16000:] = plucked_tone(1)
    apart = np.linalg.norm(np.diff(musicnn(audio), axis=0), axis=1)
    assert apart[:-2].max() < 1e-4
    assert apart[-2:].max() > 1


def test_unknown_embedding_lists_the_known_ones(tmp_path):
    with pytest.raises(InputError, match=r"'mfcc'.*musicnn.*vggish=FOLDER, trill=FOLDER"):
        find_embedding("mfcc")
    with pytest.raises(InputError, match=r"no saved_model\.pb"):
        find_embedding(f"vggish={tmp_path}")
    with pytest.raises(InputError, match=r"'trill='.*\bmusicnn\b"):
        find_embedding("trill=")
    with pytest.raises(InputError, match=r"none\.onnx"):
        find_embedding(f"clap={tmp_path / 'none.onnx'}")
    assert isinstance(find_embedding("musicnn"), Musicnn)


def test_resample_preserves_a_tone():
    time = np.arange(16000)
    audio = np.sin(2 * np.pi * 440 * time / 16000).astype(np.float32)
    there = resample(audio, 22050)
    assert (len(there), there.dtype) == (22050, np.float32)
    expected = np.sin(2 * np.pi * 440 * np.arange(22050) / 22050)
    np.testing.assert_allclose(there[500:-500], expected[500:-500], atol=2e-3)


@pytest.fixture(scope="module")
def tf():
    return pytest.importorskip("tensorflow")


@pytest.fixture(scope="module")
def write_saved_model(tf, tmp_path_factory):
    """Writes stand-ins with the published signatures, whose frames contain the mean of their samples."""

    def frames_of(samples, hop, dims):
        levels = tf.reduce_mean(tf.signal.frame(samples, hop, hop), axis=-1, keepdims=True)
        return levels * tf.range(dims, dtype=tf.float32)

    class Vggish(tf.Module):
        def __init__(self, dims):
            super().__init__()
            self.dims = dims

        @tf.function(input_signature=[tf.TensorSpec([None], tf.float32)])
        def __call__(self, waveform):
            return frames_of(waveform, 15360, self.dims)

    class Trill(tf.Module):
        @tf.function(
            input_signature=[
                tf.TensorSpec([None], tf.float32, name="samples"),
                tf.TensorSpec([], tf.int32, name="sample_rate"),
            ]
        )
        def __call__(self, samples, sample_rate):
            tf.debugging.assert_equal(sample_rate, 16000)
            return {"embedding": frames_of(samples, 2672, 512), "layer19": frames_of(samples, 2672, 12288)}

    def write(name, dims=128):
        folder = tmp_path_factory.mktemp(name)
        tf.saved_model.save(Trill() if name == "trill" else Vggish(dims), str(folder))
        return folder

    return write


@pytest.mark.parametrize(
    ("name", "dims", "hop", "samples"), [("vggish", 128, 15360, 20000), ("trill", 512, 2672, 9000)]
)
def test_saved_model_input_is_padded_to_whole_seconds(write_saved_model, name, dims, hop, samples):
    embedding = find_embedding(f"{name}={write_saved_model(name)}")
    assert isinstance(embedding, Embedding)
    assert (embedding.name, embedding.dims) == (name, dims)
    assert embedding.hop == pytest.approx(hop / 16000)
    audio = np.random.default_rng(0).normal(size=samples).astype(np.float32)
    frames = embedding(audio)
    padded = np.zeros(-(-samples // 16000) * 16000, np.float32)
    padded[:samples] = audio
    count = len(padded) // hop
    means = padded[: count * hop].reshape(count, hop).mean(axis=1)
    np.testing.assert_allclose(frames, means[:, None] * np.arange(dims), atol=1e-4)


def test_saved_model_of_another_kind_raises_input_error(write_saved_model):
    with pytest.raises(InputError, match=r"vggish.*16000.*\[1, 64\]"):
        find_embedding(f"vggish={write_saved_model('vggish', dims=64)}")
    with pytest.raises(InputError, match=" trill model: "):
        find_embedding(f"trill={write_saved_model('vggish')}")
    with pytest.raises(InputError, match=" vggish model: "):
        find_embedding(f"vggish={write_saved_model('trill')}")
