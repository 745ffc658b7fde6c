"""More music out of the same recordings, with labels that stay true: louder, higher, fewer instruments."""

import dataclasses
import fractions
from collections.abc import Sequence

import gin
import numpy as np
import scipy.signal
from jaxtyping import Float

from spectrodiff.data.pieces import Piece
from spectrodiff.errors import InputError
from spectrodiff.notes.sequence import Notes


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Augmentation:
    """What is drawn anew for every example; all of it is off by default.

    `sub_mix` is the share of examples that hear a random non-empty choice of a piece's stems, each choice as likely as
    any other, and are told those stems' notes alone. Pieces without stems stay whole.
    `semitones` is how far pitch is shifted up or down at most, by whole semitones, by playing the recording faster or
    slower: tempo changes with it, and so do timbres; notes are moved and transposed alike. Examples with drums in
    the piece are left alone, as a drum is a sound, not a pitch: shifted, it would be another than its label says.
    `gain_db` are the lowest and highest gain in decibels, uniform between; nothing is clipped at full scale.
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
        """The piece as this example hears it, or `piece` itself if nothing about it changes."""
        if self.sub_mix and piece.stems and rng.random() < self.sub_mix:
            chosen = rng.integers(1, 2 ** len(piece.stems))
            piece = mix([stem for i, stem in enumerate(piece.stems) if chosen >> i & 1], piece.notes.total_time)
        if self.semitones:
            shift = int(rng.integers(-self.semitones, self.semitones + 1))
            if len(piece.notes) and not piece.notes.is_drum.any():
                # What would leave MIDI's pitches is shifted as far as it goes.
                shift = int(np.clip(shift, -piece.notes.pitch.min(), 127 - piece.notes.pitch.max()))
                piece = transpose(piece, shift)
        if self.gain_db != (0.0, 0.0):
            piece = amplify(piece, rng.uniform(*self.gain_db))
        return piece


OFF = Augmentation()


def mix(stems: Sequence[Piece], total_time: float) -> Piece:
    """The sum of some stems and all their notes, of a piece that lasts `total_time` seconds."""
    samples = max(stem.samples for stem in stems)

    def read(start: int, count: int) -> Float[np.ndarray, " s"]:
        total = np.zeros(max(min(count, samples - start), 0), np.float32)
        for stem in stems:
            part = stem.read(start, count)
            total[: len(part)] += part
        return total

    def read_notes() -> Notes:
        names = [field.name for field in dataclasses.fields(Notes) if field.name != "total_time"]
        columns = {name: np.concatenate([getattr(stem.notes, name) for stem in stems]) for name in names}
        order = np.argsort(columns["start"], kind="stable")
        return Notes(**{name: column[order] for name, column in columns.items()}, total_time=total_time)

    return Piece(samples, read, read_notes)


def transpose(piece: Piece, semitones: int) -> Piece:
    """The piece played faster by 2^(semitones / 12), or slower; by a ratio of small numbers, true to 2 cents.

    Any part of it sounds as the same part of the whole, resampled at once.
    """
    if not semitones:
        return piece
    speed = fractions.Fraction(2 ** (semitones / 12)).limit_denominator(100)
    up, down = speed.denominator, speed.numerator
    # resample_poly's filter hears 10 * max(up, down) / up input samples to either side.
    margin = -(-(10 * max(up, down) // up + 1) // down)

    def read(start: int, count: int) -> Float[np.ndarray, " s"]:
        block = max(start // up - margin, 0)  # outputs `up * block` and inputs `down * block` fall together
        needed = -(-(start + count - up * block) * down // up) + down * margin
        resampled = scipy.signal.resample_poly(piece.read(down * block, needed), up, down)
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
    """The piece, louder or softer."""
    factor = np.float32(10 ** (decibels / 20))

    def read(start: int, count: int) -> Float[np.ndarray, " s"]:
        return factor * piece.read(start, count)

    return dataclasses.replace(piece, read=read, read_notes=lambda: piece.notes)
