import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal

from spectrodiff.errors import InputError
from spectrodiff.vocoder import losses
from spectrodiff.vocoder.losses import magnitudes, total

spectral_losses = jax.jit(losses.spectral_losses)
TIME = np.arange(4096) / 16000
TONE = jnp.asarray(0.5 * np.sin(2 * np.pi * 500 * TIME), jnp.float32)[None]


def test_magnitudes_match_scipy():
    noise = np.random.default_rng(0).normal(size=(2, 8192)).astype(np.float32)
    _, _, expected = scipy.signal.stft(noise, nperseg=512, noverlap=384, boundary=None, padded=False)
    np.testing.assert_allclose(magnitudes(jnp.asarray(noise), 512), 2 * abs(expected).swapaxes(1, 2), atol=1e-5)


def test_full_scale_sine_has_magnitude_one():
    assert float(magnitudes(2 * TONE, 2048).max()) == pytest.approx(1.0, abs=1e-3)


def test_loss_terms_are_zero_only_for_equal_audio():
    assert all(float(term) < 1e-5 for term in spectral_losses(TONE, TONE).values())
    assert all(float(term) > 1e-3 for term in spectral_losses(TONE, 0.5 * TONE).values())


def test_loss_terms_of_halved_amplitude():
    noise = jnp.asarray(np.random.default_rng(0).normal(size=(1, 4096)), jnp.float32)
    terms = spectral_losses(0.5 * noise, noise)
    assert float(terms["log_magnitude"]) == pytest.approx(np.log(2), rel=1e-3)
    assert float(terms["convergence"]) == pytest.approx(0.5, rel=1e-3)
    assert float(terms["mel"]) == pytest.approx(np.log(2), rel=1e-2)


@pytest.mark.parametrize(("audio", "reference"), [(0 * TONE, TONE), (TONE, 0 * TONE), (0 * TONE, 0 * TONE)])
def test_gradients_are_finite_for_silence(audio, reference):
    gradient = jax.jit(jax.grad(lambda x: sum(losses.spectral_losses(x, reference).values())))(audio)
    assert np.isfinite(gradient).all()


def test_total_is_weighted_and_rejects_unknown_terms():
    terms = {"a": jnp.array(2.0), "b": jnp.array(3.0)}
    assert float(total(terms, {"a": 10.0})) == 20.0
    with pytest.raises(InputError, match=r"missing.* a, b"):
        total(terms, {"missing": 1.0})
