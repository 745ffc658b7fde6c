"""The songs of a dataset and, where the dataset has them, their stems, in the order of its records."""

import dataclasses
import functools
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
from spectrodiff.data.recordings import record_name
from spectrodiff.errors import InputError
from spectrodiff.evaluation.transcription import family_of
from spectrodiff.notes.sequence import Notes

Audio = Float[np.ndarray, " _s"]


@dataclasses.dataclass(frozen=True)
class Song:
    """A recording, float32 [samples] at SAMPLE_RATE, and its notes."""

    name: str
    audio: Audio
    notes: Notes


@dataclasses.dataclass(frozen=True)
class Songs:
    """The songs of a split in the order of its records, each cut to its first `seconds` unless that is None."""

    records: Records
    seconds: float | None = None

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Song:
        """Reads a song; raises InputError as `name` does."""
        return self.read(self.name(index), self.records[index])

    def read(self, name: str, record: dict[str, Any]) -> Song:
        """Reads the song or the stem of a record, and calls it `name`."""
        piece = open_piece(record)
        return Song(name, piece.read(0, self._samples_used(piece.samples)), _truncate(piece.notes, self.seconds))

    def name(self, index: int) -> str:
        """Returns the name of a song, having checked that the song can be evaluated.

        Raises:
          InputError: the record is damaged, or its audio is empty or at another rate than SAMPLE_RATE.
        """
        if index in self._names:
            return self._names[index]
        record = self.records[index]
        name = record_name(record)
        info = soundfile.info(io.BytesIO(record["audio"]))
        if not info.frames or info.samplerate != SAMPLE_RATE:
            why = f"is at {info.samplerate} Hz, where {SAMPLE_RATE} are needed" if info.frames else "holds no samples"
            raise InputError(f"cannot evaluate {name} of {self.records.dataset}: it {why}; prepare it again")
        return self._names.setdefault(index, name)

    @functools.cached_property
    def _names(self) -> dict[int, str]:
        """The names that `name` has returned: a record is large, and names are asked for again and again."""
        return {}

    def windows(self, index: int) -> int:
        """Estimates the number of windows that the song fills, from the length of its audio."""
        return -(-self._samples_used(int(self.records.samples[index])) // (WINDOW_FRAMES * HOP))

    def audio_after(self, index: int) -> Audio | None:
        """Returns the true audio of the next song, or of the first song after the last; None if there is no other."""
        return self[(index + 1) % len(self)].audio if len(self) > 1 else None

    def _samples_used(self, samples: int) -> int:
        return samples if self.seconds is None else min(samples, round(self.seconds * SAMPLE_RATE))


@dataclasses.dataclass(frozen=True)
class Stems:
    """The stems whose notes are all of one instrument family, as songs of their own."""

    songs: Songs
    places: tuple[tuple[int, int, str], ...]  # the song's index, the stem's in it, its family

    @classmethod
    def of(cls, songs: Songs, indices: range) -> "Stems":
        """Finds the stems of the songs at `indices`; raises InputError as `Songs` does."""
        places = []
        for index in tqdm(indices, "looking for stems", unit="song", delay=2.0):
            for number, stem in enumerate(songs.records[index]["stems"]):
                if family := family_of(_truncate(open_piece(stem).notes, songs.seconds)):
                    places.append((index, number, family))
        return cls(songs, tuple(places))

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, at: int) -> Song:
        """Reads a stem; raises InputError as `Songs` does."""
        index, number, _ = self.places[at]
        return self.songs.read(self.name(at), self.songs.records[index]["stems"][number])

    def name(self, at: int) -> str:
        """Returns a name made of the song's, the stem's number in it, and its family."""
        index, number, family = self.places[at]
        return f"{self.songs.name(index)} stem {number + 1} {family}"

    def family(self, at: int) -> str:
        """Returns the instrument family of a stem."""
        return self.places[at][2]

    def windows(self, at: int) -> int:
        """Estimates the number of windows that the stem fills, from the length of its song."""
        return self.songs.windows(self.places[at][0])


def _truncate(notes: Notes, seconds: float | None) -> Notes:
    """Cuts notes at `seconds`: notes that begin later are dropped, and notes that sound on end there."""
    if seconds is None or notes.total_time <= seconds:
        return notes
    notes = notes.select(notes.start < seconds)
    return dataclasses.replace(notes, end=np.minimum(notes.end, seconds), total_time=float(seconds))
