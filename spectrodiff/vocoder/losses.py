"""What a generator is told about its audio: named terms here, their weights in a config."""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from spectrodiff.audio.mel import hann, mel_matrix

Audio = Float[Array, "b s"]
STFT_WINDOWS = (512, 1024, 2048)  # samples; hops are a quarter of them
MEL_SCALES = {256: 20, 512: 40, 1024: 80, 2048: 160}  # window: mel bins, coarse where frequency is (Kumar et al. 2023)
QUIET = 1e-3  # per frame: distances relative to anything softer would be ruled by silence
AUDIBLE = 1e-4  # of the loudest bin: what is 80 dB under it is not heard
FLOOR = 1e-5  # full scale is 1: keeps logarithms and their gradients finite in silence


def spectral_losses(audio: Audio, reference: Audio) -> dict[str, Float[Array, ""]]:
    """The terms that need no discriminator, each a mean over a batch of crops of at least 2048 samples:

    `log_magnitude` and `convergence`, the multi-resolution STFT losses of Yamamoto et al. (2020): mean absolute
    difference of log magnitudes in nats, and relative distance of magnitudes.
    `mel`: mean absolute difference of log-mels over MEL_SCALES, in nats.
    """
    terms = {"log_magnitude": 0.0, "convergence": 0.0, "mel": 0.0}
    for window in STFT_WINDOWS:
        ours, theirs = magnitudes(audio, window), magnitudes(reference, window)
        terms["log_magnitude"] += jnp.abs(jnp.log(ours) - jnp.log(theirs)).mean() / len(STFT_WINDOWS)
        distance = jnp.sqrt(jnp.square(ours - theirs).sum(axis=(1, 2)) + FLOOR**2)
        loudness = jnp.sqrt(jnp.square(theirs).sum(axis=(1, 2)) + theirs.shape[1] * QUIET**2)
        terms["convergence"] += (distance / loudness).mean() / len(STFT_WINDOWS)
    for window, bins in MEL_SCALES.items():
        matrix = mel_matrix(window, bins).astype(np.float32)
        ours, theirs = (jnp.log(magnitudes(x, window) @ matrix + FLOOR) for x in (audio, reference))
        terms["mel"] += jnp.abs(ours - theirs).mean() / len(MEL_SCALES)
    return terms


def magnitude_losses(
    log_magnitude: Float[Array, "b n f"], reference: Float[Array, "b n f"]
) -> dict[str, Float[Array, ""]]:
    """How far log magnitudes are from true magnitudes of frames of `stft`, a batch of crops:

    `log_magnitude`: mean absolute difference in nats, of what is less than 80 dB under the loudest of its crop.
    `convergence`: distance of magnitudes relative to the true ones.
    """
    floor = jnp.maximum(AUDIBLE * reference.max(axis=(1, 2), keepdims=True), QUIET)
    ours = jnp.exp(log_magnitude)
    difference = jnp.log(ours + floor) - jnp.log(reference + floor)
    distance = jnp.sqrt(jnp.square(ours - reference).sum(axis=(1, 2)) + FLOOR**2)
    loudness = jnp.sqrt(jnp.square(reference).sum(axis=(1, 2)) + reference.shape[1] * QUIET**2)
    return {"log_magnitude": jnp.abs(difference).mean(), "convergence": (distance / loudness).mean()}


def total(terms: Mapping[str, Float[Array, ""]], weights: Mapping[str, float]) -> Float[Array, ""]:
    """The weighted sum; a term without a weight is only reported.

    Raises:
      KeyError: a weight names no term, which would otherwise train nothing, silently.
    """
    return sum(weight * terms[name] for name, weight in weights.items())


def magnitudes(audio: Audio, window: int) -> Float[Array, "b t f"]:
    """Hann STFT magnitudes, a full-scale sine peaking at 1, never under FLOOR; with gradients everywhere."""
    hop = window // 4
    blocks = audio[:, : audio.shape[1] // hop * hop].reshape(len(audio), -1, hop)
    frames = blocks.shape[1] - 3
    framed = jnp.concatenate([blocks[:, k : k + frames] for k in range(4)], axis=2)
    framed *= (hann(window) / (window / 4)).astype(np.float32)
    spectrum = jnp.fft.rfft(framed)
    return jnp.sqrt(jnp.square(spectrum.real) + jnp.square(spectrum.imag) + FLOOR**2)
