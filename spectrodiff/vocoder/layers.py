"""Layers of the vocoder networks."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

_AXES = {1: ("NTC", "TIO", "NTC"), 2: ("NTFC", "TFIO", "NTFC")}


class Conv(nnx.Module):
    """A convolution along time, or time and frequency, with weight normalization (Salimans & Kingma 2016).

    With `upsampling`, along time only, it is a transposed convolution whose output is so many times longer.
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
        rngs: nnx.Rngs,
    ):
        self.strides = strides or (1,) * len(kernel)
        self.dilation, self.groups, self.upsampling = dilation, groups, upsampling
        shape = (*kernel, inputs // groups, outputs)
        taps = np.prod(shape[:-1]) / upsampling  # per output
        direction = jax.random.normal(rngs.params(), shape) * scale / np.sqrt(taps)
        self.direction = nnx.Param(direction)
        self.gain = nnx.Param(jnp.linalg.norm(direction.reshape(-1, outputs), axis=0))
        self.bias = nnx.Param(jnp.zeros(outputs))

    def __call__(self, x: Float[Array, "b *t i"]) -> Float[Array, "b *s o"]:
        direction = self.direction[...]
        axes = _AXES[direction.ndim - 2]
        norm = jnp.sqrt(jnp.square(direction).sum(axis=range(direction.ndim - 1)) + 1e-12)
        kernel = direction * (self.gain[...] / norm)
        if self.upsampling > 1:
            y = jax.lax.conv_transpose(x, kernel, (self.upsampling,), "SAME", dimension_numbers=axes)
        else:
            y = jax.lax.conv_general_dilated(
                x,
                kernel,
                self.strides,
                "SAME",
                rhs_dilation=(self.dilation,) * len(self.strides),
                dimension_numbers=axes,
                feature_group_count=self.groups,
            )
        return y + self.bias[...]


class Dense(nnx.Module):
    """A linear layer without bias, computed as one 2D product, whose gradient is fastest on XLA's CPU backend."""

    def __init__(self, inputs: int, outputs: int, *, scale: float = 1.0, rngs: nnx.Rngs):
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), (inputs, outputs)) * scale / np.sqrt(inputs))

    def __call__(self, x: Float[Array, "... i"]) -> Float[Array, "... o"]:
        kernel = self.kernel[...]
        return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], kernel.shape[1])


def leaky(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Returns a leaky ReLU with slope 0.2, as in MelGAN."""
    return jax.nn.leaky_relu(x, 0.2)
