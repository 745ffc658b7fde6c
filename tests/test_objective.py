import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spectrodiff.diffusion.objective import X0, Eps, Objective, Preconditioned, V, clipped
from spectrodiff.diffusion.schedule import NoiseLevel
from spectrodiff.errors import InputError

DATA, NOISE, SKETCH = (jax.random.normal(key, (4, 6, 5)) for key in jax.random.split(jax.random.key(0), 3))
LOGSNR = jnp.array([-6.0, -1.0, 0.5, 6.0])
LEVEL = NoiseLevel(LOGSNR[:, None, None])
Z = LEVEL.alpha * DATA + LEVEL.sigma * NOISE
OBJECTIVES = [Eps(), V(), X0(), Preconditioned(), Preconditioned(std=1.3)]


def test_every_objective_is_covered():
    assert {objective.kind for objective in OBJECTIVES} <= Objective.kinds().keys()
    assert {kind for kind, some in Objective.kinds().items() if some.__module__.startswith("spectrodiff")} == {
        objective.kind for objective in OBJECTIVES
    }


@pytest.mark.parametrize("prior", [0.0, SKETCH], ids=["", "prior"])
@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_to_x0_inverts_target(objective, prior):
    output = objective.target(DATA, NOISE, LEVEL, prior)
    np.testing.assert_allclose(objective.to_x0(output, Z, LEVEL, prior), DATA, atol=1e-4)


def test_v_target_is_the_derivative_by_angle():
    """v is the derivative of z = cos(angle) x0 + sin(angle) eps (Salimans & Ho 2022)."""
    angle = jnp.arctan2(LEVEL.sigma, LEVEL.alpha)
    _, velocity = jax.jvp(lambda a: jnp.cos(a) * DATA + jnp.sin(a) * NOISE, (angle,), (jnp.ones_like(angle),))
    np.testing.assert_allclose(V().target(DATA, NOISE, LEVEL, 0.0), velocity, atol=1e-5)


def test_equivalent_outputs_of_all_objectives_give_the_same_x0():
    guess, std = DATA + 0.3, 0.7
    eps = (Z - LEVEL.alpha * guess) / LEVEL.sigma
    v = LEVEL.alpha * eps - LEVEL.sigma * guess
    # c_skip and c_out of Karras et al. (2022) for noise of s = sigma / alpha: std^2 / (s^2 + std^2), s std / sqrt(...)
    s = np.exp(-0.5 * np.float64(LOGSNR))[:, None, None]
    residual = np.float64(guess - SKETCH)
    noisy = np.float64(Z / LEVEL.alpha - SKETCH)
    f = (residual - std**2 / (s**2 + std**2) * noisy) / (s * std / np.sqrt(s**2 + std**2))
    prior = {X0(): guess - SKETCH, Preconditioned(std): jnp.array(f, jnp.float32)}
    for objective, output in ({Eps(): eps, V(): v, X0(): guess}).items():
        np.testing.assert_allclose(objective.to_x0(output, Z, LEVEL, 0.0), guess, atol=1e-4)
    for objective, output in prior.items():
        np.testing.assert_allclose(objective.to_x0(output, Z, LEVEL, SKETCH), guess, atol=1e-4)


@pytest.mark.parametrize("objective", [Eps(), V()], ids=str)
def test_eps_and_v_ignore_the_prior(objective):
    for method, first in ((objective.target, DATA), (objective.to_x0, NOISE)):
        np.testing.assert_array_equal(method(first, Z, LEVEL, SKETCH), method(first, Z, LEVEL, 0.0))


@pytest.mark.parametrize("objective", [Eps(), V(), X0()], ids=str)
def test_other_objectives_take_z_and_start_from_noise(objective):
    assert objective.inputs(Z, LEVEL, SKETCH) is Z
    assert objective.start(NOISE, LEVEL, SKETCH) is NOISE


@pytest.mark.parametrize("logsnr", [-20.0, -4.0, 0.0, 3.0, 12.0, 20.0])
@pytest.mark.parametrize("std", [0.3, 1.5])
def test_preconditioned_inputs_and_targets_have_unit_variance(logsnr, std):
    """They are also uncorrelated, since c_skip already contains the optimal linear estimate of Gaussian data."""
    objective, level = Preconditioned(std), NoiseLevel(jnp.array(logsnr))
    residual, noise, prior = (jax.random.normal(key, (1, 400, 500)) for key in jax.random.split(jax.random.key(1), 3))
    x0 = prior + std * residual
    inputs = objective.inputs(level.alpha * x0 + level.sigma * noise, level, prior)
    target = objective.target(x0, noise, level, prior)
    covariance = np.cov(np.ravel(inputs), np.ravel(target))
    np.testing.assert_allclose(covariance, np.eye(2), atol=0.015)  # four standard errors of 200 000 samples
    assert abs(float(inputs.mean())) < 0.01
    assert abs(float(target.mean())) < 0.01


@pytest.mark.parametrize("logsnr", [-20.0, -4.0, 0.0, 12.0])
def test_preconditioned_zero_output_is_the_gaussian_denoiser(logsnr):
    """The reference is E[x0 | z] for data N(prior, std^2), in float64."""
    objective, level = Preconditioned(0.4), NoiseLevel(jnp.array(logsnr))
    z, prior = np.float64(NOISE), np.float64(SKETCH)
    alpha2, sigma2 = 1 / (1 + np.exp(-logsnr)), 1 / (1 + np.exp(logsnr))
    expected = prior + np.sqrt(alpha2) * 0.4**2 * (z - np.sqrt(alpha2) * prior) / (alpha2 * 0.4**2 + sigma2)
    np.testing.assert_allclose(objective.to_x0(0.0, NOISE, level, SKETCH), expected, atol=1e-5)


@pytest.mark.parametrize("logsnr", [-20.0, -4.0, 3.0])
def test_preconditioned_sampling_starts_from_noised_data(logsnr):
    """z has mean alpha * prior and variance alpha^2 std^2 + sigma^2, so the network's input is the noise itself."""
    objective, level = Preconditioned(0.4), NoiseLevel(jnp.array(logsnr))
    alpha2, sigma2 = 1 / (1 + np.exp(-logsnr)), 1 / (1 + np.exp(logsnr))
    expected = np.sqrt(alpha2) * SKETCH + np.sqrt(alpha2 * 0.4**2 + sigma2) * NOISE
    start = objective.start(NOISE, level, SKETCH)
    np.testing.assert_allclose(start, expected, atol=1e-5)
    np.testing.assert_allclose(objective.inputs(start, level, SKETCH), NOISE, atol=1e-4)


def test_only_v_has_a_loss_weight_which_is_min_snr():
    """The weighted squared error of v equals min(SNR, gamma) times that of x0."""
    guess = DATA + 0.3
    for gamma in (5.0, 0.5):
        v = V(gamma)
        of_guess = v.target(guess, (Z - LEVEL.alpha * guess) / LEVEL.sigma, LEVEL, 0.0)
        weighted = v.weight(LEVEL.logsnr) * v.error(of_guess - v.target(DATA, NOISE, LEVEL, 0.0))
        expected = jnp.minimum(jnp.exp(LEVEL.logsnr), gamma) * (guess - DATA) ** 2
        np.testing.assert_allclose(weighted, expected, rtol=1e-2)
    for objective in (Eps(), X0(), Preconditioned()):
        assert objective.weight(LOGSNR).tolist() == [1.0] * 4


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_error_is_absolute_or_squared(objective):
    squared = objective.kind in ("v", "preconditioned")
    error = objective.error(jnp.array([[[-2.0, 0.5]]]))
    assert error.ravel().tolist() == ([4.0, 0.25] if squared else [2.0, 0.5])


def test_clipped_denoiser_limits_x0():
    denoise = clipped(lambda z, logsnr: z, -0.5, 1.0)
    assert denoise(jnp.array([-2.0, 0.2, 2.0]), jnp.array(0.0)).tolist() == pytest.approx([-0.5, 0.2, 1.0])


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_invalid_parameters_raise_input_error(value):
    with pytest.raises(InputError, match=r"^Preconditioned\.std is "):
        Preconditioned(value)
    with pytest.raises(InputError, match=r"^V\.gamma is "):
        V(value)
