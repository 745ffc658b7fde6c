import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from inputs import OURS

from spectrodiff.audio.mel import LOG_FLOOR
from spectrodiff.models.note_events import NoteEvents
from spectrodiff.models.note_roll import _SINCE_ONSET, NoteRoll, kernel_count, roll_kernels, since_offset

FRAMES = 256
KERNELS = kernel_count(16)
ONSETS, OFFSETS = slice(0, len(_SINCE_ONSET)), slice(len(_SINCE_ONSET), len(_SINCE_ONSET) + len(since_offset(16)))
STARTS = slice(OFFSETS.stop, KERNELS)
TIME = np.arange(FRAMES) + 1.0  # centre of each frame's window of 640 samples
kernels_of = jax.jit(roll_kernels, static_argnums=(1, 2))


def events(*rows):
    """`NoteEvents` of (onset, offset, drum) rows in frames, followed by one row of padding."""
    onset, offset, drum = (np.array(column) for column in zip(*rows, (3.0, 5.0, False), strict=True))
    ids = np.ones(len(onset), np.int32)
    real = np.arange(len(onset)) < len(rows)
    return NoteEvents(ids, ids, ids, np.float32(onset), np.float32(offset), drum.astype(bool), real)


@pytest.fixture(scope="module")
def kernels():
    """[frames, 5, kernels] of a short note, a tied one, one without an offset, a drum and padding."""
    rows = (20.5, 60.0, False), (-np.inf, 90.0, False), (100.0, np.inf, False), (30.0, np.inf, True)
    return np.asarray(kernels_of(events(*rows), FRAMES))


def test_kernels_sum_to_one_while_a_note_sounds(kernels):
    total = kernels.sum(-1)
    for note, start, end in ((0, 20.5, 59.0), (1, 0.0, 89.0), (2, 100.0, 1e9), (3, 30.0, 1e9)):
        np.testing.assert_allclose(total[(start <= TIME) & (end >= TIME), note], 1.0, atol=1e-6)
    assert kernels.min() >= 0.0
    assert kernels.max() <= 1.0


def test_kernels_are_zero_before_attack_and_after_release(kernels):
    total = kernels.sum(-1)
    assert not total[TIME <= 20.5 - 3, 0].any()
    assert not total[TIME >= 60 + 32, 0].any()
    assert not total[TIME <= 100 - 3, 2].any()


def test_release_kernels_replace_onset_kernels_at_the_offset(kernels):
    assert not kernels[TIME >= 60.5, 0][:, ONSETS].any()
    assert not kernels[TIME <= 59, 0][:, OFFSETS].any()
    np.testing.assert_allclose(kernels[(TIME >= 60.5) & (TIME <= 76), 0][:, OFFSETS].sum(-1), 1.0, atol=1e-6)


def test_longer_release_adds_kernels_and_keeps_the_others(kernels):
    longer = np.asarray(kernels_of(events((20.5, 60.0, False)), FRAMES, 64))
    assert longer.shape[-1] == kernel_count(64) == KERNELS + 2
    added = slice(OFFSETS.stop, OFFSETS.stop + 2)
    np.testing.assert_array_equal(np.delete(longer[:, 0], added, axis=1), kernels[:, 0])
    ringing = longer[(TIME >= 60.5) & (TIME <= 60 + 64), 0]
    np.testing.assert_allclose(ringing[:, OFFSETS.start : added.stop].sum(-1), 1.0, atol=1e-6)
    assert not longer[TIME >= 60 + 128, 0].any()


def test_kernel_groups_used_by_each_kind_of_note(kernels):
    used = [[bool(kernels[:, note, part].any()) for part in (ONSETS, OFFSETS, STARTS)] for note in range(5)]
    struck, tied, held, drum, padding = used
    assert struck == [True, True, False]
    assert tied == [False, True, True]
    assert held == [True, False, False]
    assert drum == [True, False, False]
    assert padding == [False, False, False]


def test_onset_kernels_peak_at_their_time_since_onset():
    kernels = np.asarray(kernels_of(events((20.0, np.inf, False)), FRAMES))[:, 0]
    for k, since in enumerate(_SINCE_ONSET):
        assert kernels[20 + since == TIME, k] == 1.0


def test_kernels_are_shift_invariant(kernels):
    moved = np.asarray(kernels_of(events((70.5, 110.0, False)), FRAMES))
    np.testing.assert_allclose(moved[50:, 0], kernels[:-50, 0], atol=1e-5)


@pytest.fixture(scope="module")
def roll():
    return NoteRoll(OURS.model, OURS.decoder.mean, OURS.decoder.std, rngs=nnx.Rngs(0))


def unscaled(roll, sketch):
    scaled = sketch * roll.std + roll.mean
    return (scaled + 1) / 2 * (4.0 - LOG_FLOOR) + LOG_FLOOR


def sketched(roll, memory, kernels, tied=False, context=None):
    """Log magnitudes of the sketch, for notes that are all tied or all not, with or without context."""
    frames = jnp.zeros((1, 8, 128)) if context is None else context
    given = jnp.full(frames.shape[:2], context is not None)
    sketch = roll(memory, kernels, jnp.full(memory.shape[:2], tied), frames, given)
    return np.asarray(unscaled(roll, sketch))


def test_sketch_of_no_notes_is_silent(roll):
    memory = jax.random.normal(jax.random.key(0), (1, 3, 32))
    log_magnitudes = sketched(roll, memory, jnp.zeros((1, 4, 3, KERNELS)))
    np.testing.assert_allclose(log_magnitudes, np.full((1, 4, 128), LOG_FLOOR), atol=1e-3)


def test_note_magnitudes_add_up(roll):
    memory = jax.random.normal(jax.random.key(0), (1, 2, 32))
    kernels = jax.random.uniform(jax.random.key(1), (1, 4, 2, KERNELS)).at[..., STARTS].set(0.0)
    first, second = (kernels * jnp.array(part)[:, None] for part in ([1.0, 0.0], [0.0, 1.0]))
    both, one, other = (np.exp(sketched(roll, memory, k)) - 1e-5 for k in (kernels, first, second))
    np.testing.assert_allclose(both, one + other, rtol=1e-3)
    np.testing.assert_allclose(np.exp(sketched(roll, memory, 0.5 * first)) - 1e-5, 0.5 * one, rtol=1e-3)


@pytest.fixture(scope="module")
def context():
    return jax.random.uniform(jax.random.key(2), (1, 8, 128), minval=-0.8, maxval=0.5)


def test_tied_notes_start_at_the_level_of_the_context(roll, context):
    memory = jax.random.normal(jax.random.key(0), (1, 2, 32))
    held = jnp.zeros((1, 40, 2, KERNELS)).at[..., STARTS.start].set(1.0)
    after, alone = sketched(roll, memory, held, True, context), sketched(roll, memory, held, True)
    end = unscaled(roll, (np.asarray(context)[:, -2:].mean(1) - roll.mean) / roll.std)
    np.testing.assert_allclose(after[:, 0], end, atol=1e-3)
    # The difference is linear between the knots, which are 16 and 32 frames after the window's start.
    difference = after - alone
    np.testing.assert_allclose(difference[:, 24], (difference[:, 16] + difference[:, 32]) / 2, atol=1e-3)


def test_new_notes_add_to_the_continued_context(roll, context):
    memory = jax.random.normal(jax.random.key(0), (1, 2, 32))
    struck = jax.random.uniform(jax.random.key(1), (1, 4, 2, KERNELS)).at[..., STARTS].set(0.0)
    ringing = np.exp(sketched(roll, memory, 0.0 * struck, False, context))
    np.testing.assert_allclose(
        np.exp(sketched(roll, memory, struck, False, context)) - ringing,
        np.exp(sketched(roll, memory, struck)) - np.exp(LOG_FLOOR),
        rtol=1e-3,
    )


@pytest.mark.parametrize("tied", [False, True])
def test_continuation_has_no_effect_without_context(roll, tied):
    plain = NoteRoll(dataclasses.replace(OURS.model, continuation=False), roll.mean, roll.std, rngs=nnx.Rngs(0))
    memory = jax.random.normal(jax.random.key(0), (1, 2, 32))
    part = slice(ONSETS.stop, KERNELS) if tied else slice(0, STARTS.start)
    kernels = jnp.zeros((1, 4, 2, KERNELS)).at[..., part].set(0.5)
    np.testing.assert_allclose(sketched(roll, memory, kernels, tied), sketched(plain, memory, kernels, tied), atol=1e-4)
