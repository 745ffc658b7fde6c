"""Discriminators for adversarial training of a vocoder: of waveforms at several rates, and of several STFTs.

Each returns the features of all of its layers, for feature matching (Kumar et al. 2019). The features of the last layer
are the discriminator's output: scores of places in the audio, which are higher the more real the audio seems there.
"""

import dataclasses
from collections.abc import Sequence

import gin
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from spectrodiff.config import MAX_SIZE, check_whole, is_whole
from spectrodiff.errors import InputError
from spectrodiff.vocoder.layers import Conv, leaky
from spectrodiff.vocoder.losses import FLOOR, complex_stft

Audio = Float[Array, "b s"]
Features = list[jax.Array]  # of each layer, [b, time, channels] or [b, time, frequency, channels]

_LOG_MEAN, _LOG_STD = -7.0, 2.5  # roughly those of the log magnitudes of rendered music, in nats
_POOLING = 4  # samples of a waveform averaged to one of the next waveform, which has half the sample rate


@gin.register
@dataclasses.dataclass(frozen=True)
class DiscriminatorConfig:
    """The config of `Discriminators`.

    There are `scales` discriminators of waveforms, each at half the sample rate of the one before, and one of STFTs for
    each of `windows`, in samples. `wave_channels` and `spectrum_channels` are the widths of their first layers. `patch`
    is the number of frequency bins that the first convolution of a discriminator of STFTs reduces to one. By default
    the discriminator is that of Défossez et al. (2022), three of whose convolutions halve the number of bins.
    """

    scales: int = 3
    wave_channels: int = 16
    windows: Sequence[int] = (512, 1024, 2048)
    spectrum_channels: int = 32
    patch: int | None = None

    def __post_init__(self):
        object.__setattr__(self, "windows", tuple(self.windows))
        check_whole(self, 0, 16, "scales")
        check_whole(self, 1, MAX_SIZE, "wave_channels", "spectrum_channels")
        if self.patch is not None:
            check_whole(self, 1, 256, "patch")
        if self.wave_channels % 4:
            raise InputError(f"wave_channels is {self.wave_channels}; choose a multiple of 4, the size of a group")
        if not all(is_whole(window, 16) and window % 4 == 0 for window in self.windows):
            raise InputError(f"windows is {self.windows}; choose multiples of 4 samples, 16 or more")
        if not self.scales and not self.windows:
            raise InputError("there is no discriminator: choose scales above 0, or windows")


class WaveDiscriminator(nnx.Module):
    """A discriminator of waveforms with an output every 256 samples and a receptive field of 0.3 s.

    It has wide kernels, strides of 4 and groups of 4 channels. With `channels` 16 it is that of Kumar et al. (2019),
    except that it has at most 256 channels, not 1024.
    """

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.enter = Conv(1, channels, 15, rngs=rngs)
        self.strided = nnx.List()
        inputs = channels
        for _ in range(4):
            outputs = min(4 * inputs, 16 * channels)
            self.strided.append(Conv(inputs, outputs, 41, strides=(4,), groups=max(1, inputs // 4), rngs=rngs))
            inputs = outputs
        self.last = Conv(inputs, inputs, 5, rngs=rngs)
        self.verdict = Conv(inputs, 1, 3, rngs=rngs)

    def __call__(self, audio: Audio) -> Features:
        x, features = audio[..., None], []
        for layer in (self.enter, *self.strided, self.last):
            x = leaky(layer(x))
            features.append(x)
        return [*features, self.verdict(x)]


class SpectrumDiscriminator(nnx.Module):
    """A discriminator of patches of a complex STFT with `window` samples per frame (Défossez et al. 2022).

    With `patch`, the first convolution reduces that many bins to one, and the others keep the number of bins. On a CPU,
    the gradient takes half as long with 32 channels and a patch of 8 bins as with 8 channels and no patch.
    """

    def __init__(self, window: int, channels: int, patch: int | None = None, *, rngs: nnx.Rngs):
        self.window = window
        if patch is None:
            first = Conv(3, channels, 3, 9, rngs=rngs)
            others = [Conv(channels, channels, 3, 9, strides=(1, 2), rngs=rngs) for _ in range(3)]
        else:
            first = Conv(3, channels, 3, patch, strides=(1, patch), rngs=rngs)
            others = [Conv(channels, channels, 3, 3, rngs=rngs) for _ in range(2)]
        self.layers = nnx.List([first, *others, Conv(channels, channels, 3, 3, rngs=rngs)])
        self.verdict = Conv(channels, 1, 3, 3, rngs=rngs)

    def __call__(self, audio: Audio) -> Features:
        spectrum = complex_stft(audio, self.window)
        magnitude = jnp.sqrt(jnp.square(spectrum.real) + jnp.square(spectrum.imag) + FLOOR**2)
        # Log magnitudes, and phases as unit vectors: in a linear spectrum the loudest partials would dominate.
        level = (jnp.log(magnitude) - _LOG_MEAN) / _LOG_STD
        x = jnp.stack([level, spectrum.real / magnitude, spectrum.imag / magnitude], axis=-1)
        features = []
        for layer in self.layers:
            x = leaky(layer(x))
            features.append(x)
        return [*features, self.verdict(x)]


class Discriminators(nnx.Module):
    """All discriminators. A call returns the features of each, those of STFTs first."""

    def __init__(self, cfg: DiscriminatorConfig, *, rngs: nnx.Rngs):
        self.waves = nnx.List(WaveDiscriminator(cfg.wave_channels, rngs=rngs) for _ in range(cfg.scales))
        self.spectra = nnx.List(
            SpectrumDiscriminator(window, cfg.spectrum_channels, cfg.patch, rngs=rngs) for window in cfg.windows
        )

    def __call__(self, audio: Audio) -> list[Features]:
        features = [discriminator(audio) for discriminator in self.spectra]
        for discriminator in self.waves:
            features.append(discriminator(audio))
            audio = nnx.avg_pool(jnp.pad(audio, ((0, 0), (1, 1)))[..., None], (_POOLING,), strides=(2,))[..., 0]
        return features
