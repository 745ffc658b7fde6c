"""Data augmentation of recordings and their notes: gain, pitch shift and random sub-mixes of stems."""

import dataclasses
import fractions
from collections.abc import Sequence

import gin
import numpy as np
import scipy.signal
from jaxtyping import Float

from spectrodiff.data.pieces import Piece
from spectrodiff.errors import InputError
from spectrodiff.notes.sequence import Notes, join


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Random changes to each example; by default there are none.

    `sub_mix` is the share of examples that are a random non-empty subset of a piece's stems, with the notes of those
    stems; all subsets are equally likely. Pieces without stems are not changed.
    `semitones` is the largest pitch shift up or down, in whole semitones. The recording is resampled, so that tempo and
    timbre change too; notes are transposed and moved accordingly. Pieces with drums are not shifted, since a drum's
    label names a sound, not a pitch.
    `gain_db` is the range of a uniformly distributed gain in decibels; audio is not clipped at full scale.
    """

    sub_mix: float = 0.0
    semitones: int = 0
    gain_db: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self):
        if not 0.0 <= self.sub_mix <= 1.0:
            raise InputError(f"Augmentation.sub_mix is {self.sub_mix}; choose 0 to 1")
        if not 0 <= self.semitones <= 12:
            raise InputError(f"Augmentation.semitones is {self.semitones}; choose 0 to 12")
        low, high = self.gain_db
        if not -60.0 <= low <= high <= 20.0:
            raise InputError(f"Augmentation.gain_db is {self.gain_db}; choose (lowest, highest) between -60 and 20")

    def __call__(self, piece: Piece, rng: np.random.Generator) -> Piece:
        """Returns the changed piece, or `piece` itself if nothing changes."""
        if self.sub_mix and piece.stems and rng.random() < self.sub_mix:
            chosen = rng.integers(1, 2 ** len(piece.stems))
            piece = mix([stem for i, stem in enumerate(piece.stems) if chosen >> i & 1], piece.notes.total_time)
        if self.semitones:
            shift = int(rng.integers(-self.semitones, self.semitones + 1))
            if len(piece.notes) and not piece.notes.is_drum.any():
                # Pitches have to stay between 0 and 127.
                shift = int(np.clip(shift, -piece.notes.pitch.min(), 127 - piece.notes.pitch.max()))
                piece = transpose(piece, shift)
        if self.gain_db != (0.0, 0.0):
            piece = amplify(piece, rng.uniform(*self.gain_db))
        return piece


OFF = Augmentation()


def mix(stems: Sequence[Piece], total_time: float) -> Piece:
    """Returns the sum of some stems, with all of their notes, as a piece of `total_time` seconds."""
    samples = max(stem.samples for stem in stems)

    def read(start: int, count: int) -> Float[np.ndarray, " s"]:
        total = np.zeros(max(min(count, samples - start), 0), np.float32)
        for stem in stems:
            part = stem.read(start, count)
            total[: len(part)] += part
        return total

    def read_notes() -> Notes:
        notes = dataclasses.replace(join([stem.notes for stem in stems]), total_time=total_time)
        return notes.select(np.argsort(notes.start, kind="stable"))

    return Piece(samples, read, read_notes)


def transpose(piece: Piece, semitones: int) -> Piece:
    """Returns the piece resampled to be 2^(semitones / 12) times as fast, with its notes transposed and moved.

    The factor is a ratio of small integers within 2 cents of the exact one. Reading a part of the result gives the same
    samples as resampling the whole recording at once.
    """
    if not semitones:
        return piece
    speed = fractions.Fraction(2 ** (semitones / 12)).limit_denominator(100)
    up, down = speed.denominator, speed.numerator
    # resample_poly's filter spans 10 * max(up, down) / up input samples on either side.
    margin = -(-(10 * max(up, down) // up + 1) // down)

    def read(start: int, count: int) -> Float[np.ndarray, "s *c"]:
        block = max(start // up - margin, 0)  # output `up * block` is at the time of input `down * block`
        input_samples = -(-(start + count - up * block) * down // up) + down * margin
        resampled = scipy.signal.resample_poly(piece.read(down * block, input_samples), up, down)
        return resampled[start - up * block :][: min(count, samples - start)]

    def read_notes() -> Notes:
        notes, ratio = piece.notes, float(speed)
        return dataclasses.replace(
            notes,
            start=notes.start / ratio,
            end=notes.end / ratio,
            pitch=notes.pitch + np.int32(semitones),
            total_time=notes.total_time / ratio,
        )

    samples = -(-piece.samples * up // down)
    return Piece(samples, read, read_notes)


def amplify(piece: Piece, decibels: float) -> Piece:
    """Returns the piece with a gain in decibels."""
    factor = np.float32(10 ** (decibels / 20))

    def read(start: int, count: int) -> Float[np.ndarray, "s *c"]:
        return factor * piece.read(start, count)

    return dataclasses.replace(piece, read=read, read_notes=lambda: piece.notes)
