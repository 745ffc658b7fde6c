"""What a generator is told about its audio: named terms here, their weights in a config."""

from collections.abc import Callable, Mapping, Sequence

import gin
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

from spectrodiff.audio.mel import hann, mel_matrix
from spectrodiff.errors import InputError

Audio = Float[Array, "b s"]
VerdictLoss = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
STFT_WINDOWS = (512, 1024, 2048)  # samples; hops are a quarter of them
MEL_SCALES = {256: 20, 512: 40, 1024: 80, 2048: 160}  # window: mel bins, coarse where frequency is (Kumar et al. 2023)
QUIET = 1e-3  # per frame: distances relative to anything softer would be ruled by silence
FLOOR = 1e-5  # full scale is 1: keeps logarithms and their gradients finite in silence
AUDIBLE = 1e-4  # of the loudest bin of a crop: what is 80 dB under it is not heard
HISS = 1e-3  # 104 dB under a full-scale sine, on the scale of `stft`, where that has 160


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


@gin.register
def least_squares(real: jax.Array, made: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What verdicts on real and on made audio cost their discriminator, and the generator (Mao et al. 2017)."""
    return jnp.square(real - 1.0).mean() + jnp.square(made).mean(), jnp.square(made - 1.0).mean()


@gin.register
def hinge(real: jax.Array, made: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The same, but a discriminator that is sure enough learns no more, and the generator is never believed enough."""
    return jax.nn.relu(1.0 - real).mean() + jax.nn.relu(1.0 + made).mean(), -made.mean()


def adversarial_losses(
    real: Sequence[Sequence[jax.Array]], made: Sequence[Sequence[jax.Array]], verdict_loss: VerdictLoss = least_squares
) -> dict[str, Float[Array, ""]]:
    """What features of recordings and of generated audio, by discriminator and layer, the verdict last, say to both:

    `discriminator`: how badly verdicts tell one from the other. `adversarial`: how little the generator is believed.
    `features`: mean absolute difference of all other layers. Each is a mean over discriminators. Whose parameters a
    term may move is the caller's to say, by stopping gradients.
    """
    terms = {"discriminator": 0.0, "adversarial": 0.0, "features": 0.0}
    for (*layers, truth), (*made_layers, verdict) in zip(real, made, strict=True):
        told, believed = verdict_loss(truth, verdict)
        apart = sum(jnp.abs(a - b).mean() for a, b in zip(layers, made_layers, strict=True)) / len(layers)
        for name, value in (("discriminator", told), ("adversarial", believed), ("features", apart)):
            terms[name] += value / len(real)
    return terms


def magnitude_losses(
    log_magnitude: Float[Array, "b n f"], reference: Float[Array, "b n f"]
) -> dict[str, Float[Array, ""]]:
    """How far log magnitudes are from true magnitudes of frames of `stft`, a batch of crops:

    `log_magnitude`: mean absolute difference in nats, of what is less than 80 dB under the loudest of its crop.
    `convergence`: distance of magnitudes relative to the true ones.
    """
    floor = jnp.maximum(AUDIBLE * reference.max(axis=(1, 2), keepdims=True), HISS)
    ours = jnp.exp(log_magnitude)
    difference = jnp.log(ours + floor) - jnp.log(reference + floor)
    distance = jnp.sqrt(jnp.square(ours - reference).sum(axis=(1, 2)) + HISS**2)
    loudness = jnp.sqrt(jnp.square(reference).sum(axis=(1, 2)) + reference.shape[1] * HISS**2)
    return {"log_magnitude": jnp.abs(difference).mean(), "convergence": (distance / loudness).mean()}


def total(terms: Mapping[str, Float[Array, ""]], weights: Mapping[str, float]) -> Float[Array, ""]:
    """The weighted sum; a term without a weight is only reported.

    Raises:
      InputError: a weight names no term, which would otherwise train nothing, silently.
    """
    if unknown := sorted(weights.keys() - terms.keys()):
        raise InputError(f"loss_weights name {', '.join(unknown)}; the terms are {', '.join(terms)}")
    return sum(weight * terms[name] for name, weight in weights.items())


def magnitudes(audio: Audio, window: int) -> Float[Array, "b t f"]:
    """Hann STFT magnitudes, a full-scale sine peaking at 1, never under FLOOR; with gradients everywhere."""
    spectrum = complex_stft(audio, window)
    return jnp.sqrt(jnp.square(spectrum.real) + jnp.square(spectrum.imag) + FLOOR**2)


def complex_stft(audio: Audio, window: int) -> Complex[Array, "b t f"]:
    """Hann STFT of whole frames, a quarter of a window apart; a full-scale sine peaks at 1."""
    hop = window // 4
    blocks = audio[:, : audio.shape[1] // hop * hop].reshape(len(audio), -1, hop)
    frames = blocks.shape[1] - 3
    framed = jnp.concatenate([blocks[:, k : k + frames] for k in range(4)], axis=2)
    framed *= (hann(window) / (window / 4)).astype(np.float32)
    return jnp.fft.rfft(framed)
