"""Decoding of note tokens to notes inside jit, for compact notes, event times and the note roll."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from spectrodiff.notes.vocabulary import MAX_SHIFT, Vocabulary

STEPS_PER_FRAME = 2  # time steps of shift tokens are 10 ms, frames 20 ms


class NoteEvents(NamedTuple):
    """The notes of a window in the order of their tokens, one per element; elements after the last are not `valid`.

    `pitch`, `program` and `velocity` are token ids, or 0 where the tokens do not specify one. `onset` and `offset` are
    in frames from the start of the window. The onset of a note that began before the window is -inf; the offset of a
    drum hit, and of a note that does not end in the window, is +inf.
    """

    pitch: Int[Array, "n"]
    program: Int[Array, "n"]
    velocity: Int[Array, "n"]
    onset: Float[Array, "n"]
    offset: Float[Array, "n"]
    drum: Bool[Array, "n"]
    valid: Bool[Array, "n"]


def _in_force(tokens, first, count):
    """Returns, for each position, the last token up to it with an id in [first, first + count), or 0."""
    places = jnp.where((tokens >= first) & (tokens < first + count), jnp.arange(tokens.shape[0]), -1)
    last = jax.lax.cummax(places)
    return jnp.where(last >= 0, tokens[last], 0)


def event_frames(tokens: Int[Array, " n"], vocabulary: Vocabulary) -> Float[Array, " n"]:
    """Returns the time of each token of a window, in frames from the start of the window."""
    shift = _in_force(tokens, vocabulary.shift_start, MAX_SHIFT + 1)
    return jnp.maximum(shift - vocabulary.shift_start, 0) / STEPS_PER_FRAME


def read_notes(tokens: Int[Array, " n"], vocabulary: Vocabulary, max_notes: int) -> NoteEvents:
    """Returns the first `max_notes` notes of a window. `Vocabulary.count_notes` counts how many notes it has in all."""
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
