"""From noise to data: one scan, and steps of a few lines. No sampler ever sees a model."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from spectrodiff.diffusion.objective import Denoiser, Mel
from spectrodiff.diffusion.schedule import NoiseLevel

Keys = Key[Array, "b"]  # one for each row of a batch, so that a row's noise does not depend on its neighbours


class Previous(NamedTuple):
    """The estimate before this one; on the first step, this one itself."""

    x0: Mel
    level: NoiseLevel


Step = Callable[[Mel, Mel, NoiseLevel, NoiseLevel, Previous, Keys], Mel]


def standard_normal(keys: Keys, like: Mel) -> Mel:
    """Noise of the shape and type of `like`, each row by its own key."""
    return jax.vmap(lambda key: jax.random.normal(key, like.shape[1:], like.dtype))(keys)


def ddpm(x0: Mel, z: Mel, now: NoiseLevel, then: NoiseLevel, previous: Previous, keys: Keys) -> Mel:
    """Ancestral step with the larger of the two usual variances, as published (Ho et al. 2020)."""
    ratio = jnp.exp(now.logsnr - then.logsnr)  # SNR_now / SNR_then < 1
    kept = -jnp.expm1(now.logsnr - then.logsnr)
    mean = then.alpha / now.alpha * ratio * z + then.alpha * kept * x0
    return mean + jnp.sqrt(kept) * now.sigma * standard_normal(keys, z)


def ddim(x0: Mel, z: Mel, now: NoiseLevel, then: NoiseLevel, previous: Previous, keys: Keys) -> Mel:
    """Deterministic step from log-SNR `now` to the cleaner `then` (Song et al. 2021)."""
    eps = (z - now.alpha * x0) / now.sigma
    return then.alpha * x0 + then.sigma * eps


def dpmpp(x0: Mel, z: Mel, now: NoiseLevel, then: NoiseLevel, previous: Previous, keys: Keys) -> Mel:
    """DPM-Solver++(2M) (Lu et al. 2022): a DDIM step on x0 extrapolated, in log-SNR, to the middle of the step."""
    behind = now.logsnr - previous.level.logsnr
    slope = jnp.where(behind > 0, 0.5 * (then.logsnr - now.logsnr) / jnp.where(behind > 0, behind, 1.0), 0.0)
    return ddim(x0 + slope * (x0 - previous.x0), z, now, then, previous, keys)


STEPS: dict[str, Step] = {"ddpm": ddpm, "ddim": ddim, "dpmpp": dpmpp}


def sample(denoise: Denoiser, step: Step, logsnrs: Float[Array, " n"], start: Mel, keys: Keys) -> Mel:
    """Takes z from `start` through the increasing `logsnrs`, at each of which the denoiser is evaluated once.

    The last estimate of x0 is the result. Step i of a row draws its noise by `fold_in(key, i)`.
    """

    def body(carry, levels):
        z, previous, index = carry
        now, then = (NoiseLevel(logsnr) for logsnr in levels)
        x0 = denoise(z, now.logsnr)
        previous = jax.tree.map(lambda old, new: jnp.where(index == 0, new, old), previous, Previous(x0, now))
        z = step(x0, z, now, then, previous, jax.vmap(jax.random.fold_in, (0, None))(keys, index))
        return (z, Previous(x0, now), index + 1), None

    first = Previous(jnp.zeros_like(start), NoiseLevel(logsnrs[0]))
    (z, _, _), _ = jax.lax.scan(body, (start, first, jnp.int32(0)), (logsnrs[:-1], logsnrs[1:]))
    return denoise(z, logsnrs[-1])
