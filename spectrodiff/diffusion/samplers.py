"""Samplers of diffusion models: update rules (DDPM, DDIM, DPM-Solver++) and the loop that applies them."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from spectrodiff.diffusion.objective import Denoiser, Mel
from spectrodiff.diffusion.schedule import NoiseLevel

Keys = Key[Array, "b"]  # one per row of a batch, so that a row's noise does not depend on the rest of the batch


class Previous(NamedTuple):
    """The estimate of x0 at the previous step and its noise level, for multistep rules.

    At the first step, both are those of the current step.
    """

    x0: Mel
    level: NoiseLevel


# An update rule (x0, z, now, then, previous, keys) -> z at the noise level `then`, given z at the higher noise level
# `now` and the estimate of x0 there. `keys` draw the noise of stochastic rules.
Step = Callable[[Mel, Mel, NoiseLevel, NoiseLevel, Previous, Keys], Mel]


def standard_normal(keys: Keys, like: Mel) -> Mel:
    """Draws standard normal noise of the shape and dtype of `like`, each row by its own key."""
    return jax.vmap(lambda key: jax.random.normal(key, like.shape[1:], like.dtype))(keys)


def ddpm(x0: Mel, z: Mel, now: NoiseLevel, then: NoiseLevel, previous: Previous, keys: Keys) -> Mel:
    """Takes an ancestral step (Ho et al. 2020) with the larger of its two variances, as in the published sampler."""
    ratio = jnp.exp(now.logsnr - then.logsnr)  # SNR_now / SNR_then < 1
    complement = -jnp.expm1(now.logsnr - then.logsnr)  # 1 - ratio, without cancellation
    mean = then.alpha / now.alpha * ratio * z + then.alpha * complement * x0
    return mean + jnp.sqrt(complement) * now.sigma * standard_normal(keys, z)


def ddim(x0: Mel, z: Mel, now: NoiseLevel, then: NoiseLevel, previous: Previous, keys: Keys) -> Mel:
    """Takes a deterministic step from the noise level `now` to the lower one `then` (Song et al. 2021)."""
    eps = (z - now.alpha * x0) / now.sigma
    return then.alpha * x0 + then.sigma * eps


def dpmpp(x0: Mel, z: Mel, now: NoiseLevel, then: NoiseLevel, previous: Previous, keys: Keys) -> Mel:
    """Takes a step of DPM-Solver++(2M) (Lu et al. 2022).

    It is a DDIM step with x0 extrapolated linearly in log-SNR to the middle of the step.
    """
    last = now.logsnr - previous.level.logsnr  # the length of the last step; 0 at the first step, which is plain DDIM
    weight = jnp.where(last > 0, 0.5 * (then.logsnr - now.logsnr) / jnp.where(last > 0, last, 1.0), 0.0)
    return ddim(x0 + weight * (x0 - previous.x0), z, now, then, previous, keys)


STEPS: dict[str, Step] = {"ddpm": ddpm, "ddim": ddim, "dpmpp": dpmpp}


def sample(denoise: Denoiser, step: Step, logsnrs: Float[Array, " n"], start: Mel, keys: Keys) -> Mel:
    """Samples from z = `start` at the first of the increasing `logsnrs`, and returns the estimate of x0 at the last.

    The denoiser is evaluated once at each of them. Step i of a row draws its noise by `fold_in(key, i)` from the row's
    key.
    """
    # A last step of length 0 puts the last evaluation into the loop too, so that the program contains the network once.
    return _iterate(denoise, step, jnp.append(logsnrs, logsnrs[-1]), start, keys)[1].x0


def walk(denoise: Denoiser, step: Step, logsnrs: Float[Array, " n"], start: Mel, keys: Keys) -> Mel:
    """Returns z at the last of the increasing `logsnrs`, where, unlike `sample`, it does not evaluate the denoiser."""
    return _iterate(denoise, step, logsnrs, start, keys)[0]


def _iterate(
    denoise: Denoiser, step: Step, logsnrs: Float[Array, " n"], start: Mel, keys: Keys
) -> tuple[Mel, Previous]:
    """Takes a step from each of the `logsnrs` to the next; returns the last z and the denoiser's last estimate."""

    def body(carry, levels):
        z, previous, index = carry
        now, then = (NoiseLevel(logsnr) for logsnr in levels)
        x0 = denoise(z, now.logsnr)
        previous = jax.tree.map(lambda old, new: jnp.where(index == 0, new, old), previous, Previous(x0, now))
        z = step(x0, z, now, then, previous, jax.vmap(jax.random.fold_in, (0, None))(keys, index))
        return (z, Previous(x0, now), index + 1), None

    first = Previous(jnp.zeros_like(start), NoiseLevel(logsnrs[0]))
    (z, previous, _), _ = jax.lax.scan(body, (start, first, jnp.int32(0)), (logsnrs[:-1], logsnrs[1:]))
    return z, previous


def one_step_target(
    denoise: Denoiser, step: Step, z: Mel, now: Float[Array, ""], then: Float[Array, ""], substeps: int, keys: Keys
) -> Mel:
    """Returns the estimate of x0 with which one DDIM step has the same result as `substeps` steps of a teacher.

    It is the target of progressive distillation (Salimans & Ho 2022) for a step from log-SNR `now` to `then`, starting
    at z. The teacher's denoiser is `denoise`, and its steps, of the update rule `step`, divide the log-SNR evenly. With
    one step of `ddim` or `dpmpp`, the result is the teacher's own estimate of x0.
    """
    reached = walk(denoise, step, jnp.linspace(now, then, substeps + 1), z, keys)
    start, end = NoiseLevel(now), NoiseLevel(then)
    ratio = end.sigma / start.sigma
    return (reached - ratio * z) / (end.alpha - ratio * start.alpha)
