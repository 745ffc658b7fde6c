import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from inputs import OURS, PAPER, jitted, windows_of

from spectrodiff.models.spectrogram_model import SpectrogramModel
from spectrodiff.notes.tokenizer import NoteTokenizer

FRAMES, CONTEXT_FRAMES, TOKENS = 24, 16, 128
KEYS = jax.random.split(jax.random.key(0), 2)
Z = jax.random.normal(KEYS[0], (3, FRAMES, 128))
LOGSNR = jnp.array([-6.0, -1.0, 3.0])
CONTEXT_MEL = jax.random.uniform(KEYS[1], (3, CONTEXT_FRAMES, 128), minval=-1.0)
CONTEXT_MASK = jnp.arange(CONTEXT_FRAMES) < jnp.array([[CONTEXT_FRAMES], [5], [0]])
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


def test_decoder_cache_is_valid_for_every_noise_level(model, tokens):
    conditioning = encode(model, tokens, CONTEXT_MEL, CONTEXT_MASK)
    for logsnr in (LOGSNR, LOGSNR + 2.0):
        np.testing.assert_allclose(
            decode(model, conditioning, Z, logsnr), call(model, tokens, CONTEXT_MEL, CONTEXT_MASK, Z, logsnr), atol=1e-5
        )


def test_memory_is_notes_followed_by_context(model, tokens):
    conditioning = encode(model, tokens, CONTEXT_MEL, CONTEXT_MASK)
    places = conditioning.mask.shape[1] - CONTEXT_FRAMES
    assert places == (TOKENS if model.note_roll is None else TOKENS // 2)
    np.testing.assert_array_equal(conditioning.mask[:, places:], CONTEXT_MASK)
    assert (conditioning.sketch is None) == (model.note_roll is None)


def test_notes_and_context_change_the_output(model, tokens):
    output = call(model, tokens, CONTEXT_MEL, CONTEXT_MASK, Z, LOGSNR)
    for others in ((np.roll(tokens, 1, 0), CONTEXT_MEL), (tokens, CONTEXT_MEL + 0.5)):
        assert float(jnp.abs(call(model, *others, CONTEXT_MASK, Z, LOGSNR) - output)[0].max()) > 1e-3


def test_dropped_conditioning_equals_empty_conditioning(paper_model):
    """Only the dropped examples change."""
    tokens = windows_of(NoteTokenizer(PAPER.tokenizer), TOKENS)
    kept = jnp.array([True, False, True])
    conditioning = encode(paper_model, tokens, CONTEXT_MEL, CONTEXT_MASK)
    dropped = decode(paper_model, conditioning.keep(kept), Z, LOGSNR)
    nothing = call(paper_model, tokens * np.array(kept)[:, None], CONTEXT_MEL, CONTEXT_MASK & kept[:, None], Z, LOGSNR)
    np.testing.assert_allclose(dropped, nothing, atol=1e-5)
    np.testing.assert_allclose(dropped[0], decode(paper_model, conditioning, Z, LOGSNR)[0], atol=1e-6)


def test_dropped_conditioning_does_not_affect_the_output(model, tokens):
    none = jnp.zeros(3, bool)
    first = encode(model, tokens, CONTEXT_MEL, CONTEXT_MASK).keep(none)
    second = encode(model, tokens[::-1].copy(), CONTEXT_MEL + 0.1, CONTEXT_MASK).keep(none)
    np.testing.assert_array_equal(decode(model, first, Z, LOGSNR), decode(model, second, Z, LOGSNR))


def test_extra_rows_are_unconditional(model, tokens):
    """A batch twice the size of its conditioning is used for guidance; its second half has no conditioning."""
    conditioning = encode(model, tokens, CONTEXT_MEL, CONTEXT_MASK)
    both = decode(model, conditioning, jnp.concatenate([Z, Z]), jnp.concatenate([LOGSNR, LOGSNR]))
    np.testing.assert_allclose(both[:3], decode(model, conditioning, Z, LOGSNR), atol=1e-5)
    empty = conditioning.keep(jnp.zeros(3, bool))
    np.testing.assert_allclose(both[3:], decode(model, empty, Z, LOGSNR), atol=1e-5)
    assert float(jnp.abs(both[3:] - both[:3])[:2].max()) > 1e-3


def test_examples_of_a_batch_are_independent(model, tokens):
    swap = jnp.array([0, 2, 1])
    output = call(model, tokens, CONTEXT_MEL, CONTEXT_MASK, Z, LOGSNR)
    swapped = call(model, tokens[swap], CONTEXT_MEL[swap], CONTEXT_MASK[swap], Z[swap], LOGSNR[swap])
    np.testing.assert_allclose(swapped, output[swap], atol=1e-5)


def test_gradients_reach_every_parameter(model, tokens):
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params):
        return (nnx.merge(graph, params, rest)(jnp.asarray(tokens), CONTEXT_MEL, CONTEXT_MASK, Z, LOGSNR) ** 2).mean()

    gradients = nnx.to_flat_state(jax.jit(jax.grad(loss))(params))
    dead = [".".join(map(str, path)) for path, leaf in gradients if not bool(jnp.abs(leaf[...]).max() > 0)]
    assert dead == []
    assert len(gradients) > 20


def test_model_without_context_has_no_context_encoder():
    cfg = dataclasses.replace(PAPER, model=dataclasses.replace(PAPER.model, with_context=False))
    model = SpectrogramModel(cfg, rngs=nnx.Rngs(0))
    conditioning = encode(model, jnp.ones((3, TOKENS), jnp.int32), CONTEXT_MEL, CONTEXT_MASK)
    assert conditioning.mask.shape == (3, TOKENS)
    assert not any("context_encoder" in path for path, _ in nnx.to_flat_state(nnx.state(model)))
