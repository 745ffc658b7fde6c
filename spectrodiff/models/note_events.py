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


def _latest(tokens, first, count):
    """Returns the latest token at or before each position whose id is in [first, first + count), or 0 if none is.

    Tokens of shift, program and velocity apply to the pitch tokens after them until the next token of their type.
    """
    places = jnp.where((tokens >= first) & (tokens < first + count), jnp.arange(tokens.shape[0]), -1)
    last = jax.lax.cummax(places)
    return jnp.where(last >= 0, tokens[last], 0)


def event_frames(tokens: Int[Array, " n"], vocabulary: Vocabulary) -> Float[Array, " n"]:
    """Returns the time of each token of a window, in frames from the start of the window."""
    shift = _latest(tokens, vocabulary.shift_start, MAX_SHIFT + 1)
    return jnp.maximum(shift - vocabulary.shift_start, 0) / STEPS_PER_FRAME


def read_notes(tokens: Int[Array, " n"], vocabulary: Vocabulary, max_notes: int) -> NoteEvents:
    """Returns the first `max_notes` notes of a window, whose total number `Vocabulary.count_notes` returns.

    A note ends at the first note-off after it with the same pitch and program.
    """
    v = vocabulary
    velocity = _latest(tokens, v.velocity_start, v.velocity_bins + 1)
    after_tie = jnp.cumsum(tokens == v.tie) > 0
    is_pitch = (tokens >= v.pitch_start) & (tokens < v.pitch_start + 128)
    is_drum = (tokens >= v.drum_start) & (tokens < v.drum_start + 128)
    is_off = is_pitch & after_tie & (velocity == v.velocity_start)
    is_note = (is_pitch & ~is_off) | is_drum

    fields = jnp.stack(
        [
            tokens,
            jnp.where(is_drum, 0, _latest(tokens, v.program_start, 128)),
            jnp.where(after_tie, velocity, 0),
        ]
    )
    frames = event_frames(tokens, v)

    (notes,) = jnp.nonzero(is_note, size=max_notes, fill_value=-1)
    (offs,) = jnp.nonzero(is_off, size=max_notes, fill_value=-1)
    pitch, program, note_velocity = jnp.where(notes >= 0, fields[:, notes], 0)
    off_pitch, off_program, _ = fields[:, offs]
    is_its_off = (offs > notes[:, None]) & (pitch[:, None] == off_pitch) & (program[:, None] == off_program)
    first_off = jnp.argmax(is_its_off, 1)
    valid = notes >= 0
    return NoteEvents(
        pitch=pitch,
        program=program,
        velocity=note_velocity,
        onset=jnp.where(after_tie[notes], frames[notes], -jnp.inf),
        offset=jnp.where(is_its_off.any(1), frames[offs[first_off]], jnp.inf),
        drum=valid & is_drum[notes],
        valid=valid,
    )
