"""The refiner: a network from log-mels to STFT magnitudes, finer in frequency and time, for Griffin-Lim.

From the true magnitudes at this resolution, Griffin-Lim finds phases almost without error. So the network is trained to
predict magnitudes by regression, and does not have to generate a waveform.
"""

import dataclasses
import math

import gin
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from spectrodiff.audio.mel import MAGNITUDE_RANGE, MEL_BINS, mel_matrix, scale_mel
from spectrodiff.config import MAX_LAYERS, MAX_SIZE, check_whole
from spectrodiff.errors import InputError
from spectrodiff.models.layers import Dense
from spectrodiff.vocoder.magnitudes import match_mel
from spectrodiff.vocoder.stft import BINS, FINE

_EXPANSION = 2  # of a block's MLP
_MAX_RECEPTIVE_FIELD = 100  # frames per side, for which a stream has to wait
_MAX_AGREEMENT = 1000


@gin.register
@dataclasses.dataclass(frozen=True)
class RefinerConfig:
    """The config of `Refiner`: `layers` blocks with convolutions over `kernel` frames.

    `agreement` is the number of iterations of `match_mel` that fit magnitudes to the mel; 0 turns that off, for
    refiners that were trained on predicted mels.
    """

    width: int = 384
    layers: int = 6
    kernel: int = 7
    agreement: int = 16

    def __post_init__(self):
        check_whole(self, 1, MAX_SIZE, "width", "kernel")
        check_whole(self, 1, MAX_LAYERS, "layers")
        check_whole(self, 0, _MAX_AGREEMENT, "agreement")
        if self.kernel % 2 == 0:
            raise InputError(f"kernel is {self.kernel}; choose an odd number")
        if self.layers * (self.kernel // 2) > _MAX_RECEPTIVE_FIELD:
            raise InputError(
                f"{self.layers} layers of kernel {self.kernel} have a receptive field of over {_MAX_RECEPTIVE_FIELD} "
                "frames per side; choose fewer"
            )


class MLP(nnx.Module):
    """A feed-forward layer with GELU."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.wi = Dense(width, _EXPANSION * width, rngs=rngs)
        self.wo = Dense(_EXPANSION * width, width, rngs=rngs)

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        return self.wo(jax.nn.gelu(self.wi(x)))


class Block(nnx.Module):
    """A residual block of a depthwise convolution along time and an MLP, as in ConvNeXt (Liu et al. 2022)."""

    def __init__(self, cfg: RefinerConfig, *, rngs: nnx.Rngs):
        self.taps = nnx.Param(jax.random.normal(rngs.params(), (cfg.kernel, cfg.width)) / np.sqrt(cfg.kernel))
        self.norm = nnx.RMSNorm(cfg.width, epsilon=1e-6, rngs=rngs)
        self.mlp = MLP(cfg.width, rngs=rngs)

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        taps, frames = self.taps[...], x.shape[1]
        padded = jnp.pad(x, ((0, 0), (len(taps) // 2, len(taps) // 2), (0, 0)))
        mixed = sum(padded[:, k : k + frames] * tap for k, tap in enumerate(taps))
        return x + self.mlp(self.norm(mixed))


class Refiner(nnx.Module):
    """A network from unscaled log-mel [b, t, MEL_BINS] to the log magnitudes [b, t * FINE, BINS] of `stft`.

    Convolutions pad with zeros.
    """

    def __init__(self, cfg: RefinerConfig, *, rngs: nnx.Rngs):
        self.cfg = cfg
        self.enter = Dense(MEL_BINS, cfg.width, rngs=rngs)
        self.blocks = nnx.List(Block(cfg, rngs=rngs) for _ in range(cfg.layers))
        self.norm = nnx.RMSNorm(cfg.width, epsilon=1e-6, rngs=rngs)
        small = nnx.initializers.normal(0.1 / math.sqrt(cfg.width))
        self.leave = Dense(cfg.width, FINE * BINS, kernel_init=small, rngs=rngs)

    def __call__(self, mel: Float[Array, "b t m"]) -> Float[Array, "b n f"]:
        x = self.enter(scale_mel(mel))
        for block in self.blocks:
            x = block(x)
        details = self.leave(self.norm(x)).reshape(*mel.shape[:2], FINE, BINS)
        return (spread_over_bins(mel)[:, :, None] + details).reshape(mel.shape[0], -1, BINS)

    def magnitudes(self, mel: Float[Array, "t m"]) -> Float[Array, "n f"]:
        """Returns magnitudes for Griffin-Lim, fitted to the mel if the config's `agreement` is above 0."""
        magnitude = jnp.exp(self(mel[None])[0])
        return match_mel(magnitude, mel, self.cfg.agreement) if self.cfg.agreement else magnitude


def receptive_frames(cfg: RefinerConfig) -> int:
    """Returns the receptive field: the number of mel frames on either side that a frame depends on."""
    return cfg.layers * (cfg.kernel // 2)


def spread_over_bins(mel: Float[Array, "b t m"]) -> Float[Array, "b t f"]:
    """Returns smooth log magnitudes of a mel: each FFT bin has the weighted mean of the mel bins it is part of."""
    matrix = mel_matrix().astype(np.float32)
    level = (jnp.exp(mel) / (matrix.sum(0) + 1e-9)) @ matrix.T / (matrix.sum(1) + 1e-9)
    return jnp.log(level + MAGNITUDE_RANGE[0])
