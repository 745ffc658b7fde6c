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


def make_piece(*recordings, stems=False):
    """A piece with the sum of the recordings as audio, and optionally the recordings as its stems."""
    length = max(len(recording.audio) for recording in recordings)
    audio = sum(np.pad(recording.audio, (0, length - len(recording.audio))) for recording in recordings)
    parts = tuple(Stem(recording.audio, recording.notes) for recording in recordings) if stems else ()
    return open_piece(encode(Recording("piece", audio, recordings[0].notes, parts)), stems)


def read_all(piece):
    return piece.read(0, piece.samples)


def note_rows(notes):
    fields = ("start", "end", "pitch", "velocity", "program", "is_drum")
    return sorted(zip(*(getattr(notes, field).tolist() for field in fields), strict=True))


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_augmentation_off_leaves_piece_and_rng_unchanged(rng):
    piece, before = make_piece(*STEMS, stems=True), rng.bit_generator.state
    assert OFF(piece, rng) is piece
    assert rng.bit_generator.state == before


# ---- gain


def test_gain_scales_audio_and_keeps_notes(rng):
    piece = make_piece(STEMS[0])
    louder = amplify(piece, 6.0)
    np.testing.assert_allclose(louder.read(1000, 500), 1.9953 * piece.read(1000, 500), rtol=1e-4)
    assert louder.notes is piece.notes
    assert louder.samples == piece.samples


def test_gains_are_drawn_from_the_whole_range(rng):
    piece, vary = make_piece(STEMS[0]), Augmentation(gain_db=(-20.0, 6.0))
    loudness = np.abs(piece.read(8000, 4000)).max()
    gains = [20 * np.log10(np.abs(vary(piece, rng).read(8000, 4000)).max() / loudness) for _ in range(100)]
    assert -20.01 < min(gains) < -19 < 5 < max(gains) < 6.01
    assert np.mean(gains) == pytest.approx(-7, abs=4 * 26 / np.sqrt(12 * 100))


# ---- pitch


def tone_piece(frequency, seconds=3.0):
    audio = 0.5 * np.sin(2 * np.pi * frequency * np.arange(int(seconds * 16000)) / 16000)
    notes = dataclasses.replace(random_notes(0, voices=1, drums=0), total_time=seconds)
    notes = notes.select(notes.start < 1.0)
    return open_piece(encode(Recording("tone", audio.astype(np.float32), notes)))


@pytest.mark.parametrize("semitones", range(-12, 13))
def test_transpose_shifts_audio_and_notes_alike(semitones):
    """The spectral peak is within 5 cents of the transposed pitch, and note times scale with the duration."""
    piece = tone_piece(440.0)
    moved, speed = transpose(piece, semitones), 2 ** (semitones / 12)
    middle = read_all(moved)[4000:-4000] * np.hanning(moved.samples - 8000)
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
def test_parts_of_transposed_audio_equal_the_whole(semitones):
    piece = make_piece(STEMS[1])
    moved = transpose(piece, semitones)
    for start, count in ((0, 300), (1, 1), (777, 5000), (40_000, 10_000), (moved.samples - 100, 5000)):
        np.testing.assert_allclose(moved.read(start, count), read_all(moved)[start : start + count], atol=1e-6)
    assert len(read_all(moved)) == moved.samples


def test_transposing_by_an_octave_equals_resampling():
    piece = make_piece(STEMS[1])
    octave = read_all(transpose(piece, 12))
    np.testing.assert_allclose(octave, scipy.signal.resample_poly(read_all(piece), 1, 2), atol=1e-6)
    assert transpose(piece, 0) is piece


def test_all_shifts_in_range_are_drawn(rng):
    piece, vary = make_piece(STEMS[0]), Augmentation(semitones=2)
    shifts = [int(vary(piece, rng).notes.pitch[0] - piece.notes.pitch[0]) for _ in range(100)]
    assert {*shifts} == {-2, -1, 0, 1, 2}


def test_drums_are_not_transposed(rng):
    piece = make_piece(make_recording(0, drums=1))
    vary = Augmentation(semitones=12)
    assert all(vary(piece, rng) is piece for _ in range(20))


def test_shifts_keep_pitches_in_midi_range(rng):
    recording = make_recording(0, drums=0)
    for pitch, seen in ((125, {-12, 2}), (3, {-3, 12})):
        notes = dataclasses.replace(recording.notes, pitch=np.full_like(recording.notes.pitch, pitch))
        piece = make_piece(dataclasses.replace(recording, notes=notes))
        shifts = [int(Augmentation(semitones=12)(piece, rng).notes.pitch[0]) - pitch for _ in range(200)]
        assert {min(shifts), max(shifts)} == seen


# ---- stems


def test_mix_sums_audio_and_joins_notes_of_stems():
    parts = [make_piece(recording) for recording in STEMS]
    total = mix(parts, 9.0)
    expected = np.zeros(max(part.samples for part in parts))
    for part in parts:
        expected[: part.samples] += read_all(part)
    np.testing.assert_allclose(read_all(total), expected, atol=1e-6)
    for start, count in ((5000, 3000), (total.samples - 10, 100), (total.samples - 3000, 3000)):
        np.testing.assert_allclose(total.read(start, count), expected[start : start + count], atol=1e-6)
    assert note_rows(total.notes) == sorted(row for recording in STEMS for row in note_rows(recording.notes))
    assert (np.diff(total.notes.start) >= 0).all()
    assert total.notes.total_time == 9.0


def test_subsets_of_stems_are_drawn_uniformly(rng):
    piece, vary = make_piece(*STEMS, stems=True), Augmentation(sub_mix=1.0)
    seen = [tuple(note_rows(vary(piece, rng).notes)) for _ in range(350)]
    choices = {}
    for mask in range(1, 8):
        chosen = [recording for i, recording in enumerate(STEMS) if mask >> i & 1]
        choices[tuple(sorted(row for recording in chosen for row in note_rows(recording.notes)))] = chosen
    assert {*seen} == choices.keys()
    assert all(abs(seen.count(choice) - 50) < 4 * np.sqrt(350 * 6 / 49) for choice in choices)
    chosen, drawn = choices[seen[0]], vary(piece, np.random.default_rng(0))
    expected = mix([make_piece(recording) for recording in chosen], 1.0)
    np.testing.assert_array_equal(read_all(drawn), read_all(expected))


def test_sub_mix_probability_is_respected(rng):
    piece, vary = make_piece(*STEMS, stems=True), Augmentation(sub_mix=0.3)
    mixed = sum(vary(piece, rng) is not piece for _ in range(300))
    assert abs(mixed - 90) < 4 * np.sqrt(300 * 0.3 * 0.7)
    alone = make_piece(STEMS[0])
    assert Augmentation(sub_mix=1.0)(alone, rng) is alone


def test_sub_mix_transposition_and_gain_combine(rng):
    """They apply in this order, and the notes follow the audio."""
    vary = Augmentation(sub_mix=1.0, semitones=12, gain_db=(-20.0, -20.0))
    piece = make_piece(*STEMS[:1], stems=True)
    shift = int(vary(piece, np.random.default_rng(1)).notes.pitch[0] - STEMS[0].notes.pitch[0])
    assert shift
    expected = amplify(transpose(make_piece(STEMS[0]), shift), -20.0)
    got = vary(piece, np.random.default_rng(1))
    np.testing.assert_array_equal(got.read(2000, 3000), expected.read(2000, 3000))
    assert note_rows(got.notes) == note_rows(expected.notes)
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
def test_invalid_settings_raise_input_error(options, message):
    with pytest.raises(InputError, match=message):
        Augmentation(**options)
