"""Pieces to the crops of audio that a vocoder learns from."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from spectrodiff.audio.mel import EXTRA_FRAMES, HOP
from spectrodiff.data.augmentation import OFF, Augmentation
from spectrodiff.data.pieces import Piece, open_piece


@dataclasses.dataclass(frozen=True)
class Crops:
    """Draws `frames` frames of audio that begin on any frame, with the extra samples that their mel sees.

    An example is `audio`, float32 [(frames + EXTRA_FRAMES) * HOP], silent past a piece's end, and `start`, its first
    frame; see `pipeline.Loader`.
    """

    frames: int
    augmentation: Augmentation = OFF

    def read(self, record: dict[str, Any]) -> tuple[Piece, int]:
        """What is kept of a record, its piece, still encoded; and how many bytes that is."""
        piece = open_piece(record, stems=self.augmentation.sub_mix > 0)
        return piece, piece.size

    def draw(self, candidates: Iterator[Piece], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """A crop of the first candidate."""
        piece = self.augmentation(next(candidates), rng)
        samples = (self.frames + EXTRA_FRAMES) * HOP
        start = int(rng.integers(max(1, (piece.samples - samples) // HOP)))
        crop = piece.read(start * HOP, samples)
        return {"audio": np.pad(crop, (0, samples - len(crop))), "start": np.array(start, np.int32)}
