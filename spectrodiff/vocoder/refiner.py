"""What Griffin-Lim lacks, learnt: from a log-mel the magnitudes of its audio, finer in frequency and in time.

With the true magnitudes on this grid, phases that fit are found almost without error; so what a mel leaves open is
learnt as magnitudes, by plain regression, and phases are left to Griffin-Lim. No network has to emit a waveform, and
none is tied to multiples of the frame rate.
"""

import dataclasses

import gin
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from spectrodiff.audio.mel import MAGNITUDE_RANGE, MEL_BINS, mel_matrix, scale_mel
from spectrodiff.config import MAX_LAYERS, MAX_SIZE, check_whole
from spectrodiff.errors import InputError
from spectrodiff.vocoder.layers import Dense
from spectrodiff.vocoder.magnitudes import interpolate, solve_magnitude
from spectrodiff.vocoder.stft import BINS, FINE

_EXPANSION = 2  # of a block's MLP
_MAX_REACH = 100  # frames that a refiner may wait for before it says anything
_MAX_AGREEMENT = 1000


@gin.register
@dataclasses.dataclass(frozen=True)
class RefinerConfig:
    """The network that gives Griffin-Lim its magnitudes: `layers` blocks, each of which looks at `kernel` frames."""

    width: int = 384
    layers: int = 6
    kernel: int = 7
    # Iterations by which its magnitudes are made to have the mel they were made from; 0 leaves them as they are, for
    # refiners that learnt to mend predicted mels.
    agreement: int = 16

    def __post_init__(self):
        check_whole(self, 1, MAX_SIZE, "width", "kernel")
        check_whole(self, 1, MAX_LAYERS, "layers")
        check_whole(self, 0, _MAX_AGREEMENT, "agreement")
        if self.kernel % 2 == 0:
            raise InputError(f"kernel is {self.kernel}; choose an odd number, as many frames before as after")
        if self.layers * (self.kernel // 2) > _MAX_REACH:
            raise InputError(
                f"{self.layers} layers of kernel {self.kernel} see more than {_MAX_REACH} frames to either side; "
                "choose fewer"
            )


class MLP(nnx.Module):
    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.wi = Dense(width, _EXPANSION * width, rngs=rngs)
        self.wo = Dense(_EXPANSION * width, width, rngs=rngs)

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        return self.wo(jax.nn.gelu(self.wi(x)))


class Block(nnx.Module):
    """A convolution of each channel along time and an MLP beside a shortcut (Liu et al. 2022)."""

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
    """Unscaled log-mel [b, t, MEL_BINS] to log magnitudes [b, t * FINE, BINS] of the `stft` of its audio.

    A frame depends on `receptive_frames` on either side; beyond the ends it sees zeros, as convolutions do.
    """

    def __init__(self, cfg: RefinerConfig, *, rngs: nnx.Rngs):
        self.cfg = cfg
        self.enter = Dense(MEL_BINS, cfg.width, rngs=rngs)
        self.blocks = nnx.List(Block(cfg, rngs=rngs) for _ in range(cfg.layers))
        self.norm = nnx.RMSNorm(cfg.width, epsilon=1e-6, rngs=rngs)
        self.leave = Dense(cfg.width, FINE * BINS, scale=0.1, rngs=rngs)

    def __call__(self, mel: Float[Array, "b t m"]) -> Float[Array, "b n f"]:
        x = self.enter(scale_mel(mel))
        for block in self.blocks:
            x = block(x)
        details = self.leave(self.norm(x)).reshape(*mel.shape[:2], FINE, BINS)
        return (spread_over_bins(mel)[:, :, None] + details).reshape(mel.shape[0], -1, BINS)

    def magnitudes(self, mel: Float[Array, "t m"]) -> Float[Array, "n f"]:
        """What Griffin-Lim plays: magnitudes that have been made to agree with the mel, where the config says so."""
        magnitude = jnp.exp(self(mel[None])[0])
        return agree(magnitude, mel, self.cfg.agreement) if self.cfg.agreement else magnitude


def receptive_frames(cfg: RefinerConfig) -> int:
    """How many mel frames before or after its own a frame depends on."""
    return cfg.layers * (cfg.kernel // 2)


def spread_over_bins(mel: Float[Array, "b t m"]) -> Float[Array, "b t f"]:
    """Log magnitudes as smooth as a mel allows: each bin holds the mean of the mel bins that it is part of."""
    matrix = mel_matrix().astype(np.float32)
    level = (jnp.exp(mel) / (matrix.sum(0) + 1e-9)) @ matrix.T / (matrix.sum(1) + 1e-9)
    return jnp.log(level + MAGNITUDE_RANGE[0])


def agree(magnitude: Float[Array, "n f"], mel: Float[Array, "t m"], iterations: int) -> Float[Array, "n f"]:
    """Magnitudes turned up and down, smoothly, until those of the mel's own frames have that mel.

    Every FINE-th frame is a mel frame; those between take the factors that lie between its and the next one's, in log.
    """
    own = magnitude[::FINE] + 1e-9
    solved = solve_magnitude(jnp.exp(mel), own, iterations=iterations)
    return magnitude * jnp.exp(interpolate(jnp.log(solved + 1e-9) - jnp.log(own)))
