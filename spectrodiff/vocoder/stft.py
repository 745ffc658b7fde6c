"""The fine grid on which magnitudes are known and phases are sought: a frame every FINE_HOP samples."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

from spectrodiff.audio.mel import FFT_SIZE, HOP, WINDOW, hann

FINE_HOP = 80
FINE = HOP // FINE_HOP  # fine frames of a mel frame; number FINE * i begins where mel frame i does
BLOCKS = WINDOW // FINE_HOP  # a frame is this many blocks of FINE_HOP samples
BINS = FFT_SIZE // 2 + 1

Magnitude = Float[Array, "n f"]
Spectrum = Complex[Array, "n f"]


def stft(audio: Float[Array, " s"]) -> Spectrum:
    """Frame i of WINDOW samples starts at sample FINE_HOP * i; only whole frames."""
    blocks = audio.reshape(-1, FINE_HOP)
    frames = blocks.shape[0] - BLOCKS + 1
    framed = jnp.concatenate([blocks[k : k + frames] for k in range(BLOCKS)], axis=1)
    return jnp.fft.rfft(framed * hann(WINDOW).astype(np.float32), FFT_SIZE)


def istft(spectrum: Spectrum) -> Float[Array, " s"]:
    """Least-squares inverse of `stft`, but for the first and last WINDOW - FINE_HOP samples, which fade."""
    window = hann(WINDOW)
    window = (window / (np.square(window).sum() / FINE_HOP)).astype(np.float32)
    framed = jnp.fft.irfft(spectrum, FFT_SIZE)[:, :WINDOW] * window
    blocks = framed.reshape(-1, BLOCKS, FINE_HOP)
    return sum(jnp.pad(blocks[:, k], ((k, BLOCKS - 1 - k), (0, 0))) for k in range(BLOCKS)).reshape(-1)
