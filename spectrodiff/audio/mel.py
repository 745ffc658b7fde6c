"""Waveform to log-mel: the only picture of sound the models see, and every constant of it.

The features are those of Hawthorne et al. (2022): 50 frames a second of 128 mel bins, log magnitude.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
from jaxtyping import Array, Float

SAMPLE_RATE = 16_000
HOP = 320
WINDOW = 640  # a periodic Hann window
FFT_SIZE = 1024
MEL_BINS = 128
FRAMES_PER_SECOND = SAMPLE_RATE // HOP
MAGNITUDE_RANGE = (1e-5, 1e8)  # mel magnitudes are clipped to this before the logarithm
LOG_FLOOR = float(np.log(1e-5))  # silence, and what padding is filled with
LOG_CEILING = 4.0  # what scaling maps to 1; louder frames are clipped
FLOAT32_ERROR = 2e-6  # of `log_mel`: by what share of a frame's loudest mel magnitude the others may be off
EXTRA_FRAMES = 16  # real audio read past a window when it is encoded alone


def hann(size: int) -> Float[np.ndarray, " size"]:
    """The periodic Hann window, which overlaps itself to a constant at every hop that divides half of it."""
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)


def mel_matrix(fft_size: int = FFT_SIZE, mel_bins: int = MEL_BINS) -> Float[np.ndarray, "f {mel_bins}"]:
    """Weights from the fft_size // 2 + 1 magnitudes of an FFT to mel bins, float64.

    Triangles of peak 1 from 0 Hz to half the sample rate, equally spaced and straight-sided on the HTK mel axis; what
    `tf.signal.linear_to_mel_weight_matrix` gives. DC has no weight; the bins between the outermost peaks sum to 1.
    """

    def mel(hz):
        return 2595.0 * np.log10(1.0 + hz / 700.0)

    bins = mel(np.linspace(0.0, SAMPLE_RATE / 2, fft_size // 2 + 1))[:, None]
    edges = np.linspace(0.0, mel(SAMPLE_RATE / 2), mel_bins + 2)
    lower, centre, upper = edges[:-2], edges[1:-1], edges[2:]
    matrix = np.maximum(0.0, np.minimum((bins - lower) / (centre - lower), (upper - bins) / (upper - centre)))
    matrix[0] = 0.0
    return matrix


@jax.jit
def log_mel(audio: Float[Array, "*b s"]) -> Float[Array, "*b t m"]:
    """Log-mel features of audio at SAMPLE_RATE: t = ceil(s / HOP) frames, natural log, between LOG_FLOOR and ln 1e8.

    Frame i sees samples HOP * i to HOP * i + WINDOW, zeros past the end. So a window's features are those of the whole
    recording, sliced; a window encoded alone needs EXTRA_FRAMES of the audio after it, encoded and sliced off, or
    its last frame hears a cut (Hawthorne et al. 2022).

    Computed in float32, as any device can. Mel magnitudes are within FLOAT32_ERROR times their frame's loudest of those
    of `log_mel_on_host`: a bin 80 dB under the loudest is right to 2e-4 nats, one 120 dB under it, such as those far
    from a loud pure tone, may be off by 1 nat. Not made to be differentiated; losses have their own.
    """
    samples = audio.shape[-1]
    frames = -(-samples // HOP)
    audio = jnp.pad(audio.astype(jnp.float32), [(0, 0)] * (audio.ndim - 1) + [(0, (frames + 1) * HOP - samples)])
    hops = audio.reshape(*audio.shape[:-1], frames + 1, HOP)
    framed = jnp.concatenate([hops[..., :-1, :], hops[..., 1:, :]], axis=-1) * hann(WINDOW).astype(np.float32)
    spectrum = jnp.abs(jnp.fft.rfft(framed, FFT_SIZE))
    matrix = mel_matrix().astype(np.float32)
    magnitude = jnp.matmul(spectrum, matrix, precision=jax.lax.Precision.HIGHEST)  # by default devices round to less
    return jnp.log(jnp.clip(magnitude, *MAGNITUDE_RANGE))


def log_mel_on_host(audio: Float[np.ndarray, " s"]) -> Float[np.ndarray, "t m"]:
    """What `log_mel` gives, by NumPy alone and in float64: for the threads that read data while the devices are busy.

    It compiles nothing, so any length will do; of no samples there are no frames. Of a mel matrix all but two weights a
    row are zero: multiplied as sparse, the whole takes less time than `log_mel` on a CPU, and starts no threads of its
    own.
    """
    frames = -(-len(audio) // HOP)
    if not frames:
        return np.zeros((0, MEL_BINS), np.float32)
    padded = np.zeros((frames + 1) * HOP)
    padded[: len(audio)] = audio
    framed = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP] * hann(WINDOW)
    magnitude = (_sparse_mel_matrix() @ np.abs(np.fft.rfft(framed, FFT_SIZE)).T).T
    return np.log(np.clip(magnitude, *MAGNITUDE_RANGE)).astype(np.float32)


@functools.cache
def _sparse_mel_matrix() -> scipy.sparse.csr_array:
    return scipy.sparse.csr_array(mel_matrix().T)


def scale_mel(mel: Float[Array | np.ndarray, "*b t m"]) -> Float[Array | np.ndarray, "*b t m"]:
    """Log-mel to [-1, 1], linear from [LOG_FLOOR, LOG_CEILING], clipped; of the kind of array that it is given."""
    return (2.0 * (mel - LOG_FLOOR) / (LOG_CEILING - LOG_FLOOR) - 1.0).clip(-1.0, 1.0)


def unscale_mel(scaled: Float[Array | np.ndarray, "*b t m"]) -> Float[Array | np.ndarray, "*b t m"]:
    """The log-mel that `scale_mel` maps to `scaled`; not clipped."""
    return (scaled + 1.0) / 2.0 * (LOG_CEILING - LOG_FLOOR) + LOG_FLOOR
