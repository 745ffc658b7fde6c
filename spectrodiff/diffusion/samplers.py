"""From noise to data: one scan, and steps of a few lines. No sampler ever sees a model."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from spectrodiff.diffusion.objective import Denoiser, Mel
from spectrodiff.diffusion.schedule import Rung


class Past(NamedTuple):
    """The estimate before this one; on the first step, this one itself."""

    x0: Mel
    rung: Rung


Step = Callable[[Mel, Mel, Rung, Rung, Past, jax.Array], Mel]


def ddpm(x0: Mel, z: Mel, now: Rung, then: Rung, past: Past, key: jax.Array) -> Mel:
    """Ancestral step with the larger of the two usual variances, as published (Ho et al. 2020)."""
    ratio = jnp.exp(now.logsnr - then.logsnr)  # SNR_now / SNR_then < 1
    kept = -jnp.expm1(now.logsnr - then.logsnr)
    mean = then.alpha / now.alpha * ratio * z + then.alpha * kept * x0
    return mean + jnp.sqrt(kept) * now.sigma * jax.random.normal(key, z.shape, z.dtype)


def ddim(x0: Mel, z: Mel, now: Rung, then: Rung, past: Past, key: jax.Array) -> Mel:
    """Deterministic step from log-SNR `now` to the cleaner `then` (Song et al. 2021)."""
    eps = (z - now.alpha * x0) / now.sigma
    return then.alpha * x0 + then.sigma * eps


def dpmpp(x0: Mel, z: Mel, now: Rung, then: Rung, past: Past, key: jax.Array) -> Mel:
    """DPM-Solver++(2M) (Lu et al. 2022): a DDIM step on x0 extrapolated, in log-SNR, to the middle of the step."""
    behind = now.logsnr - past.rung.logsnr
    slope = jnp.where(behind > 0, 0.5 * (then.logsnr - now.logsnr) / jnp.where(behind > 0, behind, 1.0), 0.0)
    return ddim(x0 + slope * (x0 - past.x0), z, now, then, past, key)


STEPS: dict[str, Step] = {"ddpm": ddpm, "ddim": ddim, "dpmpp": dpmpp}


def sample(denoise: Denoiser, step: Step, logsnrs: Float[Array, " n"], noise: Mel, key: jax.Array) -> Mel:
    """Walks z from `noise` along the increasing `logsnrs`; the last estimate of x0 is the result."""

    def body(carry, rungs):
        z, past, index = carry
        now, then = (Rung(logsnr) for logsnr in rungs)
        x0 = denoise(z, now.logsnr)
        past = jax.tree.map(lambda old, new: jnp.where(index == 0, new, old), past, Past(x0, now))
        z = step(x0, z, now, then, past, jax.random.fold_in(key, index))
        return (z, Past(x0, now), index + 1), None

    first = Past(jnp.zeros_like(noise), Rung(logsnrs[0]))
    (z, _, _), _ = jax.lax.scan(body, (noise, first, jnp.int32(0)), (logsnrs[:-2], logsnrs[1:-1]))
    return denoise(z, logsnrs[-2])
