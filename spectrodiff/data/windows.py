"""Windows of pieces, to train spectrogram models; only the audio of a window is decoded."""

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
from spectrodiff.notes.timeline import Timeline
from spectrodiff.notes.tokenizer import NoteTokenizer

SILENCE = -1.0  # the scaled log-mel of silence
_TRIES = 20  # pieces to try for an example


def cut_window(
    piece: Piece, timeline: Timeline, start: int, tokenizer: NoteTokenizer, tokens: int, notes: int
) -> dict[str, np.ndarray] | None:
    """Returns the training example whose target begins at frame `start`.

    `timeline` is that of the piece's notes. The example has `tokens`, int32 [tokens], padded with 0; `target` and
    `context`, scaled log-mels, float32 [256, 128], padded at the end; and their masks `target_mask` and `context_mask`,
    bool [256]. The context is the ground truth of up to 256 frames before the target.

    Returns None if the window has more than `tokens` tokens or `notes` notes.
    """
    try:
        sequence = tokenizer.window(timeline, start)
    except InputError:  # over the tokenizer's own limit
        return None
    if len(sequence) > tokens or tokenizer.vocabulary.count_notes(sequence) > notes:
        return None
    return {"tokens": np.pad(sequence, (0, tokens - len(sequence))), **_cut_mel(piece, start)}


def _cut_mel(piece: Piece, start: int) -> dict[str, np.ndarray]:
    """Returns target, context and their masks; see `cut_window`."""
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
    """Returns the tokens of a window after dropping its quietest notes, down to `tokens` tokens and `notes` notes."""

    def within(limit: int) -> Int32[np.ndarray, " n"]:
        config = dataclasses.replace(tokenizer.config, max_tokens=limit)
        return NoteTokenizer(config, on_overflow="thin").window(timeline, start)

    limits = range(2, tokens + 1)
    fitting = bisect.bisect_right(limits, notes, key=lambda limit: tokenizer.vocabulary.count_notes(within(limit)))
    return within(limits[fitting - 1])


@dataclasses.dataclass(frozen=True)
class Windows:
    """Examples (see `pipeline.Loader`) that are windows as `cut_window` returns them, at random starts.

    A window may have `tokens` tokens, and `tokens / tokens_per_note` notes. If it has more, `on_overflow` "skip" draws
    another one, and "thin" drops its quietest notes. An example's `overfull` (int32) is the number of windows with too
    many tokens that were met before it was found; `start` (int32) is the first frame of its target. The share
    `first_share` of the windows is the first of a piece, without context. Each piece is followed by `silence_after`
    seconds of silence, from which a model learns that nothing sounds without notes. With `audio`, an example also has
    the audio of its target, float32 [(256 + EXTRA_FRAMES) * HOP], with silence after the end of the piece.
    """

    tokenizer: NoteTokenizer
    tokens_per_note: int
    tokens: int
    first_share: float
    on_overflow: str = "skip"
    augmentation: Augmentation = OFF
    audio: bool = False
    silence_after: float = 0.0

    def __post_init__(self):
        if not 0.0 <= self.silence_after <= 60.0:
            raise InputError(f"silence_after is {self.silence_after}; choose 0 to 60 seconds")
        if self.on_overflow not in ("skip", "thin"):
            raise InputError(f"on_overflow is {self.on_overflow!r}; choose one of skip, thin")
        if not 0.0 <= self.first_share <= 1.0:
            raise InputError(f"first_share is {self.first_share}; choose 0 to 1")

    def read(self, record: dict[str, Any]) -> tuple[tuple[Piece, Timeline], int]:
        """Returns the piece of a record, still encoded, with its timeline; and the size in bytes."""
        piece = open_piece(record, stems=self.augmentation.sub_mix > 0).with_silence(self.silence_after)
        return (piece, self.tokenizer.timeline(piece.notes)), piece.size

    def draw(self, candidates: Iterator[tuple[Piece, Timeline]], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Returns a window of the first candidate whose window has at most the allowed tokens and notes.

        Raises:
          InputError: 20 windows in a row have too many.
        """
        notes = self.tokens // self.tokens_per_note
        for met, (whole, timeline) in enumerate(itertools.islice(candidates, _TRIES)):
            piece = self.augmentation(whole, rng)
            if piece.notes is not whole.notes:
                timeline = self.tokenizer.timeline(piece.notes)
            first = rng.random() < self.first_share
            start = 0 if first else int(rng.integers(max(1, piece.frames - WINDOW_FRAMES // 4)))
            example = cut_window(piece, timeline, start, self.tokenizer, self.tokens, notes)
            if example is None and self.on_overflow == "thin":
                sequence = thin_window(timeline, start, self.tokenizer, self.tokens, notes)
                example = {"tokens": np.pad(sequence, (0, self.tokens - len(sequence))), **_cut_mel(piece, start)}
                met = 1
            if example is not None:
                if self.audio:
                    samples = (WINDOW_FRAMES + EXTRA_FRAMES) * HOP
                    audio = piece.read(start * HOP, samples)
                    example["audio"] = np.pad(audio, (0, samples - len(audio)))
                return {**example, "overfull": np.array(met, np.int32), "start": np.array(start, np.int32)}
        raise InputError(
            f"{_TRIES} windows in a row have over {self.tokens} tokens or {notes} notes; raise SpectrogramTask.tokens"
        )
