import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from inputs import jitted

from spectrodiff.diffusion.schedule import logsnr_at
from spectrodiff.models import diffusion_decoder

KEYS = jax.random.split(jax.random.key(0), 3)
Z = jax.random.normal(KEYS[0], (2, 16, 128))
MEMORY = jax.random.normal(KEYS[1], (2, 24, 32))
MASK = jnp.arange(24) < jnp.array([[9], [24]])
LOGSNR = jnp.array([-3.0, 1.0])


@jitted
def decode(decoder, z, logsnr, memory, mask):
    return decoder(z, logsnr, decoder.cache(memory, mask, None))


@pytest.fixture(scope="module")
def decoder(paper_model):
    return paper_model.decoder


def test_shape_and_type(decoder):
    output = decode(decoder, Z, LOGSNR, MEMORY, MASK)
    assert (output.shape, output.dtype) == (Z.shape, jnp.float32)


def test_what_is_masked_in_memory_changes_nothing(decoder):
    wild = jnp.where(MASK[..., None], MEMORY, 100.0)
    np.testing.assert_array_equal(decode(decoder, Z, LOGSNR, MEMORY, MASK), decode(decoder, Z, LOGSNR, wild, MASK))


def test_an_empty_memory_is_as_if_cross_attention_were_not_there(decoder):
    without = nnx.clone(decoder)
    for block in without.blocks:
        block.cross_attention.out.kernel[...] = jnp.zeros_like(block.cross_attention.out.kernel[...])
    empty = decode(decoder, Z, LOGSNR, MEMORY, jnp.zeros_like(MASK))
    np.testing.assert_allclose(empty, decode(without, Z, LOGSNR, MEMORY, MASK), atol=1e-6)
    assert float(jnp.abs(empty - decode(decoder, Z, LOGSNR, MEMORY, MASK)).max()) > 1e-3


def test_one_noise_level_for_all_or_one_for_each(decoder):
    each = decode(decoder, Z, LOGSNR, MEMORY, MASK)
    for b, logsnr in enumerate(LOGSNR):
        np.testing.assert_allclose(decode(decoder, Z, logsnr, MEMORY, MASK)[b], each[b], atol=1e-5)
    assert float(jnp.abs(decode(decoder, Z, LOGSNR[1], MEMORY, MASK)[0] - each[0]).max()) > 1e-3


def test_the_noise_level_enters_as_sinusoids_of_time(decoder, monkeypatch):
    """At time t: sines, then cosines, of 2e4 t, at 16 rates from 1 down to 1 / 2e4."""
    time = 0.37
    angles = 2e4 * time * np.exp(-np.log(2e4) * np.arange(16) / 15)
    expected = np.concatenate([np.sin(angles), np.cos(angles)])
    sinusoids = diffusion_decoder.sinusoids

    class SeenError(Exception):
        """Carries the embedding; what follows it is not of interest."""

    def show(*args):
        raise SeenError(sinusoids(*args))

    monkeypatch.setattr(diffusion_decoder, "sinusoids", show)
    with pytest.raises(SeenError) as seen:
        decoder(Z[:1], logsnr_at(jnp.array([time])), decoder.cache(MEMORY[:1], MASK[:1], None))
    # float32 knows 7400 radians to a thousandth.
    np.testing.assert_allclose(seen.value.args[0][0], expected, atol=5e-3)


def test_examples_do_not_see_one_another(decoder):
    other = decode(decoder, Z.at[1].add(1.0), LOGSNR.at[1].add(1.0), MEMORY.at[1].add(1.0), MASK)
    output = decode(decoder, Z, LOGSNR, MEMORY, MASK)
    np.testing.assert_allclose(other[0], output[0], atol=1e-6)
    assert float(jnp.abs(other[1] - output[1]).max()) > 0.1


def test_every_frame_sees_every_frame_and_knows_its_place(decoder):
    gradient = jax.jit(jax.grad(lambda z: decode(decoder, z, LOGSNR, MEMORY, MASK)[0, 0].sum()))(Z)
    assert bool((jnp.abs(gradient[0]).sum(-1) > 0).all())
    assert not gradient[1].any()
    output, backwards = (decode(decoder, z, LOGSNR, MEMORY, MASK) for z in (Z, Z[:, ::-1]))
    assert float(jnp.abs(output - backwards[:, ::-1]).max()) > 0.1
