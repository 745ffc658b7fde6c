"""A two-dimensional U-Net over frames and mel bins, conditioned on a noise level."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from spectrodiff.audio.mel import MEL_BINS
from spectrodiff.models.layers import Dense, sinusoids

EMBEDDING = 64  # channels of the noise level's embedding
LONGEST = 1e4  # inverse angular frequency of the embedding's slowest sinusoid
LOGSNR_SCALE = 25.0  # log-SNRs from -20 to 20 are scaled to -500 to 500, about the range of diffusion timesteps


def _convolve(x, kernel, padding="SAME"):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


@jax.custom_vjp
def convolve(x: Float[Array, "b f t i"], kernel: Float[Array, "3 3 i o"]) -> Float[Array, "b f t o"]:
    """Returns the 3 x 3 convolution of `x`, padded with zeros, and `kernel`.

    Its gradient is defined here because that of the kernel takes XLA four times as long on a CPU as the convolution.
    Computed from one image after the other, it takes half of that.
    """
    return _convolve(x, kernel)


def _convolve_forward(x, kernel):
    return _convolve(x, kernel), (x, kernel)


def _convolve_backward(inputs, slope):
    x_slope, kernel_slope = jax.vjp(_convolve, *inputs)[1](slope)
    # One image after the other would not be divided among several devices.
    if jax.default_backend() == "cpu" and jax.device_count() == 1:

        def add(total, image):
            x, slope = image
            # The input's channels become a batch, and the slope is the kernel.
            padded = jnp.pad(x, ((1, 1), (1, 1), (0, 0))).transpose(2, 0, 1)
            product = _convolve(padded[..., None], slope[:, :, None], "VALID")
            return total + product.transpose(1, 2, 0, 3), None

        kernel_slope, _ = jax.lax.scan(add, jnp.zeros_like(kernel_slope), (inputs[0], slope))
    return x_slope, kernel_slope


convolve.defvjp(_convolve_forward, _convolve_backward)


class Conv(nnx.Conv):
    """A 3 x 3 convolution; its kernel [3, 3, inputs, outputs] is over frames and bins, and its input over bins first.

    With bins first, XLA computes it on all cores of a CPU for more of the shapes that occur here.
    """

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs):
        super().__init__(inputs, outputs, (3, 3), padding="SAME", rngs=rngs)

    def __call__(self, x: Float[Array, "b f t i"]) -> Float[Array, "b f t o"]:
        kernel = self.kernel[...].swapaxes(0, 1)
        return convolve(x, kernel) + self.bias[...]


class ResidualBlock(nnx.Module):
    """A residual block of two convolutions, with FiLM by the noise level (Perez et al. 2018) before the second."""

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs):
        self.norm_in = nnx.RMSNorm(inputs, epsilon=1e-6, rngs=rngs)
        self.conv_in = Conv(inputs, outputs, rngs=rngs)
        self.film = Dense(EMBEDDING, 2 * outputs, rngs=rngs)
        self.norm_out = nnx.RMSNorm(outputs, epsilon=1e-6, rngs=rngs)
        self.conv_out = Conv(outputs, outputs, rngs=rngs)
        self.shortcut = Dense(inputs, outputs, rngs=rngs) if inputs != outputs else None

    def __call__(self, x: Float[Array, "b f t i"], noise: Float[Array, "#b e"]) -> Float[Array, "b f t o"]:
        h = self.conv_in(nnx.silu(self.norm_in(x)))
        scale, shift = jnp.split(self.film(noise)[:, None, None], 2, -1)
        h = self.conv_out(nnx.silu(self.norm_out(h) * (1.0 + scale) + shift))
        return h + (x if self.shortcut is None else self.shortcut(x))


def _folded(planes: Float[Array, "b t m c"], patch: int) -> Float[Array, "b bins frames channels"]:
    """Moves each square of `patch` frames by `patch` bins to the channels (space to depth), and puts bins first."""
    batch, frames, bins, channels = planes.shape
    squares = planes.reshape(batch, frames // patch, patch, bins // patch, patch, channels)
    return squares.transpose(0, 3, 1, 2, 4, 5).reshape(batch, bins // patch, frames // patch, -1)


def _unfolded(patches: Float[Array, "b bins frames squares"], patch: int) -> Float[Array, "b t m"]:
    """Moves the patch^2 channels back to squares of one plane, the inverse of `_folded`."""
    batch, bins, frames, _ = patches.shape
    squares = patches.reshape(batch, bins, frames, patch, patch).transpose(0, 2, 3, 1, 4)
    return squares.reshape(batch, frames * patch, bins * patch)


class UNet(nnx.Module):
    """A U-Net (Ronneberger et al. 2015) from `inputs` planes to one plane, each [frames, mel bins].

    The first scale has one position for each square of `patch` frames by `patch` bins. `channels` are the widths of the
    scales, each of half the resolution of the one before. At each scale there are `blocks` residual blocks on the way
    down and as many on the way up. The numbers of frames and bins must be multiples of patch * 2^(scales - 1).
    """

    def __init__(self, inputs: int, channels: Sequence[int], patch: int = 1, blocks: int = 2, *, rngs: nnx.Rngs):
        self.patch = patch
        self.enter = Conv(inputs * patch**2, channels[0], rngs=rngs)
        self.bins = nnx.Param(jnp.zeros((MEL_BINS // patch, channels[0])))  # an embedding of each position in frequency
        self.embed = Dense(EMBEDDING, EMBEDDING, rngs=rngs)
        previous = [channels[0], *channels]  # the width of the blocks before those of each scale, on the way down
        self.down = nnx.List(
            nnx.List(ResidualBlock(previous[i] if k == 0 else width, width, rngs=rngs) for k in range(blocks))
            for i, width in enumerate(channels)
        )
        below = [*channels[1:], channels[-1]]  # the same on the way up
        self.up = nnx.List(
            nnx.List(ResidualBlock(below[i] + width if k == 0 else width, width, rngs=rngs) for k in range(blocks))
            for i, width in enumerate(channels)
        )
        self.norm = nnx.RMSNorm(channels[0], epsilon=1e-6, rngs=rngs)
        self.leave = Conv(channels[0], patch**2, rngs=rngs)

    def __call__(self, planes: Float[Array, "b t m c"], logsnr: Float[Array, " #b"]) -> Float[Array, "b t m"]:
        """Returns the output plane. `logsnr` has one value per row, or one for all."""
        noise = nnx.silu(self.embed(sinusoids(LOGSNR_SCALE * logsnr, EMBEDDING, LONGEST)))
        x = self.enter(_folded(planes, self.patch)) + self.bins[...][:, None]
        skips = []
        for scale, blocks in enumerate(self.down):
            if scale:
                x = nnx.avg_pool(x, (2, 2), (2, 2))
            for block in blocks:
                x = block(x, noise)
            skips.append(x)
        for scale, blocks in reversed(list(enumerate(self.up))):
            if scale < len(skips) - 1:
                x = x.repeat(2, 1).repeat(2, 2)
            x = jnp.concatenate([x, skips[scale]], -1)
            for block in blocks:
                x = block(x, noise)
        return _unfolded(self.leave(nnx.silu(self.norm(x))), self.patch)
