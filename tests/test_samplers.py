"""Samplers are tested on Gaussian data, for which the denoiser and the probability-flow ODE have closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spectrodiff.diffusion.guidance import guide
from spectrodiff.diffusion.objective import clipped
from spectrodiff.diffusion.process import Process
from spectrodiff.diffusion.samplers import STEPS, Previous, ddim, ddpm, dpmpp, one_step_target, sample
from spectrodiff.diffusion.schedule import EvenTime, NoiseLevel, logsnr_at

MEAN, STD = 0.3, 0.5
KEYS = jax.random.split(jax.random.key(7), 1)
NOISE = jax.random.normal(jax.random.key(1), (1, 64, 128))
even_time = EvenTime()


def exact_denoiser(z, logsnr):
    """E[x0 | z] for data N(MEAN, STD^2)."""
    level = NoiseLevel(logsnr)
    return (level.alpha * STD**2 * z + level.sigma**2 * MEAN) / (level.alpha**2 * STD**2 + level.sigma**2)


def exact_solution(noise, logsnrs):
    """The solution of the probability-flow ODE, on which the standardised z stays constant."""

    def gaussian(logsnr):
        alpha2, sigma2 = 1 / (1 + np.exp(-logsnr)), 1 / (1 + np.exp(logsnr))
        return np.sqrt(alpha2) * MEAN, np.sqrt(alpha2 * STD**2 + sigma2)

    (mean, std), (last_mean, last_std) = gaussian(np.float64(logsnrs[0])), gaussian(np.float64(logsnrs[-1]))
    return exact_denoiser(jnp.array(last_mean + last_std * (noise - mean) / std, jnp.float32), logsnrs[-1])


@pytest.mark.parametrize("name", STEPS)
def test_exact_denoiser_yields_the_data_distribution(name):
    samples = sample(exact_denoiser, STEPS[name], even_time(500), NOISE, KEYS)
    assert float(samples.mean()) == pytest.approx(MEAN, abs=0.02)
    assert float(samples.std()) == pytest.approx(STD, rel=0.03)


def error(step, steps, low=-8.0, high=5.0):
    logsnrs, noise = jnp.linspace(low, high, steps + 1), NOISE[:, :1]
    return float(jnp.abs(sample(exact_denoiser, step, logsnrs, noise, KEYS) - exact_solution(noise, logsnrs)).mean())


def test_ddim_is_first_order_and_dpmpp_second_order():
    for step, order in ((ddim, 1), (dpmpp, 2)):
        rate = np.log2(error(step, 24) / error(step, 48))
        assert rate == pytest.approx(order, abs=0.3), step.__name__


def test_dpmpp_is_more_accurate_than_ddim_at_10_steps():
    errors, logsnrs = {}, even_time(10)
    for step in (ddim, dpmpp):
        errors[step] = float(
            jnp.abs(sample(exact_denoiser, step, logsnrs, NOISE, KEYS) - exact_solution(NOISE, logsnrs)).mean()
        )
    assert errors[dpmpp] < 0.5 * errors[ddim]


@pytest.mark.parametrize("name", STEPS)
def test_one_step_returns_the_denoiser_output(name):
    result = sample(exact_denoiser, STEPS[name], even_time(1), NOISE, KEYS)
    np.testing.assert_allclose(result, exact_denoiser(NOISE, jnp.array(-20.0)))


@pytest.mark.parametrize("name", STEPS)
def test_denoiser_is_evaluated_once_per_level_in_order(name):
    evaluated, logsnrs = [], jnp.linspace(-5.0, 5.0, 6)

    def denoise(z, logsnr):
        jax.debug.callback(lambda level: evaluated.append(float(level)), logsnr, ordered=True)
        return exact_denoiser(z, logsnr)

    jax.block_until_ready(sample(denoise, STEPS[name], logsnrs, NOISE[:, :1], KEYS))
    jax.effects_barrier()
    np.testing.assert_allclose(evaluated, logsnrs)


@pytest.mark.parametrize(("name", "random"), [("ddpm", True), ("ddim", False), ("dpmpp", False)])
def test_only_ddpm_draws_noise(name, random):
    keys = (jax.random.split(jax.random.key(seed), 1) for seed in (0, 1))
    first, second = (sample(exact_denoiser, STEPS[name], even_time(4), NOISE, key) for key in keys)
    assert bool((first != second).any()) is random


def test_noise_of_a_row_depends_on_its_key_only():
    keys = jax.random.split(jax.random.key(0), 3)
    noise = jnp.broadcast_to(NOISE[:, :2, :8], (3, 2, 8))
    together = sample(exact_denoiser, ddpm, even_time(6), noise, keys)
    for rows in ([1], [2, 0, 1]):
        others = sample(exact_denoiser, ddpm, even_time(6), noise[: len(rows)], keys[jnp.array(rows)])
        np.testing.assert_allclose(others, together[jnp.array(rows)], atol=1e-6)
    assert float(jnp.abs(together[0] - together[1]).max()) > 0.1


@pytest.mark.parametrize("weight", [1.0, 2.0])
def test_ddpm_matches_the_published_sampler(weight):
    """The reference in float64 steps from time (i + 1) / n to i / n with variance (1 - SNR_t / SNR_s) sigma_t^2."""
    steps, noise = 12, NOISE[:, :4, :8]

    def pair(z, logsnr):
        conditional, unconditional = jnp.split(z, 2)
        return jnp.concatenate([0.9 * conditional + 0.1, 0.6 * unconditional - 0.05])

    denoise = clipped(guide(Process().denoiser(pair), weight), -1.0, 1.0)
    ours = sample(denoise, ddpm, even_time(steps), noise, KEYS)

    z = np.float64(noise)
    for index, i in enumerate(reversed(range(steps))):
        logsnr_t, logsnr_s = (np.float64(logsnr_at(jnp.array(t / steps))) for t in (i + 1, i))
        alpha_t, alpha_s = (np.sqrt(1 / (1 + np.exp(-x))) for x in (logsnr_t, logsnr_s))
        sigma2_t = 1 / (1 + np.exp(logsnr_t))
        eps = weight * (0.9 * z + 0.1) + (1 - weight) * (0.6 * z - 0.05)
        x0 = np.clip((z - np.sqrt(sigma2_t) * eps) / alpha_t, -1, 1)
        ratio = np.exp(logsnr_t - logsnr_s)
        drawn = np.float64(jax.random.normal(jax.random.fold_in(KEYS[0], index), z.shape[1:]))
        z = alpha_s / alpha_t * ratio * z + alpha_s * (1 - ratio) * x0 + np.sqrt((1 - ratio) * sigma2_t) * drawn
    np.testing.assert_allclose(ours, x0, atol=2e-4)
    assert np.std(x0) > 0.1


# ---- targets of progressive distillation


def ddim_step(x0, z, now, then):
    now, then = NoiseLevel(now), NoiseLevel(then)
    return ddim(x0, z, now, then, Previous(x0, now), KEYS)


@pytest.mark.parametrize("step", [ddim, dpmpp])
def test_one_step_target_with_one_substep_is_the_teacher_output(step):
    now, then = jnp.float32(-2.8), jnp.float32(3.2)
    target = one_step_target(exact_denoiser, step, NOISE, now, then, 1, KEYS)
    np.testing.assert_allclose(target, exact_denoiser(NOISE, now), atol=1e-5)


@pytest.mark.parametrize("now", [-2.8, 0.0, 3.2])
def test_ddim_step_with_the_target_follows_the_exact_path(now):
    """On the exact path, the standardised z stays constant."""
    now, then = jnp.float32(now), jnp.float32(now + 6.0)

    def standardised(z, logsnr):
        level = NoiseLevel(logsnr)
        return (z - level.alpha * MEAN) / jnp.sqrt(level.alpha**2 * STD**2 + level.sigma**2)

    with_target = ddim_step(one_step_target(exact_denoiser, dpmpp, NOISE, now, then, 100, KEYS), NOISE, now, then)
    np.testing.assert_allclose(standardised(with_target, then), standardised(NOISE, now), atol=0.01)
    with_teacher_output = ddim_step(exact_denoiser(NOISE, now), NOISE, now, then)
    assert float(jnp.abs(standardised(with_teacher_output, then) - standardised(NOISE, now)).mean()) > 0.05
