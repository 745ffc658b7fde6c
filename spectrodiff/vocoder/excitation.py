"""The audio of Griffin-Lim as an input of a generator: features of it, and the correction of its STFT."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from spectrodiff.audio.mel import HOP, WINDOW
from spectrodiff.vocoder.layers import Conv, leaky
from spectrodiff.vocoder.magnitudes import interpolate
from spectrodiff.vocoder.stft import BINS, FINE_HOP, istft, stft

Audio = Float[Array, "b s"]
# Mel frames on either side of a frame that its features depend on, and that share an STFT frame with a sample of it.
REACH = 4
CORRECTION_REACH = -(-WINDOW // HOP)
_FULL_SCALE = 160.0  # the STFT magnitude of a sine of amplitude 1
# Relative to the level of the mel (`mel_level`): audio is clipped to _CLIP, and magnitudes are raised by _FLOOR.
_CLIP = 8.0
_FLOOR = 1e-4


class Analysis(nnx.Module):
    """A network that computes features of audio at each time resolution of a generator.

    The generator upsamples from the frame rate by `factors` to steps of FINE_HOP samples, and has `widths` channels at
    each resolution, one more than there are factors. At the highest one, the features are the sum of a strided
    convolution of the waveform and a projection of the log magnitudes of its STFT. Strided convolutions compute the
    features of lower resolutions from those.
    """

    def __init__(self, widths: Sequence[int], factors: Sequence[int], *, rngs: nnx.Rngs):
        self.wave = Conv(1, widths[-1], 2 * FINE_HOP, strides=(FINE_HOP,), rngs=rngs)
        self.spectrum = Conv(BINS, widths[-1], 1, rngs=rngs)
        self.downsamplers = nnx.List(
            Conv(widths[stage + 1], widths[stage], 2 * factors[stage], strides=(factors[stage],), rngs=rngs)
            for stage in reversed(range(len(factors)))
        )

    def __call__(self, audio: Audio, level: Audio) -> list[Float[Array, "b _t _d"]]:
        """Returns the features at each resolution, from the frame rate up.

        `audio` and `level` are [b, s], where the level is that of `mel_level`, by which the audio is normalised.
        """
        wave = jnp.clip(audio / level, -_CLIP, _CLIP)[..., None]
        magnitude = jnp.abs(spectra(audio)) / _FULL_SCALE
        relative = jnp.log(magnitude / level[:, ::FINE_HOP, None] + _FLOOR)
        features = [self.wave(wave) + self.spectrum(relative)]
        for downsample in self.downsamplers:
            features.append(downsample(leaky(features[-1])))
        return features[::-1]


def spectra(audio: Audio) -> jax.Array:
    """Returns the STFT [b, s / FINE_HOP, BINS] of audio that is followed by silence; frame i starts at FINE_HOP * i."""
    return jax.vmap(stft)(jnp.pad(audio, ((0, 0), (0, WINDOW - FINE_HOP))))


def correct(audio: Audio, gains: Float[Array, "b n g"]) -> Audio:
    """Returns `audio` [b, s] with each bin of its STFT multiplied by 1 + a complex gain.

    `gains` [b, s / FINE_HOP, 2 * BINS] are the real and then the imaginary parts. The correction is faded in over the
    first WINDOW samples, which are in fewer frames than later ones.
    """
    real, imaginary = jnp.split(gains, 2, axis=-1)
    return audio + jax.vmap(istft)(jax.lax.complex(real, imaginary) * spectra(audio))[:, : audio.shape[1]]


def mel_level(mel: Float[Array, "b t m"]) -> Audio:
    """Returns the amplitude of a sine as loud as the loudest bin of a mel, at each of s = t * HOP samples.

    Each frame has the maximum of itself and its two neighbours, so that the level is not low just before an attack.
    Samples are interpolated between frames.
    """
    largest = jnp.pad(mel.max(axis=-1), ((0, 0), (1, 1)), mode="edge")
    largest = jnp.maximum(jnp.maximum(largest[:, :-2], largest[:, 2:]), largest[:, 1:-1])
    return interpolate(jnp.exp(largest).T / _FULL_SCALE, HOP).T
