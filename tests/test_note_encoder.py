import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from inputs import OURS, PAPER, jitted, random_notes, windows_of

from spectrodiff.models.note_encoder import NoteEncoder
from spectrodiff.notes.tokenizer import NoteTokenizer
from spectrodiff.notes.vocabulary import Vocabulary

TOKENS = 128
VARIANTS = {
    "paper": PAPER.model,
    "event_times": dataclasses.replace(PAPER.model, event_times=True),
    "unmasked_padding": dataclasses.replace(PAPER.model, mask_padding=False),
    "compact": dataclasses.replace(PAPER.model, compact_notes=True),
    "compact_event_times": dataclasses.replace(OURS.model, note_roll=False, continuation=False),
}
encode = jitted(NoteEncoder.__call__)


@pytest.fixture(scope="module", params=VARIANTS)
def encoder(request):
    return NoteEncoder(VARIANTS[request.param], Vocabulary(1), rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def tokens():
    """Three windows, none of which fills its row."""
    tokens = windows_of(NoteTokenizer(), TOKENS)
    assert not tokens[:, TOKENS - 16 :].any()
    return tokens


def test_mask_covers_tokens_or_notes(encoder, tokens):
    memory, mask, notes = encode(encoder, tokens)
    if encoder.compact:
        assert memory.shape == (3, TOKENS // 2, 32)
        np.testing.assert_array_equal(mask.sum(-1), [encoder.vocabulary.count_notes(row) for row in tokens])
        np.testing.assert_array_equal(mask, notes.valid)
    else:
        assert memory.shape == (3, TOKENS, 32)
        np.testing.assert_array_equal(mask, tokens > 0)
        assert notes is None


def test_amount_of_padding_does_not_change_the_output(encoder, tokens):
    memory, mask, _ = encode(encoder, tokens)
    shorter, shorter_mask, _ = encode(encoder, tokens[:, : TOKENS - 16])
    places = shorter.shape[1]
    assert not mask[:, places:].any()
    np.testing.assert_array_equal(shorter_mask, mask[:, :places])
    np.testing.assert_allclose(
        jnp.where(mask[:, :places, None], memory[:, :places] - shorter, 0.0), np.zeros(shorter.shape), atol=1e-5
    )
    assert (places == TOKENS) == (not encoder.mask_padding)  # without masking, the length is fixed


def test_unmasked_padding_changes_the_output(tokens):
    """Notes attend to all of the padding, as in the paper's autoregressive models; the decoder does not."""

    def encoded(token_count, **options):
        model = dataclasses.replace(PAPER.model, max_tokens=token_count, **options)
        encoder = NoteEncoder(model, Vocabulary(1), rngs=nnx.Rngs(0))
        table = NoteEncoder(PAPER.model, Vocabulary(1), rngs=nnx.Rngs(0)).positions.table[...]
        encoder.positions.table[...] = table[:token_count]
        memory, mask, _ = encode(encoder, tokens[:, : TOKENS - 16])
        np.testing.assert_array_equal(mask[:, TOKENS - 16 :], np.zeros_like(mask[:, TOKENS - 16 :]))
        return jnp.where(mask[..., None], memory, 0.0)[:, : TOKENS - 16]

    masked, seen, less_padding = encoded(128), encoded(128, mask_padding=False), encoded(112, mask_padding=False)
    for other in (seen, less_padding):
        assert bool((jnp.abs(other - masked).max((1, 2)) > 1e-3).all())
    assert bool((jnp.abs(seen - less_padding).max((1, 2)) > 1e-3).all())


def test_windows_of_a_batch_are_independent(encoder, tokens):
    memory, _, _ = encode(encoder, tokens)
    changed, _, _ = encode(encoder, tokens[[0, 2, 1]])
    np.testing.assert_allclose(memory[0], changed[0], atol=1e-6)
    np.testing.assert_allclose(memory[1], changed[2], atol=1e-6)
    assert not np.allclose(memory[1], changed[1], atol=0.1)


def test_every_note_attends_to_every_other(encoder, tokens):
    graph, params, rest = nnx.split(encoder, nnx.Param, ...)

    def first_place(params):
        memory, _, _ = nnx.merge(graph, params, rest)(jnp.asarray(tokens[:1]))
        return (memory[0, 0] * jnp.arange(32.0)).sum()

    gradient = jax.jit(jax.grad(first_place))(params)["embedding"]["embedding"][...]
    v = encoder.vocabulary
    pitches = np.unique(tokens[0][(tokens[0] >= v.pitch_start) & (tokens[0] < v.velocity_start)])
    assert len(pitches) > 2
    assert bool((jnp.abs(gradient[pitches]).sum(-1) > 0).all())


def memory_change(encoder, tokens, old, new):
    """The largest change of the memory when every token `old` is replaced by `new`."""
    changed = np.where(tokens == old, new, tokens)
    assert (changed != tokens).any()
    memory, mask, _ = encode(encoder, tokens)
    other, _, _ = encode(encoder, changed.astype(np.int32))
    return float(jnp.abs(jnp.where(mask[..., None], memory - other, 0.0)).max())


def test_shifts_programs_and_drums_change_the_output(encoder, tokens):
    v = encoder.vocabulary
    shifts = np.unique(tokens[(tokens >= v.shift_start) & (tokens < v.pitch_start)])
    programs = np.unique(tokens[(tokens >= v.program_start) & (tokens < v.drum_start)])
    drums = np.unique(tokens[(tokens >= v.drum_start) & (tokens < v.end)])
    for old in (shifts[0], programs[0], drums[0]):
        assert memory_change(encoder, tokens, old, old + 1) > 1e-3


def test_velocities_change_the_output():
    encoder = NoteEncoder(OURS.model, Vocabulary(32), rngs=nnx.Rngs(0))
    v, tokenizer = Vocabulary(32), NoteTokenizer(OURS.tokenizer)
    window = tokenizer.window(tokenizer.timeline(random_notes(0, voices=3)), 0)
    tokens = np.pad(window, (0, TOKENS - len(window)))[None]
    loud = tokens[(tokens > v.velocity_start) & (tokens < v.tie)]
    assert memory_change(encoder, tokens, loud[0], v.velocity(127 if loud[0] < v.velocity(100) else 1)) > 1e-3
