"""Classifier-free guidance."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from spectrodiff.diffusion.objective import Denoiser


def guide(pair: Denoiser, weight: float | Float[Array, ""]) -> Denoiser:
    """Returns a denoiser with classifier-free guidance (Ho & Salimans 2021).

    The returned denoiser maps z [b, t, m] to x0 [b, t, m]. It calls `pair` once, on [2 b, t, m]: the b rows of z twice,
    of which `pair` conditions the first b on notes and context, the others on nothing. The guided estimate of x0 is
    weight * conditional + (1 - weight) * unconditional, which equals the usual rule on eps, since x0 is affine in eps.
    A weight of 1 is no guidance; larger weights follow the notes more closely.
    """

    def denoise(z, logsnr):
        conditional, unconditional = jnp.split(pair(jnp.concatenate([z, z]), logsnr), 2)
        return weight * conditional + (1.0 - weight) * unconditional

    return denoise


def within(interval: Float[Array, "2"], inside: Denoiser, outside: Denoiser) -> Denoiser:
    """Returns a denoiser that is `inside` at log-SNRs within the closed `interval`, and `outside` elsewhere.

    With a guided and an unguided denoiser this is a guidance interval (Kynkäänniemi et al. 2024). Only one of the two
    is evaluated; the log-SNR must be the same for all rows.
    """
    low, high = interval
    return lambda z, logsnr: jax.lax.cond((low <= logsnr) & (logsnr <= high), inside, outside, z, logsnr)
