"""The audio of Griffin-Lim as an input of a generator: its analysis, and its correction."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from spectrodiff.audio.mel import HOP, WINDOW
from spectrodiff.vocoder.layers import Conv, leaky
from spectrodiff.vocoder.stft import BINS, FINE_HOP, istft, stft

Audio = Float[Array, "b s"]
REACH = 4  # frames on either side that the features of a frame depend on
CORRECTION_REACH = -(-WINDOW // HOP)  # frames on either side that are in an STFT frame with a sample
_FULL_SCALE = 160.0  # the STFT magnitude of a sine of amplitude 1
_CLIP = 8.0  # times the level of the mel, above which audio is clipped before it is analysed
_FLOOR = 1e-4  # of the level of the mel, below which magnitudes are not told apart


class Analysis(nnx.Module):
    """Features of audio at the rates of a generator, whose `widths` are given from the frame rate up.

    At the highest rate, a step of FINE_HOP samples, they are the sum of a strided convolution of the waveform and a
    projection of the log magnitudes of its STFT. Strided convolutions make those of lower rates from them.
    """

    def __init__(self, widths: Sequence[int], factors: Sequence[int], *, rngs: nnx.Rngs):
        self.wave = Conv(1, widths[-1], 2 * FINE_HOP, strides=(FINE_HOP,), rngs=rngs)
        self.spectrum = Conv(BINS, widths[-1], 1, rngs=rngs)
        self.downsamplers = nnx.List(
            Conv(widths[stage + 1], widths[stage], 2 * factors[stage], strides=(factors[stage],), rngs=rngs)
            for stage in reversed(range(len(factors)))
        )

    def __call__(self, audio: Audio, level: Audio) -> list[Float[Array, "b _t _d"]]:
        """Returns the features, from the frame rate up. `level` is the amplitude of a loud sine at each sample."""
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
    """Returns audio with each bin of its STFT multiplied by 1 + a complex gain.

    `gains` [b, s / FINE_HOP, 2 * BINS] are the real and the imaginary parts. The correction is faded in over the first
    WINDOW samples, before which no frames start.
    """
    real, imaginary = jnp.split(gains, 2, axis=-1)
    return audio + jax.vmap(istft)(jax.lax.complex(real, imaginary) * spectra(audio))[:, : audio.shape[1]]


def mel_level(mel: Float[Array, "b t m"]) -> Audio:
    """Returns the amplitude of a sine with the largest magnitude of a mel, interpolated between frames.

    Each frame has the maximum of itself and its two neighbours, so that it is not low before an attack.
    """
    largest = jnp.pad(mel.max(axis=-1), ((0, 0), (1, 1)), mode="edge")
    largest = jnp.maximum(jnp.maximum(largest[:, :-2], largest[:, 2:]), largest[:, 1:-1])
    return interpolate_frames(jnp.exp(largest) / _FULL_SCALE)


def interpolate_frames(frames: Float[Array, "b t"]) -> Audio:
    """Returns HOP samples for each frame, from its value towards that of the next one; the last one is repeated."""
    following = jnp.concatenate([frames[:, 1:], frames[:, -1:]], axis=1)
    fraction = jnp.arange(HOP) / HOP
    return ((1 - fraction) * frames[..., None] + fraction * following[..., None]).reshape(len(frames), -1)
