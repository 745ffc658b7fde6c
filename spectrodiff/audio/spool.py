"""Audio of any length, kept on disk while it is being made."""

import os
import pathlib
import tempfile
from collections.abc import Iterator

import numpy as np
import soundfile
from jaxtyping import Float

from spectrodiff.audio.files import FORMATS
from spectrodiff.audio.mel import SAMPLE_RATE
from spectrodiff.errors import InputError

_BLOCK = 2**20  # samples in memory at once


class AudioSpool:
    """Collects float32 mono audio at SAMPLE_RATE in an unnamed temporary file, in memory that does not grow.

    The loudest sample is known only at the end, so levels are set when the audio is saved.

    Attributes:
      samples: how many samples were written.
      peak: the largest magnitude among them.
    """

    def __init__(self, folder: str | os.PathLike | None = None):
        """Keeps the audio on the disk of `folder`, by default that of temporary files."""
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (closed by `__exit__`)
        self.samples, self.peak = 0, 0.0

    def __enter__(self) -> "AudioSpool":
        return self

    def __exit__(self, *error) -> None:
        self._file.close()

    def write(self, audio: Float[np.ndarray, " s"]) -> None:
        """Appends samples.

        Raises:
          InputError: they are not numbers, or the disk is full.
        """
        audio = np.asarray(audio, np.float32)
        if not np.isfinite(audio).all():
            raise InputError("the audio holds samples that are not numbers")
        try:
            self._file.write(audio.tobytes())
        except OSError as error:
            raise InputError(f"cannot keep the audio while it is made: {error.strerror or error}") from error
        self.samples += len(audio)
        self.peak = max(self.peak, float(np.abs(audio).max(initial=0.0)))

    def blocks(self) -> Iterator[Float[np.ndarray, " s"]]:
        """All samples in order, some at a time."""
        self._file.seek(0)
        while block := self._file.read(4 * _BLOCK):
            yield np.frombuffer(block, np.float32)

    def save(self, path: str | os.PathLike, peak: float | None = None) -> None:
        """Writes a file whose suffix picks its format, scaled so that its loudest sample has the magnitude `peak`.

        Without `peak`, audio that is louder than 1 is turned down as a whole until it fits, and all else stays.

        Raises:
          InputError: the file cannot be written.
        """
        path = pathlib.Path(path)
        kind, subtype = FORMATS[path.suffix.lower()]
        gain = 1.0 / max(1.0, self.peak) if peak is None else peak / max(self.peak, 1e-6)
        try:
            with soundfile.SoundFile(os.fsencode(path), "w", SAMPLE_RATE, 1, subtype, format=kind) as file:
                for block in self.blocks():
                    file.write(np.float32(gain) * block)
        except (soundfile.SoundFileError, OSError) as error:
            raise InputError(f"cannot write {path}: {error}") from error
