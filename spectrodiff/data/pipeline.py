"""Random windows in batches: deterministic in the seed, and able to continue where it was."""

import gin
import grain
import numpy as np

from spectrodiff.config import WINDOW_FRAMES
from spectrodiff.data.windows import Piece, cut_window
from spectrodiff.errors import InputError
from spectrodiff.notes.tokenizer import NoteTokenizer

_TRIES = 20


class _RandomWindow(grain.transforms.RandomMap):
    """A window that begins anywhere, each second of music equally likely."""

    def __init__(self, pieces: list[Piece], tokenizer: NoteTokenizer, tokens: int, notes: int, first_share: float):
        self.pieces, self.tokenizer, self.tokens, self.notes = pieces, tokenizer, tokens, notes
        self.first_share = first_share
        lengths = np.array([len(piece.mel) for piece in pieces])
        self.share = lengths / lengths.sum()

    def random_map(self, element, rng):
        for _ in range(_TRIES):
            piece = self.pieces[rng.choice(len(self.pieces), p=self.share)]
            first = rng.random() < self.first_share
            start = 0 if first else int(rng.integers(max(1, len(piece.mel) - WINDOW_FRAMES // 4)))
            example = cut_window(piece, start, self.tokenizer, self.tokens, self.notes)
            if example is not None:
                return example
        raise InputError(
            f"{_TRIES} windows in a row have over {self.tokens} tokens or {self.notes} notes; raise batches.tokens"
        )


@gin.configurable
def batches(
    pieces: list[Piece],
    tokenizer: NoteTokenizer,
    tokens_per_note: int,
    *,
    batch_size: int,
    tokens: int = 512,
    first_share: float = 0.05,
    seed: int = 0,
) -> grain.DatasetIterator:
    """An endless iterator of batches of `cut_window` examples, with grain's `get_state` and `set_state`.

    Windows of over `tokens` tokens, or over `tokens / tokens_per_note` notes, are passed over. A `first_share` of the
    windows are a piece's first, with no context, as every song begins.
    """
    windows = _RandomWindow(pieces, tokenizer, tokens, tokens // tokens_per_note, first_share)
    dataset = grain.MapDataset.range(2**40).seed(seed).random_map(windows).batch(batch_size)
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)))
