import jax.numpy as jnp
import numpy as np
import pytest

from spectrodiff.diffusion.schedule import LOGSNR_BOUND, NoiseLevel, ladder, logsnr_at, time_at


def test_the_published_formula():
    """L(t) = -2 ln tan(a t + b), in float64."""
    b = np.arctan(np.exp(-10.0))
    a = np.arctan(np.exp(10.0)) - b
    time = np.linspace(0, 1, 101)
    np.testing.assert_allclose(logsnr_at(jnp.array(time)), -2 * np.log(np.tan(a * time + b)), rtol=1e-5, atol=0.01)


def test_the_ends_are_bounded_and_the_middle_is_even():
    np.testing.assert_allclose(
        logsnr_at(jnp.array([0.0, 0.5, 1.0])), [LOGSNR_BOUND, 0.0, -LOGSNR_BOUND], atol=0.01
    )  # float32 holds the tangent at time 1 to three digits


def test_time_comes_back():
    time = jnp.linspace(0.0, 1.0, 1001)
    np.testing.assert_allclose(time_at(logsnr_at(time)), time, atol=1e-6)


@pytest.mark.parametrize("logsnr", [-20.0, -3.0, 0.0, 7.0, 20.0])
def test_a_level_keeps_variance_and_means_its_log_snr(logsnr):
    level = NoiseLevel(jnp.array(logsnr))
    assert float(level.alpha**2 + level.sigma**2) == pytest.approx(1.0, abs=1e-6)
    assert float(2 * jnp.log(level.alpha / level.sigma)) == pytest.approx(logsnr, abs=1e-4)


def test_a_ladder_climbs_from_noise_in_even_time():
    levels = ladder(8)
    np.testing.assert_allclose(levels[jnp.array([0, 8])], [-20.0, 20.0], atol=0.01)
    np.testing.assert_allclose(time_at(levels), np.arange(8, -1, -1) / 8, atol=1e-6)
