"""A corpus in miniature whose recordings are made up as they are read; also for processes that tests start."""

import dataclasses
import os
import pathlib
from typing import ClassVar

import numpy as np
from inputs import make_recording

from spectrodiff.data.recordings import Entry, Recording, Stem
from spectrodiff.errors import InputError


@dataclasses.dataclass(frozen=True)
class Toy:
    """A folder of files NAME.toy that hold a split and a seed; with "bad" in place of the seed they cannot be used."""

    name: ClassVar[str] = "toy"
    homepage: ClassVar[str] = "https://toys.example"
    description: ClassVar[str] = "Toys"

    gain: float = 1.0

    def entries(self, folder: pathlib.Path) -> list[Entry]:
        found = [(path, path.read_text().split()) for path in sorted(folder.glob("*.toy"))]
        return [Entry(path.stem, split, (path, seed)) for path, (split, seed) in found]

    def read(self, entry: Entry) -> Recording:
        path, seed = entry.source
        if "PIDS" in os.environ:  # who reads, for tests of that
            pathlib.Path(os.environ["PIDS"], str(os.getpid())).touch()
        if seed == "bad":
            raise InputError(f"{path} is a bad toy; get another")
        recording = make_recording(int(seed), seconds=1.0, voices=2)
        audio = np.float32(self.gain) * recording.audio
        stems = (Stem(audio / 2, recording.notes),) * (int(seed) % 3)
        return Recording(entry.name, audio, recording.notes, stems)


def write_toys(folder: pathlib.Path, count: int = 6, bad: tuple[int, ...] = ()) -> pathlib.Path:
    """Toys of which every third validates, starting with number 1, and the others train."""
    folder.mkdir()
    for number in range(count):
        seed = "bad" if number in bad else number
        (folder / f"toy{number:02d}.toy").write_text(f"{'validation' if number % 3 == 1 else 'train'} {seed}")
    return folder
