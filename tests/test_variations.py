import dataclasses

import numpy as np
import pytest

from spectrodiff.data.builders.rendered.etudes import RANGES
from spectrodiff.data.builders.rendered.variations import excerpt, vary
from spectrodiff.notes.midi import Notes

BASS = 34


@pytest.fixture(params=range(5))
def rng(request):
    return np.random.default_rng(request.param)


@pytest.fixture
def notes():
    """Two minutes of piano, bass, flute, helicopter and drums, each with one note per second."""
    start = np.tile(np.arange(120.0), 5)
    part = np.repeat(np.arange(5), 120)
    return Notes(
        start=start,
        end=start + 0.5,
        pitch=np.array([60, 36, 80, 50, 38], np.int32)[part] + (start.astype(np.int32) % 3),
        velocity=np.full(600, 80, np.int32),
        program=np.array([0, BASS, 73, 125, 0], np.int32)[part],
        is_drum=part == 4,
        total_time=120.0,
    )


def test_excerpt_starts_with_a_note_and_has_at_most_the_length(notes, rng):
    short = excerpt(notes, rng, 30.2)
    assert short.start.min() == 0
    assert short.total_time == short.end.max() <= 30.2 + 1e-9
    assert len(short) == 5 * 31
    assert len(excerpt(notes, rng, 200.0)) == len(notes)


def test_vary_changes_tempo_and_key_of_all_notes_alike(notes, rng):
    varied = vary(notes, rng, "midi_class")
    assert len(varied) == len(notes)
    original_times, varied_times = np.unique(notes.start), np.unique(varied.start)
    tempo = np.diff(original_times) / np.diff(varied_times)
    np.testing.assert_allclose(tempo, tempo[0])
    assert 0.8 <= tempo[0] <= 1.25

    def chords(piece, times, key=0):
        return [sorted((piece.pitch[~piece.is_drum & (piece.start == t)] + key) % 12) for t in times]

    assert any(chords(notes, original_times, key) == chords(varied, varied_times) for key in range(-5, 7))
    assert sorted(varied.pitch[varied.is_drum]) == sorted(notes.pitch[notes.is_drum])


def test_midi_class_variation_uses_class_programs_in_range(notes, rng):
    varied = vary(notes, rng, "midi_class")
    assert set(varied.program[~varied.is_drum].tolist()) <= set(RANGES)
    assert np.sum((varied.program == 32) & ~varied.is_drum) == 120
    for program in np.unique(varied.program[~varied.is_drum]).tolist():
        low, high = RANGES[program]
        assert low <= np.median(varied.pitch[~varied.is_drum & (varied.program == program)]) <= high


def test_family_variation_uses_all_programs_of_a_family(notes):
    programs = {p for seed in range(100) for p in vary(notes, np.random.default_rng(seed), "family").program.tolist()}
    assert set(range(32, 40)) <= programs
    assert len(programs) > 80
    assert max(programs) < 96


def test_repeated_notes_do_not_overlap_and_drums_are_lengthened(notes, rng):
    long = dataclasses.replace(
        notes, end=np.where(notes.is_drum, notes.start + 1e-3, notes.start + 5), total_time=124.0
    )
    varied = vary(long, rng, "midi_class")
    assert np.all(varied.end[varied.is_drum] - varied.start[varied.is_drum] > 0.09)
    keys = np.stack([varied.pitch, varied.program, varied.is_drum])
    for key in np.unique(keys, axis=1).T:
        mine = np.all(keys == key[:, None], axis=0)
        assert np.all(varied.end[mine][:-1] <= varied.start[mine][1:])
    assert varied.total_time >= varied.end.max()
