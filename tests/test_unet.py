import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spectrodiff.models.unet import UNet, _folded, _unfolded, convolve

PLANES = jax.random.normal(jax.random.key(0), (2, 16, 128, 3))


@pytest.fixture(scope="module")
def network():
    graph, state = nnx.split(UNet(3, (4, 8), blocks=1, rngs=nnx.Rngs(0)))
    return jax.jit(lambda planes, logsnr: nnx.merge(graph, state)(planes, logsnr))


def test_gradients_of_a_convolution_equal_automatic_ones():
    keys = jax.random.split(jax.random.key(0), 3)
    x, kernel = jax.random.normal(keys[0], (3, 6, 10, 4)), jax.random.normal(keys[1], (3, 3, 4, 5))
    slope = jax.random.normal(keys[2], (3, 6, 10, 5))

    def plain(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    for ours, theirs in zip(jax.vjp(convolve, x, kernel)[1](slope), jax.vjp(plain, x, kernel)[1](slope), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-4)


def test_output_has_one_channel(network):
    assert network(PLANES, jnp.zeros(2)).shape == (2, 16, 128)


def test_unfolding_inverts_folding_into_patches():
    planes = jax.random.normal(jax.random.key(2), (2, 8, 128, 1))
    folded = _folded(planes, 2)
    assert folded.shape == (2, 64, 4, 4)
    np.testing.assert_array_equal(folded[0, 3, 1], planes[0, 2:4, 6:8].ravel())
    np.testing.assert_array_equal(_unfolded(folded, 2), planes[..., 0])


def test_network_with_patches_keeps_the_shape(network):
    patched = UNet(3, (4, 8), patch=2, blocks=1, rngs=nnx.Rngs(0))
    assert patched(PLANES, jnp.zeros(2)).shape == (2, 16, 128)


def test_single_noise_level_is_broadcast(network):
    np.testing.assert_allclose(network(PLANES, jnp.ones(1)), network(PLANES, jnp.ones(2)), atol=1e-5)
    assert float(jnp.abs(network(PLANES, jnp.ones(1)) - network(PLANES, jnp.zeros(1))).max()) > 1e-4


def test_receptive_field_is_limited(network):
    """3 x 3 convolutions at two scales with one block each reach about 20 frames to either side."""
    network = UNet(3, (4, 8), blocks=1, rngs=nnx.Rngs(0))
    planes = jax.random.normal(jax.random.key(1), (1, 96, 128, 3))
    slope = jax.jit(jax.grad(lambda planes: network(planes, jnp.zeros(1))[0, 48].sum()))(planes)
    frames = np.flatnonzero(np.abs(slope[0]).max((1, 2)))
    assert 48 - 24 <= frames.min() < 48 - 4
    assert 48 + 4 < frames.max() <= 48 + 24
