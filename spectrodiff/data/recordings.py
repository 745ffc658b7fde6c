"""What a corpus is made of: recordings with their notes, and the record that keeps one on disk."""

import dataclasses
import io
import pathlib
from typing import Any, Protocol, runtime_checkable

import numpy as np
import soundfile
from jaxtyping import Float

from spectrodiff.audio.mel import SAMPLE_RATE
from spectrodiff.notes.midi import Notes
from spectrodiff.notes.sequence import from_note_sequence, to_note_sequence

SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class Stem:
    """One instrument of a recording, alone: float32 audio [samples] at SAMPLE_RATE, and what it plays."""

    audio: Float[np.ndarray, " s"]
    notes: Notes


@dataclasses.dataclass(frozen=True)
class Recording:
    """A piece of a corpus: float32 audio [samples], mono, at SAMPLE_RATE, and all its notes.

    `stems` are its instruments alone, as long as the whole, where the corpus has them; else empty.
    """

    name: str
    audio: Float[np.ndarray, " s"]
    notes: Notes
    stems: tuple[Stem, ...] = ()


@dataclasses.dataclass(frozen=True)
class Entry:
    """A recording still to be read: found cheaply, small enough to send to another process.

    `name` is unique in its corpus; `source` is whatever the corpus needs to read it.
    """

    name: str
    split: str
    source: Any = None


@runtime_checkable
class Corpus(Protocol):
    """How a corpus is read from its authors' distribution. Instances are picklable."""

    name: str  # of the dataset, as `prepare` calls it
    homepage: str  # where one gets it
    description: str  # one line

    def entries(self, folder: pathlib.Path) -> list[Entry]:
        """All recordings below `folder`, in a fixed order.

        Raises:
          InputError: it is not the corpus's folder; the message names what is missing and the homepage.
        """
        ...

    def read(self, entry: Entry) -> Recording:
        """Audio and notes of one recording.

        Raises:
          InputError: audio or labels cannot be used; the message names the file.
        """
        ...


def encode(recording: Recording) -> dict[str, Any]:
    """The record of a recording: audio as 16 bit FLAC, notes as NoteSequence, both in bytes."""
    return {
        "name": recording.name,
        "audio": to_flac(recording.audio),
        "notes": to_note_sequence(recording.notes),
        "stems": [{"audio": to_flac(stem.audio), "notes": to_note_sequence(stem.notes)} for stem in recording.stems],
    }


def decode(record: dict[str, Any]) -> Recording:
    """The recording that `encode` made `record` of, to 16 bit."""
    stems = record["stems"]
    return Recording(
        name=_text(record["name"]),
        audio=from_flac(record["audio"]),
        notes=from_note_sequence(record["notes"]),
        stems=tuple(Stem(from_flac(stem["audio"]), from_note_sequence(stem["notes"])) for stem in stems),
    )


def to_flac(audio: Float[np.ndarray, " s"]) -> bytes:
    """Audio at SAMPLE_RATE as 16 bit FLAC; what lies beyond full scale is clipped."""
    file = io.BytesIO()
    soundfile.write(file, np.clip(audio, -1.0, 1.0), SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return file.getvalue()


def from_flac(data: bytes, start: int = 0, samples: int | None = None) -> Float[np.ndarray, " s"]:
    """Audio from sample `start` on, at most `samples` of it, without decoding what comes before."""
    with soundfile.SoundFile(io.BytesIO(data)) as file:
        file.seek(min(start, file.frames))
        return file.read(-1 if samples is None else samples, dtype="float32")


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
