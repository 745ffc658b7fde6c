"""What is kept of the songs that a model renders, one by one, so that a run that was cut off goes on.

A workdir holds `run.json`, what made its songs, and of each song `songs/NAME.npz` and then `songs/NAME.json`.
"""

import dataclasses
import json
import pathlib
import zlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from spectrodiff.errors import InputError
from spectrodiff.evaluation.songs import Audio
from spectrodiff.files import check_writable, file_name, local_path, replacing, write_json

Mel = Float[np.ndarray, "_t m"]
Spent = tuple[float, float]  # seconds of work, and of the audio that they made


@dataclasses.dataclass(frozen=True)
class Run:
    """What a workdir's songs are made by: `weights` and `vocoder` by their fingerprints, wherever they were read."""

    checkpoint: str
    weights: str
    vocoder: str
    dataset: str
    split: str
    seconds: float | None
    sampling: dict[str, Any]
    seed: int
    soundfont: str | None = None  # that another system plays

    def claim(self, workdir: pathlib.Path) -> None:
        """Makes the workdir, or finds that it is this run's.

        Raises:
          InputError: it holds songs that were made otherwise, cannot be written, or is an address.
        """
        try:
            (local_path(workdir) / "songs").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot make the folder {workdir}: {error.strerror or error}") from error
        check_writable(workdir / "songs" / "run.json")  # rather than after the first song
        path, ours = workdir / "run.json", dataclasses.asdict(self)
        if not path.exists():
            write_json(path, ours)
            return
        theirs = _read_json(path)
        for name, value in ours.items():
            if theirs.get(name) != value:
                raise InputError(
                    f"{workdir} holds songs made with {name} {theirs.get(name)}, not {value}; give another workdir"
                )


def song_seed(seed: int, name: str) -> int:
    """The seed with which `Synthesizer` renders the same song: `seed`, with the CRC-32 of its name folded in.

    So a song sounds the same whatever is rendered beside it, before it, or by which process.
    """
    return int(jax.random.bits(jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))))


@dataclasses.dataclass(frozen=True)
class SongMetadata:
    """What is known of a rendered song without its sound.

    `dropped` notes of over-full windows were left out; `silent` says that nothing is to be heard. `spectrogram` and
    `vocoder` are Spent, without what ran for the first time: the first window in a program, the first piece from a
    vocoder.
    """

    name: str
    seed: int
    seconds: float
    dropped: int
    batch: int
    spectrogram: Spent
    vocoder: Spent
    silent: bool

    @classmethod
    def load(cls, workdir: pathlib.Path, name: str) -> "SongMetadata":
        """Raises InputError for a file that is missing or damaged."""
        return cls(**_read_metadata(workdir, name))


@dataclasses.dataclass(frozen=True)
class RenderedSong(SongMetadata):
    """What is kept of a song.

    `mel` is unscaled; `audio` is what the vocoder makes of it, `encoded` what it makes of the true audio's mel, both as
    a file of 16 bits keeps them.
    """

    mel: Mel
    audio: Audio
    encoded: Audio

    def save(self, workdir: pathlib.Path) -> None:
        """Raises InputError as `replacing`."""
        with replacing(song_path(workdir, "songs", self.name, ".npz")) as temporary:
            np.savez_compressed(temporary, mel=self.mel, audio=pcm(self.audio), encoded=pcm(self.encoded))
        facts = {field.name: getattr(self, field.name) for field in dataclasses.fields(SongMetadata)}
        write_json(song_path(workdir, "songs", self.name, ".json"), facts)  # last: it says that the song is there

    @classmethod
    def load(cls, workdir: pathlib.Path, name: str) -> "RenderedSong":
        """Raises InputError for files that are missing or damaged."""
        arrays = read_arrays(song_path(workdir, "songs", name, ".npz"), ("mel", "audio", "encoded"))
        arrays |= {part: arrays[part].astype(np.float32) / 32767 for part in ("audio", "encoded")}
        return cls(**_read_metadata(workdir, name), **arrays)


def _read_metadata(workdir: pathlib.Path, name: str) -> dict:
    path = song_path(workdir, "songs", name, ".json")
    facts = _read_json(path)
    if set(facts) != {field.name for field in dataclasses.fields(SongMetadata)}:
        raise InputError(f"{path} is of another version of spectrodiff; delete {workdir}, or give another workdir")
    return {**facts, "spectrogram": tuple(facts["spectrogram"]), "vocoder": tuple(facts["vocoder"])}


def song_path(workdir: pathlib.Path, kind: str, name: str, suffix: str) -> pathlib.Path:
    """Where a song's file of some kind lies; see `file_name`."""
    return workdir / kind / (file_name(name) + suffix)


def is_rendered(workdir: pathlib.Path, name: str) -> bool:
    return song_path(workdir, "songs", name, ".json").is_file()


def read_arrays(path: pathlib.Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Raises InputError for a file that is missing or damaged."""
    try:
        with np.load(path) as arrays:
            return {name: arrays[name] for name in names}
    except Exception as error:  # zipfile and NumPy raise what they like
        raise InputError(f"cannot read {path}; delete it and its neighbours of that name, and run again") from error


def _read_json(path: pathlib.Path) -> dict:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}; delete it and run again") from error


def pcm(audio: Audio) -> np.ndarray:
    """As `write_audio` would: turned down as a whole where it peaks above 1."""
    return np.round(audio / max(1.0, np.abs(audio).max(initial=0.0)) * 32767).astype(np.int16)
