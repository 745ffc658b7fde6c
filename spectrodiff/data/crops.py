"""Random crops of audio, to train vocoders."""

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np

from spectrodiff.audio.mel import EXTRA_FRAMES, HOP
from spectrodiff.data.augmentation import OFF, Augmentation
from spectrodiff.data.pieces import Piece, open_piece


@dataclasses.dataclass(frozen=True)
class Crops:
    """Examples (see `pipeline.Loader`) that are crops of `frames` frames of audio, and the extra samples of their mel.

    An example is `audio`, float32 [(frames + EXTRA_FRAMES) * HOP], with silence after the end of a piece, and `start`,
    int32, its first frame. In subclasses, pieces may have several columns of audio, each of which has its name.
    """

    frames: int
    augmentation: Augmentation = OFF
    names: ClassVar[tuple[str, ...]] = ("audio",)
    reads_on_device: ClassVar[bool] = False  # whether `read` needs the accelerator, which one process owns

    def read(self, record: dict[str, Any]) -> tuple[Piece, int]:
        """Returns the piece of a record, still encoded, and its size in bytes."""
        piece = open_piece(record, stems=self.augmentation.sub_mix > 0)
        return piece, piece.size

    def draw(self, candidates: Iterator[Piece], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Returns a crop of the first candidate."""
        piece = self.augmentation(next(candidates), rng)
        samples = (self.frames + EXTRA_FRAMES) * HOP
        start = int(rng.integers(max(1, (piece.samples - samples) // HOP)))
        crop = piece.read(start * HOP, samples)
        silence = np.zeros((samples - len(crop), *crop.shape[1:]), np.float32)
        columns = np.concatenate([crop, silence]).reshape(samples, len(self.names)).T
        return {**dict(zip(self.names, columns, strict=True)), "start": np.array(start, np.int32)}
