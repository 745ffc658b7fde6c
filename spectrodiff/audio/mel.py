"""Log-mel spectrograms of audio, and all of their constants.

They are those of Hawthorne et al. (2022): the logarithm of 128 mel magnitudes, 50 frames per second.
"""

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64

from spectrodiff.errors import InputError, reason

SAMPLE_RATE = 16_000
HOP = 320
WINDOW = 640  # a periodic Hann window
FFT_SIZE = 1024
MEL_BINS = 128
FRAMES_PER_SECOND = SAMPLE_RATE // HOP
MAGNITUDE_RANGE = (1e-5, 1e8)  # mel magnitudes are clipped to this before the logarithm
LOG_FLOOR = float(np.log(1e-5))  # the log-mel of silence, also used for padding
LOG_CEILING = 4.0  # scaled to 1; larger values are clipped
EXTRA_FRAMES = 16  # of audio after a window, needed to compute the mel of a window alone


def hann(size: int) -> Float[np.ndarray, " size"]:
    """Returns the periodic Hann window, whose overlaps sum to a constant at every hop that divides half of it."""
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)


def _mel(hz: float | Float64[np.ndarray, " f"]) -> float | Float64[np.ndarray, " f"]:
    """Returns frequencies on the HTK mel scale."""
    return 2595.0 * np.log10(1.0 + hz / 700.0)


def mel_frequencies() -> Float64[np.ndarray, " m"]:
    """Returns the centres of the mel bins in Hz, equally spaced in mels between 0 Hz and half the sample rate."""
    centres = np.linspace(0.0, _mel(SAMPLE_RATE / 2), MEL_BINS + 2)[1:-1]
    return 700.0 * (10.0 ** (centres / 2595.0) - 1.0)


def mel_matrix(fft_size: int = FFT_SIZE, mel_bins: int = MEL_BINS) -> Float[np.ndarray, "f {mel_bins}"]:
    """Returns the weights from the fft_size // 2 + 1 magnitudes of an FFT to mel bins, float64.

    They are triangles of peak 1 from 0 Hz to half the sample rate, equally spaced and straight-sided on the HTK mel
    axis, as in `tf.signal.linear_to_mel_weight_matrix`. DC has no weight; the weights of a bin between the outermost
    peaks sum to 1.
    """
    bins = _mel(np.linspace(0.0, SAMPLE_RATE / 2, fft_size // 2 + 1))[:, None]
    edges = np.linspace(0.0, _mel(SAMPLE_RATE / 2), mel_bins + 2)
    lower, centre, upper = edges[:-2], edges[1:-1], edges[2:]
    matrix = np.maximum(0.0, np.minimum((bins - lower) / (centre - lower), (upper - bins) / (upper - centre)))
    matrix[0] = 0.0
    return matrix


def check_audio(audio: Float[Array | np.ndarray, " s"]) -> Float[Array | np.ndarray, " s"]:
    """Returns the audio as an array, having checked that it is one channel of finite floating-point samples.

    Raises:
      InputError: it is not; the message says what it is, and what to do.
    """
    if isinstance(audio, str | os.PathLike):
        raise InputError("audio is an array [samples], not a path: read the file by spectrodiff.read_audio")
    if not isinstance(audio, jax.Array):
        try:
            audio = np.asarray(audio)
        except ValueError as error:  # a list of lists of different lengths
            raise InputError(f"audio is an array [samples], but this is none ({reason(error)})") from error
    if audio.dtype.kind in "iu":
        full_scale = f" (divide by {2**15})" if audio.dtype == np.int16 else ""
        raise InputError(f"the audio has samples of {audio.dtype}: convert to float between -1 and 1{full_scale}")
    if not jnp.issubdtype(audio.dtype, jnp.floating):
        raise InputError(f"audio is an array [samples] of floats, but this one is of {audio.dtype}")
    if audio.ndim != 1:
        remedy = f": average its channels, audio.mean(axis={np.argmin(audio.shape)})" if audio.ndim == 2 else ""
        raise InputError(f"audio is an array [samples] of one channel, but this one is {list(audio.shape)}{remedy}")
    if not (finite := np.isfinite(audio)).all():
        raise InputError(f"the audio holds values that are not numbers (first at sample {np.argmin(finite)})")
    return audio


def log_mel(audio: Float[Array | np.ndarray, " s"]) -> Float[Array, "t m"]:
    """Returns the log-mel of mono audio [samples] at SAMPLE_RATE, 16 kHz, as float32 [ceil(samples / HOP), MEL_BINS].

    Its values are natural logarithms of magnitudes, from LOG_FLOOR for silence to ln 1e8; see `log_mels`, which takes
    batches and may be called in compiled functions. Each length is compiled once.

    Raises:
      InputError: the audio has several channels, samples that are not floats (convert integers to floats between -1 and
        1), or samples that are not finite.
    """
    return log_mels(check_audio(audio))


@jax.jit
def log_mels(audio: Float[Array, "*b s"]) -> Float[Array, "*b t m"]:
    """Returns the log-mel of batches of audio at SAMPLE_RATE: ceil(s / HOP) frames, natural log, LOG_FLOOR to ln 1e8.

    Frame i covers samples HOP * i to HOP * i + WINDOW, with zeros after the end. To get the frames of a window of a
    recording, compute them from the window and EXTRA_FRAMES more, and drop those; otherwise its last frame would
    contain a discontinuity (Hawthorne et al. 2022).

    It is computed in float32, which all devices have. Mel magnitudes differ from those of `log_mel_on_host` by at most
    2e-6 times the largest one of their frame: a bin 80 dB below the largest is correct to 2e-4 nats; one that
    is 120 dB below it, such as those far from a loud pure tone, may be off by 1 nat. It is not meant to be
    differentiated.
    """
    samples = audio.shape[-1]
    frames = -(-samples // HOP)
    audio = jnp.pad(audio.astype(jnp.float32), [(0, 0)] * (audio.ndim - 1) + [(0, (frames + 1) * HOP - samples)])
    hops = audio.reshape(*audio.shape[:-1], frames + 1, HOP)
    framed = jnp.concatenate([hops[..., :-1, :], hops[..., 1:, :]], axis=-1) * hann(WINDOW).astype(np.float32)
    spectrum = jnp.abs(jnp.fft.rfft(framed, FFT_SIZE))
    matrix = mel_matrix().astype(np.float32)
    magnitude = jnp.matmul(
        spectrum, matrix, precision=jax.lax.Precision.HIGHEST
    )  # by default devices use lower precision
    return jnp.log(jnp.clip(magnitude, *MAGNITUDE_RANGE))


def log_mel_on_host(audio: Float[np.ndarray, " s"]) -> Float[np.ndarray, "t m"]:
    """Returns the log-mel of audio computed by NumPy in float64, for the threads that read data; see `log_mels`.

    It compiles nothing, so that the length can vary, and starts no threads. The mel matrix has two nonzero weights per
    row; with a sparse product this takes less time than `log_mels` on a CPU.
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
def _sparse_mel_matrix():
    import scipy.sparse  # only to read audio; synthesis starts sooner without it

    return scipy.sparse.csr_array(mel_matrix().T)


def scale_mel(mel: Float[Array | np.ndarray, "*b t m"]) -> Float[Array | np.ndarray, "*b t m"]:
    """Returns the log-mel scaled linearly from [LOG_FLOOR, LOG_CEILING] to [-1, 1], and clipped."""
    return (2.0 * (mel - LOG_FLOOR) / (LOG_CEILING - LOG_FLOOR) - 1.0).clip(-1.0, 1.0)


def unscale_mel(scaled: Float[Array | np.ndarray, "*b t m"]) -> Float[Array | np.ndarray, "*b t m"]:
    """Returns the log-mel that `scale_mel` scales to `scaled`; it is not clipped."""
    return (scaled + 1.0) / 2.0 * (LOG_CEILING - LOG_FLOOR) + LOG_FLOOR
