"""Classifier-free guidance."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from spectrodiff.diffusion.objective import Denoiser


def guide(pair: Denoiser, weight: float | Float[Array, ""]) -> Denoiser:
    """Ho & Salimans (2021), in one evaluation of a batch of two.

    `pair` denoises [conditional; unconditional] stacked along the batch. The rule is affine in x0, so it equals the
    usual rule on eps: weight * conditional + (1 - weight) * unconditional. 1 is no guidance, more is closer to the
    notes.
    """

    def denoise(z, logsnr):
        conditional, unconditional = jnp.split(pair(jnp.concatenate([z, z]), logsnr), 2)
        return weight * conditional + (1.0 - weight) * unconditional

    return denoise
