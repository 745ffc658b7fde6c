import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spectrodiff.diffusion.objective import EPS, OBJECTIVES, X0, V, as_denoiser, clipped, diffusion_loss
from spectrodiff.diffusion.schedule import NoiseLevel

KEYS = jax.random.split(jax.random.key(0), 2)
DATA, NOISE = (jax.random.normal(key, (4, 6, 5)) for key in KEYS)
LOGSNR = jnp.array([-6.0, -1.0, 0.5, 6.0])
RUNG = NoiseLevel(LOGSNR[:, None, None])
Z = RUNG.alpha * DATA + RUNG.sigma * NOISE
ALL = jnp.ones((4, 6), bool)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_perfect_output_gives_the_data_back(name):
    objective = OBJECTIVES[name]
    denoise = as_denoiser(lambda z, logsnr: objective.target(DATA, NOISE, NoiseLevel(logsnr)), objective)
    np.testing.assert_allclose(denoise(Z, RUNG.logsnr), DATA, atol=1e-4)


def test_v_is_the_velocity_of_the_angle():
    """z = cos(angle) x0 + sin(angle) eps, and v its derivative (Salimans & Ho 2022)."""
    angle = jnp.arctan2(RUNG.sigma, RUNG.alpha)
    _, velocity = jax.jvp(lambda a: jnp.cos(a) * DATA + jnp.sin(a) * NOISE, (angle,), (jnp.ones_like(angle),))
    np.testing.assert_allclose(V.target(DATA, NOISE, RUNG), velocity, atol=1e-5)


def test_one_estimate_says_the_same_in_every_parameterisation():
    guess = DATA + 0.3
    eps = (Z - RUNG.alpha * guess) / RUNG.sigma
    v = RUNG.alpha * eps - RUNG.sigma * guess
    for objective, output in ((EPS, eps), (V, v), (X0, guess)):
        np.testing.assert_allclose(objective.to_x0(output, Z, RUNG), guess, atol=1e-4)


def test_only_v_is_weighted_and_by_min_snr():
    """The weight times v's squared error is min(SNR, 5) times x0's."""
    guess = DATA + 0.3
    v_error = (V.target(guess, (Z - RUNG.alpha * guess) / RUNG.sigma, RUNG) - V.target(DATA, NOISE, RUNG)) ** 2
    weighted = V.weight(RUNG.logsnr) * v_error
    expected = jnp.minimum(jnp.exp(RUNG.logsnr), 5.0) * (guess - DATA) ** 2
    np.testing.assert_allclose(weighted, expected, rtol=1e-2)
    assert EPS.weight(LOGSNR).tolist() == X0.weight(LOGSNR).tolist() == [1.0] * 4


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_perfect_network_has_no_loss(name):
    objective = OBJECTIVES[name]

    def oracle(z, logsnr):
        level = NoiseLevel(logsnr[:, None, None])
        return objective.target(DATA, (z - level.alpha * DATA) / level.sigma, level)

    losses = diffusion_loss(oracle, objective, DATA, ALL, LOGSNR, KEYS[0])
    np.testing.assert_allclose(losses, np.zeros(4), atol=1e-4)


def test_the_loss_of_a_network_that_always_says_zero():
    """|eps| of a standard normal averages sqrt(2 / pi)."""
    data = jnp.zeros((2, 256, 128))
    losses = diffusion_loss(
        lambda z, logsnr: jnp.zeros_like(z), EPS, data, jnp.ones((2, 256), bool), LOGSNR[:2], KEYS[0]
    )
    np.testing.assert_allclose(losses, np.full(2, np.sqrt(2 / np.pi)), atol=0.02)


def test_padded_frames_do_not_count():
    mask = ALL.at[0, 2:].set(False).at[1].set(False)
    off_by_one = diffusion_loss(lambda z, logsnr: DATA + 1.0, X0, DATA, mask, LOGSNR, KEYS[0])
    np.testing.assert_allclose(off_by_one, [1.0, 0.0, 1.0, 1.0], atol=1e-6)
    wild = jnp.where(mask[..., None], DATA, 1e6)
    np.testing.assert_allclose(
        diffusion_loss(lambda z, logsnr: jnp.zeros_like(z), X0, wild, mask, LOGSNR, KEYS[0]),
        jnp.where(mask, jnp.abs(DATA).mean(-1), 0).sum(-1) / jnp.maximum(mask.sum(-1), 1),
        rtol=1e-5,
    )


def test_clipping():
    denoise = clipped(lambda z, logsnr: z, -0.5, 1.0)
    assert denoise(jnp.array([-2.0, 0.2, 2.0]), jnp.array(0.0)).tolist() == pytest.approx([-0.5, 0.2, 1.0])
