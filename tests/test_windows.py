import dataclasses

import numpy as np
import pytest

from spectrodiff.audio.files import read_audio
from spectrodiff.audio.mel import log_mel, scale_mel
from spectrodiff.data.windows import cut_window, load_pieces, read_split
from spectrodiff.errors import InputError
from spectrodiff.notes.midi import read_midi
from spectrodiff.notes.tokenizer import NoteTokenizer

TOKENIZER = NoteTokenizer()


@pytest.fixture(scope="module")
def piece(corpus):
    (piece,) = load_pieces(corpus, ["piece1"], TOKENIZER)
    return piece


def cut(piece, start, tokens=512, notes=256):
    return cut_window(piece, start, TOKENIZER, tokens, notes)


def test_splits(corpus):
    assert read_split(corpus, "train") == ["piece1", "piece2"]
    assert read_split(corpus, "validation") == ["piece0"]
    with pytest.raises(InputError, match="'test' split"):
        read_split(corpus, "test")
    with pytest.raises(InputError, match=r"splits\.csv is missing"):
        read_split(corpus / "audio", "train")


def test_a_piece_is_the_mel_of_its_whole_recording(corpus, piece):
    audio = read_audio(corpus / "audio" / "piece1.flac")
    mel = np.asarray(scale_mel(log_mel(audio)))
    assert piece.mel.dtype == np.float16
    assert piece.mel.shape == mel.shape
    np.testing.assert_allclose(np.float32(piece.mel), mel, atol=3e-4)


def test_a_window_in_the_middle(corpus, piece):
    """Its frames, all those before it, silence where there are none, and its notes."""
    start, length = 130, len(piece.mel)
    assert start < 256 < length < start + 256
    example = cut(piece, start)
    real = length - start
    np.testing.assert_array_equal(example["target"][:real], np.float32(piece.mel[start:]))
    np.testing.assert_array_equal(example["context"][:start], np.float32(piece.mel[:start]))
    assert (example["target"][real:] == -1.0).all()
    assert (example["context"][start:] == -1.0).all()
    np.testing.assert_array_equal(example["target_mask"], np.arange(256) < real)
    np.testing.assert_array_equal(example["context_mask"], np.arange(256) < start)
    notes = read_midi(corpus / "midi" / "piece1.mid")
    window = TOKENIZER.window(TOKENIZER.timeline(notes), start)
    np.testing.assert_array_equal(example["tokens"], np.pad(window, (0, 512 - len(window))))
    assert {name: (array.shape, array.dtype.name) for name, array in example.items()} == {
        "tokens": ((512,), "int32"),
        "target": ((256, 128), "float32"),
        "target_mask": ((256,), "bool"),
        "context": ((256, 128), "float32"),
        "context_mask": ((256,), "bool"),
    }


def test_the_first_window_has_no_context_and_a_late_one_a_full_one(piece):
    first, late = cut(piece, 0), cut(piece, 300)
    assert not first["context_mask"].any()
    assert first["target_mask"].all()
    assert late["context_mask"].all()
    np.testing.assert_array_equal(late["context"][:-44], first["target"][44:])


def test_a_window_with_too_much_in_it_is_passed_over(piece):
    window = TOKENIZER.window(piece.timeline, 0)
    notes = TOKENIZER.vocabulary.count_notes(window)
    assert cut(piece, 0, len(window), notes) is not None
    assert cut(piece, 0, len(window) - 1, notes) is None
    assert cut(piece, 0, len(window), notes - 1) is None


def test_a_window_over_the_tokenizers_own_limit_is_passed_over(piece):
    small = NoteTokenizer(dataclasses.replace(TOKENIZER.config, max_tokens=8))
    assert cut_window(piece, 0, small, 512, 256) is None


def test_a_missing_recording_is_named(corpus):
    with pytest.raises(InputError, match=r"missing\.flac"):
        load_pieces(corpus, ["missing"], TOKENIZER)
