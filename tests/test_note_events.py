"""Notes decoded from tokens are compared with the notes that were encoded."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from inputs import random_notes

from spectrodiff.config import TokenizerConfig
from spectrodiff.models.note_events import event_frames, read_notes
from spectrodiff.notes.midi import Notes
from spectrodiff.notes.tokenizer import NoteTokenizer
from spectrodiff.notes.vocabulary import Vocabulary

TOKENS, MAX_NOTES = 512, 256


@functools.cache
def reader(bins, max_notes=MAX_NOTES):
    return jax.jit(functools.partial(read_notes, vocabulary=Vocabulary(bins), max_notes=max_notes))


def padded(tokens, length=TOKENS):
    return np.pad(tokens, (0, length - len(tokens)))


def true_events(notes: Notes, vocabulary: Vocabulary, start_frame: int) -> list[tuple]:
    """(pitch, program, velocity, onset, offset, drum) of the notes in a window, as tokens, with times in frames."""
    begin, length, rows = 2 * start_frame, 512, []
    columns = (notes.start, notes.end, notes.pitch, notes.velocity, notes.program, notes.is_drum)
    for start, end, pitch, velocity, program, drum in zip(*(column.tolist() for column in columns), strict=True):
        on, off = round(start * 100) - begin, round(end * 100) - begin
        tied = on < 0 <= off and not drum
        if not tied and not 0 <= on < length:
            continue
        rows.append(
            (
                vocabulary.drum(pitch) if drum else vocabulary.pitch(pitch),
                0 if drum else vocabulary.program(program),
                0 if tied else vocabulary.velocity(velocity),
                -np.inf if tied else on / 2,
                off / 2 if off < length and not drum else np.inf,
                drum,
            )
        )
    return sorted(rows)


@pytest.mark.parametrize("bins", [1, 32])
@pytest.mark.parametrize("seed", range(8))
def test_notes_round_trip_through_tokens(bins, seed):
    notes = random_notes(seed)
    tokenizer = NoteTokenizer(TokenizerConfig(velocity_bins=bins))
    timeline = tokenizer.timeline(notes)
    kinds = set()
    for start_frame in (0, 37, 256):
        tokens = tokenizer.window(timeline, start_frame)
        events = jax.tree.map(np.asarray, reader(bins)(padded(tokens)))
        fields = (events.pitch, events.program, events.velocity, events.onset, events.offset, events.drum)
        found = sorted(zip(*(field[events.valid].tolist() for field in fields), strict=True))
        assert found == true_events(notes, tokenizer.vocabulary, start_frame)
        assert events.valid.sum() == tokenizer.vocabulary.count_notes(tokens)
        assert not events.valid[events.valid.sum() :].any()
        kinds |= {(np.isneginf(row[3]), np.isposinf(row[4]), row[5]) for row in found}
    assert {(False, False, False), (False, True, True)} <= kinds


def test_hand_written_window_is_decoded():
    """The window has a tied note, one struck again where it ends, a drum, and one that lasts beyond the window."""
    v = Vocabulary(1)
    tokens = np.array([
        v.program(5), v.pitch(60), v.tie, v.velocity(80), v.drum(38),
        v.shift(100), v.velocity(0), v.pitch(60), v.velocity(80), v.pitch(60),
        v.shift(151), v.program(7), v.pitch(60), v.shift(200), v.program(5), v.velocity(0), v.pitch(60), 1,
    ])  # fmt: skip
    events = reader(1)(padded(tokens.astype(np.int32)))
    assert events.pitch[:4].tolist() == [v.pitch(60), v.drum(38), v.pitch(60), v.pitch(60)]
    assert events.program[:4].tolist() == [v.program(5), 0, v.program(5), v.program(7)]
    assert events.velocity[:4].tolist() == [0, v.velocity(80), v.velocity(80), v.velocity(80)]
    assert events.onset[:4].tolist() == [-np.inf, 0.0, 50.0, 75.5]
    assert events.offset[:4].tolist() == [50.0, np.inf, 100.0, np.inf]
    assert events.valid.tolist() == [True] * 4 + [False] * (MAX_NOTES - 4)
    times = event_frames(jnp.asarray(tokens), v)
    assert times.tolist() == [0.0] * 5 + [50.0] * 5 + [75.5] * 3 + [100.0] * 5


def test_empty_window_has_no_notes():
    events = reader(1)(np.zeros(TOKENS, np.int32))
    assert not events.valid.any()
    assert not events.pitch.any()


def test_max_notes_keeps_the_first_notes():
    tokenizer = NoteTokenizer()
    tokens = padded(tokenizer.window(tokenizer.timeline(random_notes(0)), 0))
    few, every_note = reader(1, 6)(tokens), reader(1)(tokens)
    assert few.valid.all()
    assert few.onset.tolist() == every_note.onset[:6].tolist()
