import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from spectrodiff.diffusion.schedule import (
    LOGSNR_BOUND,
    EvenLogSNR,
    EvenTime,
    Karras,
    LogNormal,
    NoiseLevel,
    UniformTime,
    logsnr_at,
    time_at,
)
from spectrodiff.errors import InputError

B = np.arctan(np.exp(-10.0))
A = np.arctan(np.exp(10.0)) - B


def cosine_logsnr(time):
    """The cosine schedule -2 ln tan(a t + b) of Hawthorne et al. (2022), in float64."""
    return -2 * np.log(np.tan(A * np.asarray(time, np.float64) + B))


def test_logsnr_matches_the_published_formula():
    time = np.linspace(0, 1, 101)
    np.testing.assert_allclose(logsnr_at(jnp.array(time)), cosine_logsnr(time), rtol=1e-5, atol=0.01)


def test_logsnr_is_bounded_at_both_ends_and_zero_in_the_middle():
    np.testing.assert_allclose(
        logsnr_at(jnp.array([0.0, 0.5, 1.0])), [LOGSNR_BOUND, 0.0, -LOGSNR_BOUND], atol=0.01
    )  # float32 has three digits of the tangent at time 1


def test_time_at_inverts_logsnr_at():
    time = jnp.linspace(0.0, 1.0, 1001)
    np.testing.assert_allclose(time_at(logsnr_at(time)), time, atol=1e-6)


@pytest.mark.parametrize("logsnr", [-20.0, -3.0, 0.0, 7.0, 20.0])
def test_noise_level_preserves_variance_and_log_snr(logsnr):
    level = NoiseLevel(jnp.array(logsnr))
    assert float(level.alpha**2 + level.sigma**2) == pytest.approx(1.0, abs=1e-6)
    assert float(2 * jnp.log(level.alpha / level.sigma)) == pytest.approx(logsnr, abs=1e-4)


# ---- levels for training

DISTRIBUTIONS = {  # with quantile functions and cumulative distribution functions by NumPy and SciPy
    "the paper's": (
        UniformTime(),
        cosine_logsnr,
        lambda logsnr: 1 - (np.arctan(np.exp(-logsnr / 2)) - B) / A,
    ),
    "towards noise": (
        UniformTime(power=0.5),
        lambda quantile: cosine_logsnr(np.sqrt(quantile)),
        lambda logsnr: 1 - ((np.arctan(np.exp(-logsnr / 2)) - B) / A) ** 2,
    ),
    "EDM's": (LogNormal(), lambda q: 2.4 + 2.4 * scipy.stats.norm.ppf(q), scipy.stats.norm(2.4, 2.4).cdf),
    "log-normal": (LogNormal(-1.0, 0.5), lambda q: -1.0 + 0.5 * scipy.stats.norm.ppf(q), scipy.stats.norm(-1, 0.5).cdf),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_noise_level_quantiles(name):
    distribution, quantile_function, _ = DISTRIBUTIONS[name]
    quantiles = np.linspace(0.001, 0.999, 999)
    found = distribution.logsnr(jnp.array(quantiles, jnp.float32))
    np.testing.assert_allclose(found, quantile_function(quantiles), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_drawn_noise_levels_have_the_distribution(name):
    """For 20 000 draws, a Kolmogorov-Smirnov statistic over 0.0115 has a probability of 1 percent."""
    distribution, _, cumulative = DISTRIBUTIONS[name]
    drawn = np.asarray(distribution.logsnr(jax.random.uniform(jax.random.key(0), (20_000,))), np.float64)
    assert scipy.stats.kstest(drawn, cumulative).statistic < 0.0115


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_extreme_noise_levels_are_within_bounds(name):
    """`jax.random.uniform` may return 0, but never 1."""
    levels = DISTRIBUTIONS[name][0].logsnr(jnp.array([0.0, np.nextafter(np.float32(1), np.float32(0))]))
    assert float(jnp.abs(levels).max()) <= LOGSNR_BOUND + 0.01


# ---- levels for sampling

SCHEDULES = [EvenTime(), EvenLogSNR(), EvenLogSNR(-3.0, 5.0), Karras(), Karras(-6.0, 9.0, rho=3.0)]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("steps", [2, 7, 1000])
def test_schedules_go_from_noise_to_signal(schedule, steps):
    """The tolerance is that of the tangent at time 1 in float32."""
    levels = np.asarray(schedule(steps))
    assert levels.shape == (steps,)
    assert (np.diff(levels) > 0).all()
    ends = (-20.0, cosine_logsnr(1 / steps)) if schedule == EvenTime() else (schedule.low, schedule.high)
    np.testing.assert_allclose(levels[[0, -1]], ends, atol=0.01)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_one_step_schedule_is_the_noisiest_level(schedule):
    np.testing.assert_allclose(schedule(1), [getattr(schedule, "low", -20.0)], atol=0.01)


def test_even_time_matches_the_published_schedule():
    """The published sampler evaluates the network at times (i + 1) / n, from i = n - 1 to 0."""
    for steps in (1, 8, 1000):
        times = np.arange(steps, 0, -1) / steps
        np.testing.assert_allclose(EvenTime()(steps), cosine_logsnr(times), rtol=1e-5, atol=0.01)
        np.testing.assert_allclose(time_at(EvenTime()(steps)), times, atol=1e-6)


def test_even_log_snr_is_evenly_spaced():
    np.testing.assert_allclose(EvenLogSNR(-3.0, 5.0)(9), np.arange(-3.0, 6.0), atol=1e-5)


def test_karras_matches_equation_5():
    """Karras et al. 2022: sigma_i = (max^(1/rho) + i / (n - 1) (min^(1/rho) - max^(1/rho)))^rho."""
    most, least, rho = np.exp(3.0), np.exp(-4.5), 3.0
    sigma = (most ** (1 / rho) + np.arange(12) / 11 * (least ** (1 / rho) - most ** (1 / rho))) ** rho
    np.testing.assert_allclose(Karras(-6.0, 9.0, rho=3.0)(12), -2 * np.log(sigma), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: UniformTime(0.0), r"^UniformTime\.power is 0\.0"),
        (lambda: UniformTime(float("nan")), r"^UniformTime\.power is nan\b"),
        (lambda: LogNormal(std=0.0), r"^LogNormal .*mean 2\.4 .*std 0\.0"),
        (lambda: LogNormal(mean=float("inf")), r"^LogNormal .*mean inf"),
        (lambda: EvenLogSNR(5.0, 5.0), r"log-SNR 5\.0 .*5\.0"),
        (lambda: EvenLogSNR(-21.0), r"log-SNR -21\.0 "),
        (lambda: Karras(high=float("nan")), r"log-SNR .*\bnan\b"),
        (lambda: Karras(rho=0.0), r"^Karras\.rho is 0\.0"),
    ],
)
def test_invalid_parameters_raise_input_error(build, message):
    with pytest.raises(InputError, match=message):
        build()
