import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spectrodiff.audio.mel import LOG_FLOOR, log_mel, mel_matrix
from spectrodiff.errors import InputError
from spectrodiff.vocoder.griffin_lim import GriffinLim
from spectrodiff.vocoder.magnitudes import match_mel
from spectrodiff.vocoder.refiner import Refiner, RefinerConfig, receptive_frames, spread_over_bins
from spectrodiff.vocoder.stft import BINS, FINE

TINY = RefinerConfig(width=16, layers=2, kernel=5)


@pytest.fixture(scope="module")
def refiner():
    return Refiner(TINY, rngs=nnx.Rngs(0))


def random_mel(frames):
    return np.random.default_rng(frames).uniform(-9.0, 2.0, (frames, 128)).astype(np.float32)


def test_receptive_field_is_receptive_frames(refiner):
    mel = jnp.asarray(random_mel(31))[None]
    change = refiner(mel.at[:, 15].add(1.0)) - refiner(mel)
    changed_frames = np.flatnonzero(np.abs(change[0]).reshape(31, -1).max(axis=1))
    assert (changed_frames.min(), changed_frames.max()) == (15 - receptive_frames(TINY), 15 + receptive_frames(TINY))


def test_spread_over_bins_of_a_flat_spectrum_is_flat():
    level = 0.3
    mel = jnp.log(jnp.asarray(level * mel_matrix().sum(0), jnp.float32))[None, None]
    inside = np.asarray(jnp.exp(spread_over_bins(mel)))[0, 0, 1:-1]  # the outermost bins belong to no mel bin
    np.testing.assert_allclose(inside[inside > 1e-3], level, rtol=1e-3)
    assert (inside > 1e-3).mean() > 0.97


def test_match_mel_fits_the_mel_and_keeps_fine_structure():
    rng = np.random.default_rng(0)
    true = np.exp(rng.normal(size=(6 * FINE, BINS))).astype(np.float32)
    mel = np.log(true[::FINE] @ mel_matrix()).astype(np.float32)
    matched = np.asarray(match_mel(jnp.asarray(2.0 * true), jnp.asarray(mel), 50))  # only the level is wrong
    np.testing.assert_allclose(np.log(matched[::FINE] @ mel_matrix()), mel, atol=0.02)
    np.testing.assert_allclose(matched[:, 20:500], true[:, 20:500], rtol=0.1)


@pytest.mark.parametrize("pieces", [[300], [75, 75, 75, 75], [1, 299]])
def test_streaming_equals_calling(refiner, pieces):
    vocoder, mel = GriffinLim(refiner, iterations=2), random_mel(300)
    streamed = np.concatenate(list(vocoder.stream(np.split(mel, np.cumsum(pieces)[:-1]))))
    assert streamed.shape == (300 * 320,)
    assert np.array_equal(streamed, vocoder(mel))


def test_chunked_magnitudes_match_refining_the_whole_piece(refiner):
    """Each chunk is refined with context frames beyond both of its ends."""
    vocoder, mel = GriffinLim(refiner), random_mel(400)
    edge = receptive_frames(TINY) + 4
    padded = np.pad(mel, ((edge, edge + vocoder.chunk), (0, 0)), constant_values=LOG_FLOOR)
    compute, weights = vocoder._magnitudes
    rows = np.arange(edge * FINE, (edge + vocoder.chunk) * FINE)
    whole = compute(weights, padded, np.arange(len(padded) * FINE))
    seen = []
    for start in range(0, 400, vocoder.chunk):
        window = padded[start : start + 2 * edge + vocoder.chunk]
        seen.append(compute(weights, window, rows))
    together = np.concatenate(seen)[: 399 * FINE]  # the last frame is affected by the padding
    np.testing.assert_allclose(together, whole[edge * FINE :][: 399 * FINE], rtol=2e-3, atol=1e-5)


def test_silent_mel_gives_silent_audio():
    """This holds for untrained weights, since magnitudes are matched to the mel."""
    random_refiner = Refiner(TINY, rngs=nnx.Rngs(1))
    audio = GriffinLim(random_refiner)(np.full((60, 128), LOG_FLOOR, np.float32))
    assert np.abs(audio).max() < 1e-3  # -60 dBFS


def test_agreement_reduces_the_mel_error():
    noise = 0.1 * np.random.default_rng(0).normal(size=40 * 320)
    mel = log_mel(jnp.asarray(noise, jnp.float32))
    mel_errors = []
    for agreement in (0, 30):
        refiner = Refiner(RefinerConfig(width=16, layers=1, agreement=agreement), rngs=nnx.Rngs(0))
        again = jnp.log(refiner.magnitudes(mel)[::FINE] @ mel_matrix())
        mel_errors.append(float(jnp.abs(again - mel).mean()))
    assert mel_errors[1] < 0.5 * mel_errors[0]


@pytest.mark.parametrize(
    ("values", "message"), [({"layers": 90}, r"\b90 layers\b.*\b100 frames"), ({"agreement": -1}, "agreement is -1")]
)
def test_invalid_config_raises_input_error(values, message):
    with pytest.raises(InputError, match=message):
        RefinerConfig(**values)


def test_even_kernel_raises_input_error():
    with pytest.raises(InputError, match="kernel is 4"):
        RefinerConfig(kernel=4)


def test_tone_keeps_its_loudness(refiner):
    tone = (0.3 * np.sin(2 * np.pi * 440 * np.arange(32000) / 16000)).astype(np.float32)
    again = GriffinLim(refiner)(np.asarray(log_mel(tone)))
    assert 0.5 < again[8000:24000].std() / tone[8000:24000].std() < 2.0
    assert jnp.isfinite(again).all()
