"""Pieces to the windows that a spectrogram model learns from: cut where they are asked for, and only there decoded."""

import bisect
import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Int32

from spectrodiff.audio.mel import EXTRA_FRAMES, HOP, MEL_BINS, log_mel_on_host, scale_mel
from spectrodiff.config import WINDOW_FRAMES
from spectrodiff.data.augmentation import OFF, Augmentation
from spectrodiff.data.pieces import Piece, open_piece
from spectrodiff.errors import InputError
from spectrodiff.notes.tokenizer import NoteTokenizer, Timeline

SILENCE = -1.0  # the scaled log-mel of nothing
_TRIES = 20


def cut_window(
    piece: Piece, timeline: Timeline, start: int, tokenizer: NoteTokenizer, tokens: int, notes: int
) -> dict[str, np.ndarray] | None:
    """The training example whose target begins at frame `start`; None if it has over `tokens` tokens or `notes` notes.

    `tokens` int32 [tokens]; `target`, `context` float32 [256, 128], scaled, real frames first; `target_mask`,
    `context_mask` bool [256]. The context is the up to 256 true frames before the target. `timeline` is that of the
    piece's notes.
    """
    try:
        sequence = tokenizer.window(timeline, start)
    except InputError:  # over the tokenizer's own limit
        return None
    if len(sequence) > tokens or tokenizer.vocabulary.count_notes(sequence) > notes:
        return None
    return {"tokens": np.pad(sequence, (0, tokens - len(sequence))), **_cut_mel(piece, start)}


def _cut_mel(piece: Piece, start: int) -> dict[str, np.ndarray]:
    before = min(start, WINDOW_FRAMES)
    frames = min(before + WINDOW_FRAMES, piece.frames - start + before)
    audio = piece.read((start - before) * HOP, (frames + EXTRA_FRAMES) * HOP)
    mel = scale_mel(log_mel_on_host(audio))[:frames]
    example = {}
    for name, part in (("target", mel[before:]), ("context", mel[:before])):
        example[name] = np.full((WINDOW_FRAMES, MEL_BINS), SILENCE, np.float32)
        example[name][: len(part)] = part
        example[f"{name}_mask"] = np.arange(WINDOW_FRAMES) < len(part)
    return example


def thin_window(
    timeline: Timeline, start: int, tokenizer: NoteTokenizer, tokens: int, notes: int
) -> Int32[np.ndarray, " n"]:
    """A window's tokens without its quietest notes, as many of these as are over `tokens` tokens or `notes` notes."""

    def within(limit: int) -> Int32[np.ndarray, " n"]:
        config = dataclasses.replace(tokenizer.config, max_tokens=limit)
        return NoteTokenizer(config, on_overflow="thin").window(timeline, start)

    limits = range(2, tokens + 1)
    fitting = bisect.bisect_right(limits, notes, key=lambda limit: tokenizer.vocabulary.count_notes(within(limit)))
    return within(limits[fitting - 1])


@dataclasses.dataclass(frozen=True)
class Windows:
    """Draws training examples, `cut_window`s that begin anywhere; see `pipeline.Loader`.

    A window may have `tokens` tokens, and `tokens / tokens_per_note` notes. What becomes of one that has more says
    `on_overflow`: "skip" draws another, "thin" leaves its quietest notes out of its tokens. Either way it is counted:
    an example's `overfull` (int32) is how many windows of too much were met on the way to it, `start` (int32) the frame
    that its target begins at. A `first_share` of the windows are a piece's first, with no context, as every song
    begins. With `audio` an example has that of its target too, float32 [(256 + EXTRA_FRAMES) * HOP], silent past the
    piece's end.
    """

    tokenizer: NoteTokenizer
    tokens_per_note: int
    tokens: int
    first_share: float
    on_overflow: str = "skip"
    augmentation: Augmentation = OFF
    audio: bool = False

    def __post_init__(self):
        if self.on_overflow not in ("skip", "thin"):
            raise InputError(f"on_overflow is {self.on_overflow!r}; choose one of skip, thin")
        if not 0.0 <= self.first_share <= 1.0:
            raise InputError(f"first_share is {self.first_share}; choose 0 to 1")

    def read(self, record: dict[str, Any]) -> tuple[tuple[Piece, Timeline], int]:
        """What is kept of a record, its piece, still encoded, and its timeline; and how many bytes that is."""
        piece = open_piece(record, stems=self.augmentation.sub_mix > 0)
        return (piece, self.tokenizer.timeline(piece.notes)), piece.size

    def draw(self, candidates: Iterator[tuple[Piece, Timeline]], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """A window of the first candidate, or of the first whose window fits.

        Raises:
          InputError: many windows in a row have too much in them.
        """
        room = self.tokens // self.tokens_per_note
        for met, (whole, timeline) in enumerate(itertools.islice(candidates, _TRIES)):
            piece = self.augmentation(whole, rng)
            if piece.notes is not whole.notes:
                timeline = self.tokenizer.timeline(piece.notes)
            first = rng.random() < self.first_share
            start = 0 if first else int(rng.integers(max(1, piece.frames - WINDOW_FRAMES // 4)))
            example = cut_window(piece, timeline, start, self.tokenizer, self.tokens, room)
            if example is None and self.on_overflow == "thin":
                sequence = thin_window(timeline, start, self.tokenizer, self.tokens, room)
                example = {"tokens": np.pad(sequence, (0, self.tokens - len(sequence))), **_cut_mel(piece, start)}
                met = 1
            if example is not None:
                if self.audio:
                    samples = (WINDOW_FRAMES + EXTRA_FRAMES) * HOP
                    heard = piece.read(start * HOP, samples)
                    example["audio"] = np.pad(heard, (0, samples - len(heard)))
                return {**example, "overfull": np.array(met, np.int32), "start": np.array(start, np.int32)}
        raise InputError(
            f"{_TRIES} windows in a row have over {self.tokens} tokens or {room} notes; raise SpectrogramTask.tokens"
        )
