"""Note tokens read back into notes, inside jit: what our compact tokens, event times and note roll are made from."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from spectrodiff.notes.vocabulary import MAX_SHIFT, Vocabulary

STEPS_PER_FRAME = 2  # 10 ms steps, 20 ms frames


class NoteEvents(NamedTuple):
    """The notes of a window, one row each, in the order their tokens stand in; rows past the last are not `real`.

    `pitch`, `program` and `velocity` are the token ids that say so (0: none said). Times are in frames from the
    window's start: a note that was already sounding begins at -inf, one that sounds on ends at +inf, as do drum hits.
    """

    pitch: Int[Array, "n"]
    program: Int[Array, "n"]
    velocity: Int[Array, "n"]
    onset: Float[Array, "n"]
    offset: Float[Array, "n"]
    drum: Bool[Array, "n"]
    valid: Bool[Array, "n"]


def _in_force(tokens, first, count):
    """At each place, the last token so far within ids [first, first + count), or 0."""
    places = jnp.where((tokens >= first) & (tokens < first + count), jnp.arange(tokens.shape[0]), -1)
    last = jax.lax.cummax(places)
    return jnp.where(last >= 0, tokens[last], 0)


def event_frames(tokens: Int[Array, " n"], vocabulary: Vocabulary) -> Float[Array, " n"]:
    """The time at which each token of a window stands, in frames from the window's start."""
    shift = _in_force(tokens, vocabulary.shift_start, MAX_SHIFT + 1)
    return jnp.maximum(shift - vocabulary.shift_start, 0) / STEPS_PER_FRAME


def read_notes(tokens: Int[Array, " n"], vocabulary: Vocabulary, max_notes: int) -> NoteEvents:
    """The first `max_notes` notes of one window; `count_notes` tells whether that is all of them."""
    v = vocabulary
    velocity = _in_force(tokens, v.velocity_start, v.velocity_bins + 1)
    after_tie = jnp.cumsum(tokens == v.tie) > 0
    is_pitch = (tokens >= v.pitch_start) & (tokens < v.pitch_start + 128)
    is_drum = (tokens >= v.drum_start) & (tokens < v.drum_start + 128)
    is_off = is_pitch & after_tie & (velocity == v.velocity_start)
    is_note = (is_pitch & ~is_off) | is_drum

    fields = jnp.stack(
        [
            tokens,
            jnp.where(is_drum, 0, _in_force(tokens, v.program_start, 128)),
            jnp.where(after_tie, velocity, 0),
        ]
    )
    frames = event_frames(tokens, v)

    (notes,) = jnp.nonzero(is_note, size=max_notes, fill_value=-1)
    (offs,) = jnp.nonzero(is_off, size=max_notes, fill_value=-1)
    pitch, program, note_velocity = jnp.where(notes >= 0, fields[:, notes], 0)
    off_pitch, off_program, _ = fields[:, offs]
    ends_it = (offs > notes[:, None]) & (pitch[:, None] == off_pitch) & (program[:, None] == off_program)
    first = jnp.argmax(ends_it, 1)
    valid = notes >= 0
    return NoteEvents(
        pitch=pitch,
        program=program,
        velocity=note_velocity,
        onset=jnp.where(after_tie[notes], frames[notes], -jnp.inf),
        offset=jnp.where(ends_it.any(1), frames[offs[first]], jnp.inf),
        drum=valid & is_drum[notes],
        valid=valid,
    )
