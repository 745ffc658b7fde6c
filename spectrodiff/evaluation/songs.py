"""Songs of a dataset and, where it has their instruments alone, these stems, in the order of its records."""

import dataclasses
import io
from typing import Any

import numpy as np
import soundfile
from jaxtyping import Float
from tqdm import tqdm

from spectrodiff.audio.mel import HOP, SAMPLE_RATE
from spectrodiff.config import WINDOW_FRAMES
from spectrodiff.data.dataset import Records
from spectrodiff.data.pieces import open_piece
from spectrodiff.errors import InputError
from spectrodiff.evaluation.transcription import family_of
from spectrodiff.notes.sequence import Notes

Audio = Float[np.ndarray, " _s"]


@dataclasses.dataclass(frozen=True)
class Song:
    """A recording, float32 at SAMPLE_RATE, and its notes."""

    name: str
    audio: Audio
    notes: Notes


@dataclasses.dataclass(frozen=True)
class Songs:
    """The songs of a split in the order of its records; with `seconds`, no more of each than its beginning."""

    records: Records
    seconds: float | None = None

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Song:
        """Raises InputError as `name`."""
        return self.read(self.name(index), self.records[index])

    def read(self, name: str, record: dict[str, Any]) -> Song:
        """The song, or the stem, of a record."""
        piece = open_piece(record)
        return Song(name, piece.read(0, self._samples_used(piece.samples)), _truncate(piece.notes, self.seconds))

    def name(self, index: int) -> str:
        """Of a song that can be evaluated. Raises InputError as `Records`, for no samples and for another rate."""
        record = self.records[index]
        name = record["name"].decode() if isinstance(record["name"], bytes) else record["name"]
        held = soundfile.info(io.BytesIO(record["audio"]))
        if not held.frames or held.samplerate != SAMPLE_RATE:
            wrong = f"is at {held.samplerate} Hz, where {SAMPLE_RATE} are needed" if held.frames else "holds no samples"
            raise InputError(f"cannot evaluate {name} of {self.records.dataset}: it {wrong}; prepare it again")
        return name

    def windows(self, index: int) -> int:
        """About how many windows the song fills."""
        return -(-self._samples_used(int(self.records.samples[index])) // (WINDOW_FRAMES * HOP))

    def audio_after(self, index: int) -> Audio | None:
        """The true audio of the song after it, the first coming after the last; None where there is no other."""
        return self[(index + 1) % len(self)].audio if len(self) > 1 else None

    def _samples_used(self, samples: int) -> int:
        return samples if self.seconds is None else min(samples, round(self.seconds * SAMPLE_RATE))


@dataclasses.dataclass(frozen=True)
class Stems:
    """Stems as songs of their own: those whose notes are all of one family."""

    songs: Songs
    places: tuple[tuple[int, int, str], ...]  # the song's index, the stem's in it, its family

    @classmethod
    def of(cls, songs: Songs, indices: range) -> "Stems":
        """Those of the songs at `indices`. Raises InputError as `Songs`."""
        places = []
        for index in tqdm(indices, "looking for stems", unit="song", delay=2.0):
            for number, stem in enumerate(songs.records[index]["stems"]):
                if family := family_of(_truncate(open_piece(stem).notes, songs.seconds)):
                    places.append((index, number, family))
        return cls(songs, tuple(places))

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, at: int) -> Song:
        """Raises InputError as `Songs`."""
        index, number, _ = self.places[at]
        return self.songs.read(self.name(at), self.songs.records[index]["stems"][number])

    def name(self, at: int) -> str:
        index, number, family = self.places[at]
        return f"{self.songs.name(index)} stem {number + 1} {family}"

    def family(self, at: int) -> str:
        return self.places[at][2]

    def windows(self, at: int) -> int:
        """About how many windows the stem fills."""
        return self.songs.windows(self.places[at][0])


def _truncate(notes: Notes, seconds: float | None) -> Notes:
    """Notes as they stand `seconds` into the piece: later ones are gone, those that sound end."""
    if seconds is None or notes.total_time <= seconds:
        return notes
    notes = notes.select(notes.start < seconds)
    return dataclasses.replace(notes, end=np.minimum(notes.end, seconds), total_time=float(seconds))
