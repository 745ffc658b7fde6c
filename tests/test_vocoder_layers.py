"""Convolutions of vocoders, compared with those of JAX with the same kernels."""

import jax
import numpy as np
import pytest
from flax import nnx

from spectrodiff.vocoder.layers import Conv

AXES = {1: ("NTC", "TIO", "NTC"), 2: ("NTFC", "TFIO", "NTFC")}


def jax_convolution(conv, x):
    """JAX's convolution with the kernel of a new layer, which equals `direction` before training."""
    kernel = conv.direction[...]
    axes = AXES[kernel.ndim - 2]
    if conv.upsampling > 1:
        return jax.lax.conv_transpose(x, kernel, (conv.upsampling,), "SAME", dimension_numbers=axes)
    return jax.lax.conv_general_dilated(
        *(x, kernel, conv.strides, "SAME"),
        rhs_dilation=(conv.dilation,) * len(conv.strides),
        dimension_numbers=axes,
        feature_group_count=conv.groups,
    )


@pytest.mark.parametrize(
    ("shape", "kernel", "options"),
    [
        ((21, 4), (7,), {}),
        ((21, 4), (3,), {"dilation": 3}),
        ((24, 4), (8,), {"strides": (4,)}),
        ((23, 4), (41,), {"strides": (4,), "groups": 2}),
        ((22, 8), (5,), {"groups": 4}),
        ((22, 4), (2,), {"strides": (5,)}),  # skips frames
        ((10, 33, 4), (3, 9), {"strides": (1, 2)}),
        ((11, 8, 4), (4, 3), {"strides": (3, 2)}),
        ((9, 4), (10,), {"upsampling": 5}),
        ((9, 4), (7,), {"upsampling": 2}),
        ((9, 4), (2,), {"upsampling": 4}),  # inserts zeros
    ],
)
def test_outputs_and_gradients_match_jax(shape, kernel, options):
    conv = Conv(shape[-1], 6 if options.get("groups") != 4 else 8, *kernel, **options, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (2, *shape))
    theirs, pull_theirs = jax.vjp(lambda x: jax_convolution(conv, x), x)
    ours, pull_ours = jax.vjp(conv, x)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    change = jax.random.normal(jax.random.key(2), ours.shape)
    np.testing.assert_allclose(pull_ours(change)[0], pull_theirs(change)[0], atol=1e-5)
