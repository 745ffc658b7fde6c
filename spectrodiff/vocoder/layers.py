"""Layers of the vocoder networks."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

_AXES = {1: ("NTC", "TIO", "NTC"), 2: ("NTFC", "TFIO", "NTFC")}


class Conv(nnx.Module):
    """A convolution along time, or time and frequency, with weight normalization (Salimans & Kingma 2016).

    `kernel` is the number of taps along each axis, and `strides` the stride, by default 1. Padding is "SAME".
    `dilation` applies to convolutions of stride 1 without groups; `groups` and `upsampling` need a single axis, time.
    With `upsampling`, it is a transposed convolution whose output is that many times longer. `scale` multiplies the
    initial kernel. With `zero`, the initial kernel is zero and there is no weight normalization, under which it would
    hardly learn.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *kernel: int,
        strides: tuple[int, ...] | None = None,
        dilation: int = 1,
        groups: int = 1,
        upsampling: int = 1,
        scale: float = 1.0,
        zero: bool = False,
        rngs: nnx.Rngs,
    ):
        self.strides = strides or (1,) * len(kernel)
        self.dilation, self.groups, self.upsampling = dilation, groups, upsampling
        shape = (*kernel, inputs // groups, outputs)
        taps = np.prod(shape[:-1]) / upsampling  # per output
        direction = jax.random.normal(rngs.params(), shape) * scale / np.sqrt(taps)
        self.direction = nnx.Param(jnp.zeros(shape) if zero else direction)
        self.gain = None if zero else nnx.Param(jnp.linalg.norm(direction.reshape(-1, outputs), axis=0))
        self.bias = nnx.Param(jnp.zeros(outputs))

    def __call__(self, x: Float[Array, "b *t i"]) -> Float[Array, "b *s o"]:
        direction = self.direction[...]
        axes = _AXES[direction.ndim - 2]
        kernel = direction
        if self.gain is not None:
            norm = jnp.sqrt(jnp.square(direction).sum(axis=range(direction.ndim - 1)) + 1e-12)
            kernel = direction * (self.gain[...] / norm)
        if self.upsampling > 1:
            y = _upsample(x, kernel, self.upsampling)
        elif self.groups > 1 or max(self.strides) > 1:
            y = _strided(x, kernel, self.strides, self.groups)
        else:
            dilation = (self.dilation,) * len(self.strides)
            y = jax.lax.conv_general_dilated(
                x, kernel, self.strides, "SAME", rhs_dilation=dilation, dimension_numbers=axes
            )
        return y + self.bias[...]


# XLA's CPU backend takes several times as long for the gradients of strided, grouped and transposed convolutions as
# for those of plain ones and of matrix products with the same number of operations, so the former are computed as the
# latter. Padding is that of "SAME".


def _strided(
    x: Float[Array, "b *t i"], kernel: Float[Array, "*k j o"], strides: tuple[int, ...], groups: int
) -> Float[Array, "b *s o"]:
    """Returns a strided convolution, computed as one of stride 1 over blocks of as many steps as the stride."""
    # Each axis of x and of the kernel becomes two axes: blocks, and steps within a block.
    for axis, stride in enumerate(strides):
        at, size, taps = 2 * axis, x.shape[1 + 2 * axis], kernel.shape[2 * axis]
        steps, span = -(-size // stride), -(-taps // stride)  # of the output; of the kernel in blocks
        low = max((steps - 1) * stride + taps - size, 0) // 2
        high = (steps - 1 + span) * stride - size - low
        padding = [(0, 0, 0)] * x.ndim
        padding[1 + at] = (low, high, 0)
        x = jax.lax.pad(x, jnp.zeros((), x.dtype), padding)
        x = x.reshape(*x.shape[: 1 + at], -1, stride, *x.shape[2 + at :])
        kernel_padding = [(0, 0)] * kernel.ndim
        kernel_padding[at] = (0, span * stride - taps)
        kernel = jnp.pad(kernel, kernel_padding)
        kernel = kernel.reshape(*kernel.shape[:at], span, stride, *kernel.shape[at + 1 :])
    axes, outputs = len(strides), kernel.shape[-1]
    blocks, within = range(0, 2 * axes, 2), range(1, 2 * axes, 2)
    kernel = kernel.transpose(*blocks, *within, 2 * axes, 2 * axes + 1)
    x = x.transpose(0, *(1 + i for i in blocks), *(1 + i for i in within), 1 + 2 * axes)
    if groups == 1:
        x = x.reshape(*x.shape[: 1 + axes], -1)
        kernel = kernel.reshape(*kernel.shape[:axes], x.shape[-1], outputs)
        return jax.lax.conv_general_dilated(x, kernel, (1,) * axes, "VALID", dimension_numbers=_AXES[axes])
    span = kernel.shape[0]  # with groups, time is the only axis
    steps = x.shape[1] - span + 1
    x = x.reshape(*x.shape[:3], groups, -1)
    x = jnp.stack([x[:, k : k + steps] for k in range(span)], axis=2)
    kernel = kernel.reshape(*kernel.shape[:3], groups, -1)
    return jnp.einsum("btksgi,ksigo->btgo", x, kernel).reshape(len(x), steps, outputs)


def _upsample(x: Float[Array, "b t i"], kernel: Float[Array, "k i o"], factor: int) -> Float[Array, "b s o"]:
    """Returns a transposed convolution, whose steps overlap if the kernel is longer than `factor`."""
    (batch, steps, inputs), (taps, _, outputs) = x.shape, kernel.shape
    # As in `jax.lax.conv_transpose`, the kernel is not flipped: its last tap comes first.
    before = taps - 1 if factor > taps - 1 else -(-(taps + factor - 2) // 2)
    span = -(-taps // factor)  # blocks of `factor` output steps that an input step contributes to
    kernel = jnp.pad(kernel[::-1], ((0, span * factor - taps), (0, 0), (0, 0)))
    kernel = kernel.transpose(1, 0, 2).reshape(inputs, -1)
    parts = (x.reshape(-1, inputs) @ kernel).reshape(batch, steps, span, factor, outputs)
    y = sum(jnp.pad(parts[:, :, k], ((0, 0), (k, span - 1 - k), (0, 0), (0, 0))) for k in range(span))
    return y.reshape(batch, -1, outputs)[:, taps - 1 - before :][:, : steps * factor]


def leaky(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Returns a leaky ReLU with slope 0.2, as in MelGAN."""
    return jax.nn.leaky_relu(x, 0.2)
