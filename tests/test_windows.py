import dataclasses
import itertools

import numpy as np
import pytest
from inputs import make_recording

from spectrodiff.audio.mel import log_mel_on_host, scale_mel
from spectrodiff.data.augmentation import OFF, Augmentation, transpose
from spectrodiff.data.pieces import open_piece
from spectrodiff.data.recordings import Recording, Stem, encode
from spectrodiff.data.windows import Windows, cut_window, thin_window
from spectrodiff.errors import InputError
from spectrodiff.notes.tokenizer import NoteTokenizer

TOKENIZER = NoteTokenizer()
SHORT, LONG = make_recording(1), make_recording(2, seconds=14.0)


@pytest.fixture(scope="module")
def short():
    return open_piece(encode(SHORT))


@pytest.fixture(scope="module")
def long():
    return open_piece(encode(LONG))


def scaled_mel(piece):
    return scale_mel(log_mel_on_host(piece.read(0, piece.samples)))


def cut(piece, start, tokens=512, notes=256):
    return cut_window(piece, TOKENIZER.timeline(piece.notes), start, TOKENIZER, tokens, notes)


def same(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


# ---- cutting


def test_window_has_target_context_masks_and_tokens(short):
    """Target and context are slices of the recording's mel, padded with silence."""
    start, mel = 130, scaled_mel(short)
    assert start < 256 < len(mel) < start + 256
    example = cut(short, start)
    real = len(mel) - start
    np.testing.assert_allclose(example["target"][:real], mel[start:], atol=1e-6)
    np.testing.assert_allclose(example["context"][:start], mel[:start], atol=1e-6)
    assert (example["target"][real:] == -1.0).all()
    assert (example["context"][start:] == -1.0).all()
    np.testing.assert_array_equal(example["target_mask"], np.arange(256) < real)
    np.testing.assert_array_equal(example["context_mask"], np.arange(256) < start)
    window = TOKENIZER.window(TOKENIZER.timeline(SHORT.notes), start)
    np.testing.assert_array_equal(example["tokens"], np.pad(window, (0, 512 - len(window))))
    assert {name: (array.shape, array.dtype.name) for name, array in example.items()} == {
        "tokens": ((512,), "int32"),
        "target": ((256, 128), "float32"),
        "target_mask": ((256,), "bool"),
        "context": ((256, 128), "float32"),
        "context_mask": ((256,), "bool"),
    }


def test_any_window_matches_slices_of_the_whole_mel(long):
    """There are no edge effects, as audio beyond the window is read too."""
    mel = scaled_mel(long)
    for start in (0, 1, 255, 256, 257, 300, len(mel) - 256, len(mel) - 255, len(mel) - 1):
        example = cut(long, start)
        target, context = mel[start : start + 256], mel[max(start - 256, 0) : start]
        np.testing.assert_allclose(example["target"][example["target_mask"]], target, atol=1e-6)
        np.testing.assert_allclose(example["context"][example["context_mask"]], context, atol=1e-6)
        window = TOKENIZER.window(TOKENIZER.timeline(LONG.notes), start)
        np.testing.assert_array_equal(example["tokens"][: len(window)], window)


def test_only_audio_of_the_window_is_read(long):
    reads = []

    def read(start, count):
        reads.append((start, count))
        return long.read(start, count)

    cut(dataclasses.replace(long, read=read), 300)
    assert reads == [((300 - 256) * 320, (512 + 16) * 320)]


def test_window_with_too_many_tokens_or_notes_is_skipped(short):
    window = TOKENIZER.window(TOKENIZER.timeline(SHORT.notes), 0)
    notes = TOKENIZER.vocabulary.count_notes(window)
    assert cut(short, 0, len(window), notes) is not None
    assert cut(short, 0, len(window) - 1, notes) is None
    assert cut(short, 0, len(window), notes - 1) is None


def test_window_over_the_tokenizers_max_tokens_is_skipped(short):
    small = NoteTokenizer(dataclasses.replace(TOKENIZER.config, max_tokens=8))
    assert cut_window(short, small.timeline(short.notes), 0, small, 512, 256) is None


# ---- thinning


def test_thinned_window_is_the_longest_that_fits():
    timeline = TOKENIZER.timeline(LONG.notes)
    full, count = TOKENIZER.window(timeline, 100), TOKENIZER.vocabulary.count_notes
    np.testing.assert_array_equal(thin_window(timeline, 100, TOKENIZER, len(full), count(full)), full)
    lengths = []
    for max_notes in range(count(full), -1, -1):
        thinned = thin_window(timeline, 100, TOKENIZER, len(full), max_notes)
        assert count(thinned) <= max_notes
        lengths.append(len(thinned))
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[-1] == 2  # the tie token and EOS
    assert len(thin_window(timeline, 100, TOKENIZER, len(full) - 1, count(full))) < len(full)
    tight = NoteTokenizer(dataclasses.replace(TOKENIZER.config, max_tokens=len(full) - 5), on_overflow="thin")
    np.testing.assert_array_equal(
        thin_window(timeline, 100, TOKENIZER, len(full) - 5, count(full)), tight.window(timeline, 100)
    )


def test_thinning_drops_the_quietest_notes_first():
    """A thinned window equals the window of the loudest notes alone."""
    notes = dataclasses.replace(LONG.notes, velocity=np.arange(1, len(LONG.notes) + 1, dtype=np.int32))
    thinned = thin_window(TOKENIZER.timeline(notes), 0, TOKENIZER, 512, 5)
    within = np.flatnonzero((notes.start < 5.115) & (notes.end > 0))
    loudest = np.sort(within[np.argsort(notes.velocity[within])[-5:]]).astype(np.int32)
    np.testing.assert_array_equal(thinned, TOKENIZER.window(TOKENIZER.timeline(notes.select(loudest)), 0))


# ---- drawing


def windows(**options):
    return Windows(TOKENIZER, **{"tokens_per_note": 2, "tokens": 512, "first_share": 0.05} | options)


def draw(examples, recording, seed=0):
    return examples.draw(itertools.repeat(examples.read(encode(recording))[0]), np.random.default_rng(seed))


@pytest.fixture
def draw_starts(monkeypatch, long):
    """A function that draws `count` start frames of windows of LONG."""

    def where(piece, timeline, start, *rest):
        return {"start": np.array(start)}

    monkeypatch.setattr("spectrodiff.data.windows.cut_window", where)
    timeline = TOKENIZER.timeline(long.notes)

    def drawn(count, **options):
        examples, rng = windows(**options), np.random.default_rng(0)
        return np.array([examples.draw(itertools.repeat((long, timeline)), rng)["start"] for _ in range(count)])

    return drawn


def test_start_frames_are_uniformly_distributed(draw_starts, long):
    """No window starts within the last 64 frames of the piece."""
    start_frames = np.bincount(draw_starts(20_000, first_share=0.0), minlength=long.frames)
    possible = long.frames - 64
    assert start_frames[possible:].sum() == 0
    expected = 20_000 / possible
    assert ((start_frames[:possible] - expected) ** 2 / expected).sum() < possible + 5 * np.sqrt(
        2 * possible
    )  # chi-squared


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_share_of_first_windows_is_first_share(draw_starts, long, share):
    start_frames = draw_starts(2000, first_share=share)
    expected = share + (1 - share) / (long.frames - 64)
    assert abs(np.mean(start_frames == 0) - expected) <= 4 * np.sqrt(expected * (1 - expected) / 2000)


def test_drawn_window_matches_cut_window(long):
    example = draw(windows(first_share=0.0), LONG, seed=3)
    rng = np.random.default_rng(3)
    rng.random()  # the draw for `first_share`
    start = int(rng.integers(long.frames - 64))
    assert same(example, {**cut(long, start), "overfull": np.int32(0), "start": np.int32(start)})


def dense_recording():
    """A recording whose first window has many notes."""
    return dataclasses.replace(SHORT, notes=make_recording(1, voices=40, drums=60).notes)


def test_skipped_windows_are_counted():
    """Two dense pieces are skipped before a sparse one."""
    examples = windows(first_share=1.0, tokens=128)
    dense_piece, sparse = (examples.read(encode(recording))[0] for recording in (dense_recording(), SHORT))
    assert cut(dense_piece[0], 0, 128, 64) is None
    example = examples.draw(iter([dense_piece, dense_piece, sparse, dense_piece]), np.random.default_rng(0))
    assert same(example, {**cut(sparse[0], 0, 128, 64), "overfull": np.int32(2), "start": np.int32(0)})
    assert example["overfull"].dtype == np.int32


def test_thinned_windows_are_counted():
    examples = windows(first_share=1.0, tokens=128, on_overflow="thin")
    example = draw(examples, dense_recording())
    sequence = thin_window(TOKENIZER.timeline(dense_recording().notes), 0, TOKENIZER, 128, 64)
    np.testing.assert_array_equal(example["tokens"], np.pad(sequence, (0, 128 - len(sequence))))
    np.testing.assert_array_equal(example["target"], cut(open_piece(encode(SHORT)), 0)["target"])
    assert example["overfull"] == 1
    assert draw(examples, SHORT)["overfull"] == 0


def test_overfull_windows_raise_input_error_naming_the_setting():
    with pytest.raises(InputError, match=r"4 tokens .*SpectrogramTask\.tokens"):
        draw(windows(tokens=4, first_share=1.0), SHORT)


def test_augmented_windows_match_the_augmented_piece():
    """Tokens and mel are those of the transposed piece."""
    recording = make_recording(3, seconds=14.0, drums=0)
    example = draw(windows(first_share=1.0, augmentation=Augmentation(semitones=12)), recording, seed=5)
    piece = open_piece(encode(recording))
    drawn = {"overfull": np.int32(0), "start": np.int32(0)}
    matches = [s for s in range(-12, 13) if same({**cut(transpose(piece, s), 0), **drawn}, example)]
    assert len(matches) == 1
    assert matches != [0]


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_stems_are_read_only_for_sub_mixes(share):
    record = encode(Recording("piece", SHORT.audio, SHORT.notes, (Stem(SHORT.audio, SHORT.notes),)))
    (piece, _), size = windows(augmentation=Augmentation(sub_mix=share)).read(record)
    assert len(piece.stems) == share
    assert size == pytest.approx((1 + share) * len(record["audio"]), rel=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_overflow": "error"}, r"^on_overflow is 'error'"),
        ({"first_share": 1.5}, r"^first_share is 1\.5"),
    ],
)
def test_invalid_settings_raise_input_error(options, message):
    with pytest.raises(InputError, match=message):
        windows(**options)


def test_augmentation_is_off_by_default():
    assert windows().augmentation is OFF
