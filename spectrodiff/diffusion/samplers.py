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
    """The estimate of x0 at the previous step and its noise level. At the first step, these are the current ones."""

    x0: Mel
    level: NoiseLevel


Step = Callable[[Mel, Mel, NoiseLevel, NoiseLevel, Previous, Keys], Mel]


def standard_normal(keys: Keys, like: Mel) -> Mel:
    """Draws standard normal noise of the shape and dtype of `like`, each row by its own key."""
    return jax.vmap(lambda key: jax.random.normal(key, like.shape[1:], like.dtype))(keys)


def ddpm(x0: Mel, z: Mel, now: NoiseLevel, then: NoiseLevel, previous: Previous, keys: Keys) -> Mel:
    """Takes an ancestral step (Ho et al. 2020) with the larger of its two variances, as in the published sampler."""
    ratio = jnp.exp(now.logsnr - then.logsnr)  # SNR_now / SNR_then < 1
    kept = -jnp.expm1(now.logsnr - then.logsnr)
    mean = then.alpha / now.alpha * ratio * z + then.alpha * kept * x0
    return mean + jnp.sqrt(kept) * now.sigma * standard_normal(keys, z)


def ddim(x0: Mel, z: Mel, now: NoiseLevel, then: NoiseLevel, previous: Previous, keys: Keys) -> Mel:
    """Takes a deterministic step from the noise level `now` to the lower one `then` (Song et al. 2021)."""
    eps = (z - now.alpha * x0) / now.sigma
    return then.alpha * x0 + then.sigma * eps


def dpmpp(x0: Mel, z: Mel, now: NoiseLevel, then: NoiseLevel, previous: Previous, keys: Keys) -> Mel:
    """Takes a step of DPM-Solver++(2M) (Lu et al. 2022).

    It is a DDIM step with x0 extrapolated linearly in log-SNR to the middle of the step.
    """
    behind = now.logsnr - previous.level.logsnr
    slope = jnp.where(behind > 0, 0.5 * (then.logsnr - now.logsnr) / jnp.where(behind > 0, behind, 1.0), 0.0)
    return ddim(x0 + slope * (x0 - previous.x0), z, now, then, previous, keys)


STEPS: dict[str, Step] = {"ddpm": ddpm, "ddim": ddim, "dpmpp": dpmpp}


def sample(denoise: Denoiser, step: Step, logsnrs: Float[Array, " n"], start: Mel, keys: Keys) -> Mel:
    """Samples from z = `start` at the first of the increasing `logsnrs`, and returns the estimate of x0 at the last.

    The denoiser is evaluated once at each of them. Step i of a row draws its noise by `fold_in(key, i)` from the row's
    key.
    """
    # The last step goes nowhere. With it, every evaluation is in the loop, and the program holds the network once.
    return _walk(denoise, step, jnp.append(logsnrs, logsnrs[-1]), start, keys)[1].x0


def walk(denoise: Denoiser, step: Step, logsnrs: Float[Array, " n"], start: Mel, keys: Keys) -> Mel:
    """Returns the z at the last of the increasing `logsnrs`: as `sample`, but not evaluating the denoiser there."""
    return _walk(denoise, step, logsnrs, start, keys)[0]


def _walk(denoise: Denoiser, step: Step, logsnrs: Float[Array, " n"], start: Mel, keys: Keys) -> tuple[Mel, Previous]:
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
    """Returns the x0 from which one DDIM step leads from z to where `substeps` of `step` lead.

    It is the target of progressive distillation (Salimans & Ho 2022) for a step from log-SNR `now` to `then`, with
    `denoise` as the teacher. With one substep it is the teacher's own estimate of x0.
    """
    landed = walk(denoise, step, jnp.linspace(now, then, substeps + 1), z, keys)
    start, end = NoiseLevel(now), NoiseLevel(then)
    ratio = end.sigma / start.sigma
    return (landed - ratio * z) / (end.alpha - ratio * start.alpha)
