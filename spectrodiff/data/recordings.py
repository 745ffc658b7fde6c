"""The recordings of a corpus, and the records that store them on disk."""

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
    """One instrument of a recording: its audio, float32 [samples] at SAMPLE_RATE, and its notes."""

    audio: Float[np.ndarray, " s"]
    notes: Notes


@dataclasses.dataclass(frozen=True)
class Recording:
    """A piece of a corpus: its audio, float32 mono [samples] at SAMPLE_RATE, and all of its notes.

    `stems` are its single instruments, as long as the piece, if the corpus has them.
    """

    name: str
    audio: Float[np.ndarray, " s"]
    notes: Notes
    stems: tuple[Stem, ...] = ()


@dataclasses.dataclass(frozen=True)
class Entry:
    """A recording that is not read yet: found without opening large files, and picklable.

    `name` is unique in its corpus; `source` is whatever the corpus needs to read it.
    """

    name: str
    split: str
    source: Any = None


@runtime_checkable
class Corpus(Protocol):
    """A reader of a corpus as its authors distribute it. Instances are picklable."""

    name: str  # of the dataset that `prepare` makes
    homepage: str  # where to get the corpus
    description: str  # one line

    def entries(self, folder: pathlib.Path) -> list[Entry]:
        """Returns all recordings below `folder`, in a fixed order.

        Raises:
          InputError: it is not the folder of the corpus; the message names what is missing and the homepage.
        """
        ...

    def read(self, entry: Entry) -> Recording:
        """Reads the audio and notes of one recording.

        Raises:
          InputError: audio or labels cannot be used; the message names the file.
        """
        ...


def encode(recording: Recording) -> dict[str, Any]:
    """Returns the record of a recording: audio as 16-bit FLAC and notes as NoteSequence, both bytes."""
    return {
        "name": recording.name,
        "audio": to_flac(recording.audio),
        "notes": to_note_sequence(recording.notes),
        "stems": [{"audio": to_flac(stem.audio), "notes": to_note_sequence(stem.notes)} for stem in recording.stems],
    }


def decode(record: dict[str, Any]) -> Recording:
    """Returns the recording of a record that `encode` made, its audio rounded to 16 bits."""
    stems = record["stems"]
    return Recording(
        name=record_name(record),
        audio=from_flac(record["audio"]),
        notes=from_note_sequence(record["notes"]),
        stems=tuple(Stem(from_flac(stem["audio"]), from_note_sequence(stem["notes"])) for stem in stems),
    )


def to_flac(audio: Float[np.ndarray, " s"]) -> bytes:
    """Returns audio at SAMPLE_RATE as 16-bit FLAC, clipped at full scale."""
    file = io.BytesIO()
    soundfile.write(file, np.clip(audio, -1.0, 1.0), SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return file.getvalue()


def from_flac(data: bytes, start: int = 0, samples: int | None = None) -> Float[np.ndarray, " s"]:
    """Decodes at most `samples` samples of FLAC audio from sample `start`, float32, without decoding those before."""
    with soundfile.SoundFile(io.BytesIO(data)) as file:
        file.seek(min(start, file.frames))
        return file.read(-1 if samples is None else samples, dtype="float32")


def record_name(record: dict[str, Any]) -> str:
    """Returns the name of a record, which TFDS reads as bytes."""
    name = record["name"]
    return name.decode() if isinstance(name, bytes) else name
