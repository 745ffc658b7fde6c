"""Magnitudes that fit a given mel, and interpolation between frames."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from spectrodiff.audio.mel import mel_matrix
from spectrodiff.vocoder.stft import FINE


def solve_magnitude(
    mel: Float[Array, "t m"], start: Float[Array, "t f"] | None = None, *, iterations: int
) -> Float[Array, "t f"]:
    """Returns non-negative magnitudes whose mel magnitudes are `mel`, by multiplicative updates (Lee & Seung 2001).

    The solution is not unique; it keeps the fine structure of `start`, which defaults to the mel spread evenly over its
    bins. The first and last bin, which are in no mel bin, are 0.
    """
    matrix = mel_matrix().astype(np.float32)
    target = mel @ matrix.T
    if start is None:
        start = target / (matrix.sum(axis=1) + 1e-9)

    def improve(x, _):
        return x * target / ((x @ matrix) @ matrix.T + 1e-9), None

    return jax.lax.scan(improve, start, length=iterations)[0]


def match_mel(magnitude: Float[Array, "n f"], mel: Float[Array, "t m"], iterations: int) -> Float[Array, "n f"]:
    """Returns the magnitudes multiplied by smooth factors, so that the log-mel of every FINE-th frame is `mel`."""
    return magnitude * jnp.exp(mel_correction(magnitude[::FINE], mel, iterations))


def mel_correction(magnitude: Float[Array, "t f"], mel: Float[Array, "t m"], iterations: int) -> Float[Array, "n f"]:
    """Returns the logarithms of the factors by which magnitudes have to be multiplied, so that their log-mel is `mel`.

    `magnitude` is every FINE-th frame of them. The log factors of the frames in between are interpolated.
    """
    magnitude = magnitude + 1e-9
    solved = solve_magnitude(jnp.exp(mel), magnitude, iterations=iterations)
    return interpolate(jnp.log(solved + 1e-9) - jnp.log(magnitude), FINE)


def interpolate(frames: Float[Array, "t f"], factor: int) -> Float[Array, "n f"]:
    """Returns n = factor * t frames, linearly interpolated from each frame to the next; the last frame is repeated."""
    following = jnp.concatenate([frames[1:], frames[-1:]])
    fraction = jnp.arange(factor)[:, None] / factor
    return ((1 - fraction) * frames[:, None] + fraction * following[:, None]).reshape(-1, frames.shape[1])
