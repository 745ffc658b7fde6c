import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from inputs import OURS, PAPER, jitted, windows_of

from spectrodiff.models.spectrogram_model import SpectrogramModel
from spectrodiff.notes.tokenizer import NoteTokenizer

FRAMES, CONTEXT, TOKENS = 24, 16, 128
KEYS = jax.random.split(jax.random.key(0), 2)
Z = jax.random.normal(KEYS[0], (3, FRAMES, 128))
LOGSNR = jnp.array([-6.0, -1.0, 3.0])
PAST = jax.random.uniform(KEYS[1], (3, CONTEXT, 128), minval=-1.0)
PAST_MASK = jnp.arange(CONTEXT) < jnp.array([[CONTEXT], [5], [0]])
call = jitted(SpectrogramModel.__call__)


@jitted
def encode(model, tokens, context, context_mask):
    return model.encode(tokens, context, context_mask, FRAMES)


@jitted
def decode(model, conditioning, z, logsnr):
    return model.decoder(model.decoder.cache(conditioning), z, logsnr)


@pytest.fixture(params=["paper_model", "our_model"])
def model(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def tokens(model):
    return windows_of(NoteTokenizer(PAPER.tokenizer if model.note_roll is None else OURS.tokenizer), TOKENS)


def test_a_cache_serves_every_noise_level(model, tokens):
    conditioning = encode(model, tokens, PAST, PAST_MASK)
    for logsnr in (LOGSNR, LOGSNR + 2.0):
        np.testing.assert_allclose(
            decode(model, conditioning, Z, logsnr), call(model, tokens, PAST, PAST_MASK, Z, logsnr), atol=1e-5
        )


def test_the_memory_is_notes_then_context(model, tokens):
    conditioning = encode(model, tokens, PAST, PAST_MASK)
    places = conditioning.mask.shape[1] - CONTEXT
    assert places == (TOKENS if model.note_roll is None else TOKENS // 2)
    np.testing.assert_array_equal(conditioning.mask[:, places:], PAST_MASK)
    assert (conditioning.sketch is None) == (model.note_roll is None)


def test_notes_and_context_both_matter(model, tokens):
    output = call(model, tokens, PAST, PAST_MASK, Z, LOGSNR)
    for others in ((np.roll(tokens, 1, 0), PAST), (tokens, PAST + 0.5)):
        assert float(jnp.abs(call(model, *others, PAST_MASK, Z, LOGSNR) - output)[0].max()) > 1e-3


def test_what_is_not_kept_is_as_if_it_had_never_been(paper_model):
    """Dropped conditioning equals no tokens and no context, for that example alone."""
    tokens = windows_of(NoteTokenizer(PAPER.tokenizer), TOKENS)
    kept = jnp.array([True, False, True])
    conditioning = encode(paper_model, tokens, PAST, PAST_MASK)
    dropped = decode(paper_model, conditioning.keep(kept), Z, LOGSNR)
    nothing = call(paper_model, tokens * np.array(kept)[:, None], PAST, PAST_MASK & kept[:, None], Z, LOGSNR)
    np.testing.assert_allclose(dropped, nothing, atol=1e-5)
    np.testing.assert_allclose(dropped[0], decode(paper_model, conditioning, Z, LOGSNR)[0], atol=1e-6)


def test_what_is_not_kept_leaves_no_trace(model, tokens):
    """Whatever notes and context were, once dropped the network cannot tell."""
    none = jnp.zeros(3, bool)
    first = encode(model, tokens, PAST, PAST_MASK).keep(none)
    second = encode(model, tokens[::-1].copy(), PAST + 0.1, PAST_MASK).keep(none)
    np.testing.assert_array_equal(decode(model, first, Z, LOGSNR), decode(model, second, Z, LOGSNR))


def test_rows_beyond_the_conditioning_are_unconditional(model, tokens):
    """The batch for guidance: itself, and itself emptied."""
    conditioning = encode(model, tokens, PAST, PAST_MASK)
    both = decode(model, conditioning, jnp.concatenate([Z, Z]), jnp.concatenate([LOGSNR, LOGSNR]))
    np.testing.assert_allclose(both[:3], decode(model, conditioning, Z, LOGSNR), atol=1e-5)
    empty = conditioning.keep(jnp.zeros(3, bool))
    np.testing.assert_allclose(both[3:], decode(model, empty, Z, LOGSNR), atol=1e-5)
    assert float(jnp.abs(both[3:] - both[:3])[:2].max()) > 1e-3


def test_examples_do_not_see_one_another(model, tokens):
    swap = jnp.array([0, 2, 1])
    output = call(model, tokens, PAST, PAST_MASK, Z, LOGSNR)
    swapped = call(model, tokens[swap], PAST[swap], PAST_MASK[swap], Z[swap], LOGSNR[swap])
    np.testing.assert_allclose(swapped, output[swap], atol=1e-5)


def test_gradients_reach_every_parameter(model, tokens):
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params):
        return (nnx.merge(graph, params, rest)(jnp.asarray(tokens), PAST, PAST_MASK, Z, LOGSNR) ** 2).mean()

    gradients = nnx.to_flat_state(jax.jit(jax.grad(loss))(params))
    dead = [".".join(map(str, path)) for path, leaf in gradients if not bool(jnp.abs(leaf[...]).max() > 0)]
    assert dead == []
    assert len(gradients) > 20


def test_without_context_there_is_no_context_encoder():
    cfg = dataclasses.replace(PAPER, model=dataclasses.replace(PAPER.model, with_context=False))
    model = SpectrogramModel(cfg, rngs=nnx.Rngs(0))
    conditioning = encode(model, jnp.ones((3, TOKENS), jnp.int32), PAST, PAST_MASK)
    assert conditioning.mask.shape == (3, TOKENS)
    assert not any("context_encoder" in path for path, _ in nnx.to_flat_state(nnx.state(model)))
