import dataclasses

import numpy as np
import pytest
import scipy.signal
from inputs import make_recording, random_notes

from spectrodiff.data.augmentation import OFF, Augmentation, amplify, mix, transpose
from spectrodiff.data.pieces import open_piece
from spectrodiff.data.recordings import Recording, Stem, encode
from spectrodiff.errors import InputError
from spectrodiff.notes.sequence import Notes

STEMS = [make_recording(seed, drums=0) for seed in range(3)]


def piece_of(*recordings, stems=False):
    """A piece of a recording, or of several as stems of their sum."""
    length = max(len(recording.audio) for recording in recordings)
    audio = sum(np.pad(recording.audio, (0, length - len(recording.audio))) for recording in recordings)
    parts = tuple(Stem(recording.audio, recording.notes) for recording in recordings) if stems else ()
    return open_piece(encode(Recording("piece", audio, recordings[0].notes, parts)), stems)


def whole(piece):
    return piece.read(0, piece.samples)


def rows(notes):
    fields = ("start", "end", "pitch", "velocity", "program", "is_drum")
    return sorted(zip(*(getattr(notes, field).tolist() for field in fields), strict=True))


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_off_changes_nothing_and_draws_nothing(rng):
    piece, before = piece_of(*STEMS, stems=True), rng.bit_generator.state
    assert OFF(piece, rng) is piece
    assert rng.bit_generator.state == before


# ---- gain


def test_gain_is_a_factor_and_leaves_the_notes(rng):
    piece = piece_of(STEMS[0])
    louder = amplify(piece, 6.0)
    np.testing.assert_allclose(louder.read(1000, 500), 1.9953 * piece.read(1000, 500), rtol=1e-4)
    assert louder.notes is piece.notes
    assert louder.samples == piece.samples


def test_gains_fill_their_range(rng):
    piece, vary = piece_of(STEMS[0]), Augmentation(gain_db=(-20.0, 6.0))
    loudness = np.abs(piece.read(8000, 4000)).max()
    gains = [20 * np.log10(np.abs(vary(piece, rng).read(8000, 4000)).max() / loudness) for _ in range(100)]
    assert -20.01 < min(gains) < -19 < 5 < max(gains) < 6.01
    assert np.mean(gains) == pytest.approx(-7, abs=4 * 26 / np.sqrt(12 * 100))


# ---- pitch


def tone(frequency, seconds=3.0):
    audio = 0.5 * np.sin(2 * np.pi * frequency * np.arange(int(seconds * 16000)) / 16000)
    notes = dataclasses.replace(random_notes(0, voices=1, drums=0), total_time=seconds)
    notes = notes.select(notes.start < 1.0)
    return open_piece(encode(Recording("tone", audio.astype(np.float32), notes)))


@pytest.mark.parametrize("semitones", range(-12, 13))
def test_a_tone_is_transposed_as_its_notes_are(semitones):
    """The spectrum's peak is where the note says, within 5 cents; the recording lasts as its notes do."""
    piece = tone(440.0)
    moved, speed = transpose(piece, semitones), 2 ** (semitones / 12)
    middle = whole(moved)[4000:-4000] * np.hanning(moved.samples - 8000)
    peak = np.argmax(np.abs(np.fft.rfft(middle, 2**20))) * 16000 / 2**20
    assert abs(1200 * np.log2(peak / (440.0 * speed))) < 5
    assert moved.samples == pytest.approx(piece.samples / speed, rel=2e-3)
    np.testing.assert_array_equal(moved.notes.pitch, piece.notes.pitch + semitones)
    for field in ("start", "end", "total_time"):
        played = getattr(piece.notes, field) * (moved.samples / piece.samples)
        np.testing.assert_allclose(getattr(moved.notes, field), played, rtol=1e-4)
    for field in ("velocity", "program", "is_drum"):
        np.testing.assert_array_equal(getattr(moved.notes, field), getattr(piece.notes, field))


@pytest.mark.parametrize("semitones", [-12, -5, -1, 1, 2, 7, 12])
def test_a_part_of_a_transposed_recording_is_that_part_of_the_whole(semitones):
    piece = piece_of(STEMS[1])
    moved = transpose(piece, semitones)
    for start, count in ((0, 300), (1, 1), (777, 5000), (40_000, 10_000), (moved.samples - 100, 5000)):
        np.testing.assert_allclose(moved.read(start, count), whole(moved)[start : start + count], atol=1e-6)
    assert len(whole(moved)) == moved.samples


def test_transposing_is_resampling():
    piece = piece_of(STEMS[1])
    octave = whole(transpose(piece, 12))
    np.testing.assert_allclose(octave, scipy.signal.resample_poly(whole(piece), 1, 2), atol=1e-6)
    assert transpose(piece, 0) is piece


def test_every_shift_in_range_is_drawn(rng):
    piece, vary = piece_of(STEMS[0]), Augmentation(semitones=2)
    shifts = [int(vary(piece, rng).notes.pitch[0] - piece.notes.pitch[0]) for _ in range(100)]
    assert {*shifts} == {-2, -1, 0, 1, 2}


def test_drums_are_not_transposed(rng):
    piece = piece_of(make_recording(0, drums=1))
    vary = Augmentation(semitones=12)
    assert all(vary(piece, rng) is piece for _ in range(20))


def test_no_note_leaves_the_range_of_midi(rng):
    recording = make_recording(0, drums=0)
    for pitch, seen in ((125, {-12, 2}), (3, {-3, 12})):
        notes = dataclasses.replace(recording.notes, pitch=np.full_like(recording.notes.pitch, pitch))
        piece = piece_of(dataclasses.replace(recording, notes=notes))
        shifts = [int(Augmentation(semitones=12)(piece, rng).notes.pitch[0]) - pitch for _ in range(200)]
        assert {min(shifts), max(shifts)} == seen


# ---- stems


def test_a_mix_is_the_sum_of_its_stems_and_their_notes():
    parts = [piece_of(recording) for recording in STEMS]
    total = mix(parts, 9.0)
    expected = np.zeros(max(part.samples for part in parts))
    for part in parts:
        expected[: part.samples] += whole(part)
    np.testing.assert_allclose(whole(total), expected, atol=1e-6)
    for start, count in ((5000, 3000), (total.samples - 10, 100), (total.samples - 3000, 3000)):
        np.testing.assert_allclose(total.read(start, count), expected[start : start + count], atol=1e-6)
    assert rows(total.notes) == sorted(row for recording in STEMS for row in rows(recording.notes))
    assert (np.diff(total.notes.start) >= 0).all()
    assert total.notes.total_time == 9.0


def test_every_choice_of_stems_is_as_likely(rng):
    piece, vary = piece_of(*STEMS, stems=True), Augmentation(sub_mix=1.0)
    seen = [tuple(rows(vary(piece, rng).notes)) for _ in range(350)]
    choices = {}
    for mask in range(1, 8):
        chosen = [recording for i, recording in enumerate(STEMS) if mask >> i & 1]
        choices[tuple(sorted(row for recording in chosen for row in rows(recording.notes)))] = chosen
    assert {*seen} == choices.keys()
    assert all(abs(seen.count(choice) - 50) < 4 * np.sqrt(350 * 6 / 49) for choice in choices)
    chosen, drawn = choices[seen[0]], vary(piece, np.random.default_rng(0))
    expected = mix([piece_of(recording) for recording in chosen], 1.0)
    np.testing.assert_array_equal(whole(drawn), whole(expected))


def test_the_share_of_sub_mixes(rng):
    piece, vary = piece_of(*STEMS, stems=True), Augmentation(sub_mix=0.3)
    mixed = sum(vary(piece, rng) is not piece for _ in range(300))
    assert abs(mixed - 90) < 4 * np.sqrt(300 * 0.3 * 0.7)
    alone = piece_of(STEMS[0])
    assert Augmentation(sub_mix=1.0)(alone, rng) is alone


def test_all_at_once(rng):
    """A sub-mix, shifted, then made softer: the labels of each step are those of the next."""
    vary = Augmentation(sub_mix=1.0, semitones=12, gain_db=(-20.0, -20.0))
    piece = piece_of(*STEMS[:1], stems=True)
    shift = int(vary(piece, np.random.default_rng(1)).notes.pitch[0] - STEMS[0].notes.pitch[0])
    assert shift
    expected = amplify(transpose(piece_of(STEMS[0]), shift), -20.0)
    got = vary(piece, np.random.default_rng(1))
    np.testing.assert_array_equal(got.read(2000, 3000), expected.read(2000, 3000))
    assert rows(got.notes) == rows(expected.notes)
    assert isinstance(got.notes, Notes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sub_mix": -0.1}, r"Augmentation\.sub_mix is -0\.1"),
        ({"sub_mix": float("nan")}, r"Augmentation\.sub_mix is nan"),
        ({"semitones": 13}, r"Augmentation\.semitones is 13"),
        ({"semitones": -1}, r"Augmentation\.semitones is -1"),
        ({"gain_db": (3.0, -3.0)}, r"Augmentation\.gain_db is \(3\.0, -3\.0\)"),
        ({"gain_db": (-99.0, 0.0)}, r"Augmentation\.gain_db"),
        ({"gain_db": (0.0, float("nan"))}, r"Augmentation\.gain_db"),
    ],
)
def test_nonsense(options, message):
    with pytest.raises(InputError, match=message):
        Augmentation(**options)
