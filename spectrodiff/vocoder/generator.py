"""The MelGAN generator (Kumar et al. 2019): log-mel to audio in one pass of convolutions."""

import math

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from spectrodiff.audio.mel import HOP, MEL_BINS, scale_mel
from spectrodiff.config import GeneratorConfig
from spectrodiff.errors import InputError

EDGE_KERNEL = 7  # of the first and the last convolution
KERNEL = 3  # of the residual stacks' dilated convolutions


class Conv(nnx.Module):
    """A convolution along time with weight normalisation (Salimans & Kingma 2016): direction and gain learn apart.

    With `upsampling` it is transposed, and its output that many times longer.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, dilation: int = 1, upsampling: int = 1, rngs: nnx.Rngs
    ):
        self.dilation = dilation
        self.upsampling = upsampling
        taps = inputs * kernel / upsampling  # what one output adds up
        direction = jax.random.normal(rngs.params(), (kernel, inputs, outputs)) / np.sqrt(taps)
        self.direction = nnx.Param(direction)
        self.gain = nnx.Param(jnp.linalg.norm(direction, axis=(0, 1)))
        self.bias = nnx.Param(jnp.zeros(outputs))

    def __call__(self, x: Float[Array, "b t i"]) -> Float[Array, "b s o"]:
        direction = self.direction[...]
        norm = jnp.sqrt(jnp.square(direction).sum(axis=(0, 1)) + 1e-12)
        kernel = direction * (self.gain[...] / norm)
        axes = ("NTC", "TIO", "NTC")
        if self.upsampling > 1:
            y = jax.lax.conv_transpose(x, kernel, (self.upsampling,), "SAME", dimension_numbers=axes)
        else:
            y = jax.lax.conv_general_dilated(
                x, kernel, (1,), "SAME", rhs_dilation=(self.dilation,), dimension_numbers=axes
            )
        return y + self.bias[...]


class ResidualBlock(nnx.Module):
    """A dilated convolution and a pointwise one beside a shortcut."""

    def __init__(self, channels: int, dilation: int, *, rngs: nnx.Rngs):
        self.dilated = Conv(channels, channels, KERNEL, dilation=dilation, rngs=rngs)
        self.pointwise = Conv(channels, channels, 1, rngs=rngs)

    def __call__(self, x: Float[Array, "b s d"]) -> Float[Array, "b s d"]:
        return x + self.pointwise(_activation(self.dilated(_activation(x))))


class Generator(nnx.Module):
    """Unscaled log-mel [b, t, MEL_BINS] to audio [b, t * HOP] between -1 and 1.

    The ends see zeros beyond them, as convolutions do; `MelGAN` in `streaming` surrounds a piece with silence.
    """

    def __init__(self, cfg: GeneratorConfig, *, rngs: nnx.Rngs):
        """Raises InputError when the upsampling factors do not make HOP samples of a frame."""
        if math.prod(cfg.factors) != HOP:
            raise InputError(f"the upsampling factors {cfg.factors} must multiply to {HOP}, the samples of a frame")
        self.cfg = cfg
        channels = cfg.channels
        self.enter = Conv(MEL_BINS, channels, EDGE_KERNEL, rngs=rngs)
        self.upsamplers, self.residuals = nnx.List(), nnx.List()
        for factor in cfg.factors:
            self.upsamplers.append(Conv(channels, channels // 2, 2 * factor, upsampling=factor, rngs=rngs))
            channels //= 2
            self.residuals.append(nnx.List(ResidualBlock(channels, dilation, rngs=rngs) for dilation in cfg.dilations))
        self.leave = Conv(channels, 1, EDGE_KERNEL, rngs=rngs)

    def __call__(self, mel: Float[Array, "b t m"]) -> Float[Array, "b s"]:
        x = self.enter(scale_mel(mel))
        for upsample, blocks in zip(self.upsamplers, self.residuals, strict=True):
            x = upsample(_activation(x))
            for block in blocks:
                x = block(x)
        return jnp.tanh(self.leave(_activation(x)))[..., 0]


def receptive_frames(cfg: GeneratorConfig) -> int:
    """How many mel frames before or after its own a sample can depend on, counted back from the output."""
    reach = EDGE_KERNEL // 2  # in samples of the rate at hand
    for factor in reversed(cfg.factors):
        reach += sum(dilation * (KERNEL // 2) for dilation in cfg.dilations)
        reach = math.ceil(reach / factor) + 1  # the transposed convolution spans one step more on either side
    return reach + EDGE_KERNEL // 2


def _activation(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    return jax.nn.leaky_relu(x, 0.2)
