import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from inputs import PAPER, jitted

from spectrodiff.models.context_encoder import ContextEncoder

FRAMES, REAL = 32, 12
CONTEXT = jax.random.uniform(jax.random.key(0), (3, FRAMES, 128), minval=-1.0)
MASK = jnp.arange(FRAMES) < jnp.array([[REAL], [FRAMES], [0]])
encode = jitted(ContextEncoder.__call__)


@pytest.fixture(scope="module")
def encoder():
    return ContextEncoder(PAPER.model, rngs=nnx.Rngs(0))


def test_padded_frames_have_no_effect(encoder):
    wild = jnp.where(MASK[..., None], CONTEXT, 100.0)
    memory, other = encode(encoder, CONTEXT, MASK), encode(encoder, wild, MASK)
    np.testing.assert_array_equal(jnp.where(MASK[..., None], memory, 0.0), jnp.where(MASK[..., None], other, 0.0))


def test_positions_are_aligned_to_the_last_real_frame(encoder):
    """A short context is encoded like unpadded frames with the last rows of the position table."""

    @jitted
    def encode_unpadded(encoder, frames):
        x = encoder.project(frames) + encoder.positions(FRAMES)[-frames.shape[1] :]
        return encoder.encoder(x, jnp.ones(frames.shape[:2], bool))

    short, full, _ = encode(encoder, CONTEXT, MASK)
    np.testing.assert_allclose(short[:REAL], encode_unpadded(encoder, CONTEXT[:1, :REAL])[0], atol=1e-5)
    np.testing.assert_allclose(full, encode_unpadded(encoder, CONTEXT[1:2])[0], atol=1e-5)


def test_contexts_are_independent_and_an_empty_one_is_finite(encoder):
    memory = encode(encoder, CONTEXT, MASK)
    changed = encode(encoder, CONTEXT.at[1:].add(0.5), MASK)
    np.testing.assert_allclose(memory[0], changed[0], atol=1e-6)
    assert bool(jnp.isfinite(memory).all())


def test_encoding_depends_on_frame_order(encoder):
    memory = encode(encoder, CONTEXT, MASK)
    backwards = encode(encoder, CONTEXT[:, ::-1], MASK)
    assert float(jnp.abs(memory[1] - backwards[1, ::-1]).max()) > 0.1
