"""The losses of vocoder training, as named terms whose weights are set in a config."""

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
STFT_WINDOWS = (512, 1024, 2048)  # samples; the hop of each is a quarter of it
MEL_SCALES = {256: 20, 512: 40, 1024: 80, 2048: 160}  # mel bins of each window (Kumar et al. 2023)
QUIET = 1e-3  # magnitude added to the norm of each frame, so that silence does not dominate relative distances
FLOOR = 1e-5  # magnitude, relative to full scale, that keeps logarithms and their gradients finite
AUDIBLE = 1e-4  # -80 dB, relative to the loudest bin of a crop
HISS = 1e-3  # QUIET and FLOOR for the magnitudes of `stft`: 104 dB below a full-scale sine, whose magnitude is 160


def spectral_losses(audio: Audio, reference: Audio) -> dict[str, Float[Array, ""]]:
    """Returns the loss terms that need no discriminator, averaged over a batch of crops of at least 2048 samples.

    `log_magnitude` and `convergence` are the multi-resolution STFT losses of Yamamoto et al. (2020): the mean absolute
    difference of log magnitudes in nats, and the relative distance of magnitudes. `mel` is the mean absolute difference
    of log-mels over MEL_SCALES, in nats. Differences of logarithms ignore what is 80 dB below the loudest of a crop;
    otherwise their gradients would be mainly those of inaudible bins.
    """

    def log_difference(ours: jax.Array, theirs: jax.Array) -> jax.Array:
        floor = jnp.maximum(AUDIBLE * theirs.max(axis=(1, 2), keepdims=True), FLOOR)
        return jnp.abs(jnp.log(ours + floor) - jnp.log(theirs + floor)).mean()

    terms = {"log_magnitude": 0.0, "convergence": 0.0, "mel": 0.0}
    for window in STFT_WINDOWS:
        ours, theirs = magnitudes(audio, window), magnitudes(reference, window)
        terms["log_magnitude"] += log_difference(ours, theirs) / len(STFT_WINDOWS)
        distance = jnp.sqrt(jnp.square(ours - theirs).sum(axis=(1, 2)) + FLOOR**2)
        loudness = jnp.sqrt(jnp.square(theirs).sum(axis=(1, 2)) + theirs.shape[1] * QUIET**2)
        terms["convergence"] += (distance / loudness).mean() / len(STFT_WINDOWS)
    for window, bins in MEL_SCALES.items():
        matrix = mel_matrix(window, bins).astype(np.float32)
        ours, theirs = (magnitudes(x, window) @ matrix for x in (audio, reference))
        terms["mel"] += log_difference(ours, theirs) / len(MEL_SCALES)
    return terms


@gin.register
def least_squares(real: jax.Array, made: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the losses of discriminator and generator from outputs on real and made audio (Mao et al. 2017)."""
    return jnp.square(real - 1.0).mean() + jnp.square(made).mean(), jnp.square(made - 1.0).mean()


@gin.register
def hinge(real: jax.Array, made: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the hinge losses of the discriminator and of the generator; see `least_squares`."""
    return jax.nn.relu(1.0 - real).mean() + jax.nn.relu(1.0 + made).mean(), -made.mean()


@gin.register
def relativistic(real: jax.Array, made: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the losses of a relativistic GAN (Jolicoeur-Martineau 2019); see `least_squares`.

    They depend, at each place, on the difference of the discriminator's outputs on real and made audio. Both are audio
    of the same mel, so that the influence of the music on the outputs cancels.
    """
    return jax.nn.softplus(made - real).mean(), jax.nn.softplus(real - made).mean()


def adversarial_losses(
    real: Sequence[Sequence[jax.Array]], made: Sequence[Sequence[jax.Array]], verdict_loss: VerdictLoss = least_squares
) -> dict[str, Float[Array, ""]]:
    """Returns the loss terms that depend on discriminators, each averaged over the discriminators.

    `real` and `made` are features of recordings and of generated audio, by discriminator and layer, the output last.
    `discriminator` and `adversarial` are the losses that `verdict_loss` returns, and `features` is the mean absolute
    difference of the other layers (feature matching). The caller has to stop gradients where necessary.
    """
    terms = {"discriminator": 0.0, "adversarial": 0.0, "features": 0.0}
    for (*layers, truth), (*made_layers, verdict) in zip(real, made, strict=True):
        discriminator, generator = verdict_loss(truth, verdict)
        difference = sum(jnp.abs(a - b).mean() for a, b in zip(layers, made_layers, strict=True)) / len(layers)
        for name, value in (("discriminator", discriminator), ("adversarial", generator), ("features", difference)):
            terms[name] += value / len(real)
    return terms


def magnitude_losses(
    log_magnitude: Float[Array, "b n f"], reference: Float[Array, "b n f"]
) -> dict[str, Float[Array, ""]]:
    """Returns the distances of estimated log magnitudes from the magnitudes of a reference, of frames of `stft`.

    `log_magnitude` is the mean absolute difference in nats, ignoring what is 80 dB below the loudest bin of a crop.
    `convergence` is the relative distance of magnitudes.
    """
    floor = jnp.maximum(AUDIBLE * reference.max(axis=(1, 2), keepdims=True), HISS)
    ours = jnp.exp(log_magnitude)
    difference = jnp.log(ours + floor) - jnp.log(reference + floor)
    distance = jnp.sqrt(jnp.square(ours - reference).sum(axis=(1, 2)) + HISS**2)
    loudness = jnp.sqrt(jnp.square(reference).sum(axis=(1, 2)) + reference.shape[1] * HISS**2)
    return {"log_magnitude": jnp.abs(difference).mean(), "convergence": (distance / loudness).mean()}


def total(terms: Mapping[str, Float[Array, ""]], weights: Mapping[str, float]) -> Float[Array, ""]:
    """Returns the weighted sum of terms; those without a weight do not count.

    Raises:
      InputError: there is a weight without a term.
    """
    if unknown := sorted(weights.keys() - terms.keys()):
        raise InputError(f"loss_weights name {', '.join(unknown)}; the terms are {', '.join(terms)}")
    return sum(weight * terms[name] for name, weight in weights.items())


def magnitudes(audio: Audio, window: int) -> Float[Array, "b t f"]:
    """Returns Hann STFT magnitudes of at least FLOOR, 1 for a full-scale sine; they are differentiable everywhere."""
    spectrum = complex_stft(audio, window)
    return jnp.sqrt(jnp.square(spectrum.real) + jnp.square(spectrum.imag) + FLOOR**2)


def complex_stft(audio: Audio, window: int) -> Complex[Array, "b t f"]:
    """Returns the Hann STFT of whole frames with a hop of a quarter window; a full-scale sine has magnitude 1."""
    hop = window // 4
    blocks = audio[:, : audio.shape[1] // hop * hop].reshape(len(audio), -1, hop)
    frames = blocks.shape[1] - 3
    framed = jnp.concatenate([blocks[:, k : k + frames] for k in range(4)], axis=2)
    framed *= (hann(window) / (window / 4)).astype(np.float32)
    return jnp.fft.rfft(framed)
