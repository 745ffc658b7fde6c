"""Magnitudes that have a given mel, and the frames between frames."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from spectrodiff.audio.mel import mel_matrix
from spectrodiff.vocoder.stft import FINE


def solve_magnitude(
    mel: Float[Array, "t m"], start: Float[Array, "t f"] | None = None, *, iterations: int
) -> Float[Array, "t f"]:
    """Magnitudes, all positive, whose mel is `mel` (magnitudes too): multiplicative least squares (Lee & Seung 2001).

    Many fit. What comes out keeps the fine structure of `start`, by default the mel spread evenly over its bins. Bins
    that no mel bin hears, the first and the last, come out as 0.
    """
    matrix = mel_matrix().astype(np.float32)
    target = mel @ matrix.T
    if start is None:
        start = target / (matrix.sum(axis=1) + 1e-9)

    def improve(x, _):
        return x * target / ((x @ matrix) @ matrix.T + 1e-9), None

    return jax.lax.scan(improve, start, length=iterations)[0]


def interpolate(frames: Float[Array, "t f"]) -> Float[Array, "n f"]:
    """FINE frames from each: itself, and what lies on the way to the next; the last stays as it is."""
    following = jnp.concatenate([frames[1:], frames[-1:]])
    way = jnp.arange(FINE)[:, None] / FINE
    return ((1 - way) * frames[:, None] + way * following[:, None]).reshape(-1, frames.shape[1])
