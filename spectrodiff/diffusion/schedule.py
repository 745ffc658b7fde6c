"""Log-SNR, the only clock: how much signal and how much noise z holds."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

LOGSNR_BOUND = 20.0  # log-SNR runs from +20 at t = 0 to -20 at t = 1 (Hawthorne et al. 2022)
_B = math.atan(math.exp(-LOGSNR_BOUND / 2))
_A = math.atan(math.exp(LOGSNR_BOUND / 2)) - _B


class Rung(NamedTuple):
    """A noise level. z = alpha * x0 + sigma * eps with alpha^2 + sigma^2 = 1 (variance preserving)."""

    logsnr: Float[Array, "*shape"]

    @property
    def alpha(self) -> Float[Array, "*shape"]:
        return jnp.sqrt(jax.nn.sigmoid(self.logsnr))

    @property
    def sigma(self) -> Float[Array, "*shape"]:
        return jnp.sqrt(jax.nn.sigmoid(-self.logsnr))


def logsnr_at(time: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The cosine schedule (Nichol & Dhariwal 2021), bounded so that it stays finite at both ends of time [0, 1]."""
    return -2.0 * jnp.log(jnp.tan(_A * time + _B))


def time_at(logsnr: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The inverse of `logsnr_at`: what the network's noise embedding is a function of."""
    return (jnp.arctan(jnp.exp(-0.5 * logsnr)) - _B) / _A


def ladder(steps: int) -> Float[Array, "{steps}+1"]:
    """Log-SNRs from pure noise to clean, evenly spaced in time."""
    return logsnr_at(jnp.arange(steps, -1, -1) / steps)
