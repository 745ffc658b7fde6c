"""The STFT of Griffin-Lim and the refiner, with a hop of FINE_HOP samples."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

from spectrodiff.audio.mel import FFT_SIZE, HOP, WINDOW, hann

FINE_HOP = 80  # samples
FINE = HOP // FINE_HOP  # STFT frames per mel frame; STFT frame FINE * i starts with mel frame i
BLOCKS = WINDOW // FINE_HOP  # blocks of FINE_HOP samples in an STFT frame
BINS = FFT_SIZE // 2 + 1

Magnitude = Float[Array, "n f"]
Spectrum = Complex[Array, "n f"]


def stft(audio: Float[Array, " s"]) -> Spectrum:
    """Returns the STFT [n, BINS] with a Hann window of WINDOW samples; frame i starts at sample FINE_HOP * i.

    Only whole frames count: n = s / FINE_HOP - BLOCKS + 1, where FINE_HOP must divide the number of samples s.
    """
    blocks = audio.reshape(-1, FINE_HOP)
    frames = blocks.shape[0] - BLOCKS + 1
    framed = jnp.concatenate([blocks[k : k + frames] for k in range(BLOCKS)], axis=1)
    return jnp.fft.rfft(framed * hann(WINDOW).astype(np.float32), FFT_SIZE)


def istft(spectrum: Spectrum) -> Float[Array, " s"]:
    """Returns the least-squares inverse of `stft`; the first and last WINDOW - FINE_HOP samples are faded."""
    window = hann(WINDOW)
    window = (window / (np.square(window).sum() / FINE_HOP)).astype(np.float32)
    framed = jnp.fft.irfft(spectrum, FFT_SIZE)[:, :WINDOW] * window
    blocks = framed.reshape(-1, BLOCKS, FINE_HOP)
    return sum(jnp.pad(blocks[:, k], ((k, BLOCKS - 1 - k), (0, 0))) for k in range(BLOCKS)).reshape(-1)
