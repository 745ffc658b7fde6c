import json

import numpy as np
import pytest

from spectrodiff.data.pipeline import batches
from spectrodiff.data.windows import cut_window, load_pieces, read_split
from spectrodiff.errors import InputError
from spectrodiff.notes.tokenizer import NoteTokenizer

TOKENIZER = NoteTokenizer()


@pytest.fixture(scope="module")
def pieces(corpus):
    return load_pieces(corpus, read_split(corpus, "train"), TOKENIZER)


def stream(pieces, seed=0, **options):
    return batches(pieces, TOKENIZER, 2, batch_size=4, tokens=256, seed=seed, **options)


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def same(first, second):
    return all(np.array_equal(a[k], b[k]) for a, b in zip(first, second, strict=True) for k in a)


def test_batches_are_windows_of_the_pieces(pieces):
    (batch,) = take(stream(pieces), 1)
    assert {name: array.shape for name, array in batch.items()} == {
        "tokens": (4, 256),
        "target": (4, 256, 128),
        "target_mask": (4, 256),
        "context": (4, 256, 128),
        "context_mask": (4, 256),
    }
    for i in range(4):
        start = int(batch["context_mask"][i].sum())  # no piece reaches past frame 256 of context and 64 of target
        candidates = [piece for piece in pieces if len(piece.mel) > start]
        if start < 256:
            examples = [cut_window(piece, start, TOKENIZER, 256, 128) for piece in candidates]
            assert any(all(np.array_equal(batch[k][i], example[k]) for k in example) for example in examples)


def test_a_seed_decides_all(pieces):
    assert same(take(stream(pieces), 3), take(stream(pieces), 3))
    assert not same(take(stream(pieces), 1), take(stream(pieces, seed=1), 1))


def test_a_stream_continues_from_its_state_as_if_it_had_never_stopped(pieces):
    whole = take(stream(pieces), 6)
    stopped = stream(pieces)
    take(stopped, 3)
    state = json.loads(json.dumps(stopped.get_state()))
    continued = stream(pieces)
    continued.set_state(state)
    assert same(take(continued, 3), whole[3:])
    assert not same(whole[:1], whole[1:2])


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_share_of_first_windows(pieces, share):
    starts = [batch["context_mask"].sum(-1) for batch in take(stream(pieces, first_share=share), 5)]
    assert np.mean(np.concatenate(starts) == 0) == pytest.approx(share, abs=0.1)


def test_when_nothing_fits_it_says_what_to_raise(pieces):
    with pytest.raises(InputError, match=r"raise batches\.tokens"):
        next(batches(pieces, TOKENIZER, 2, batch_size=1, tokens=4))
