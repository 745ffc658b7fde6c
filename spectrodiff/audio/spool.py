"""Audio of any length, kept on disk while it is generated."""

import os
import pathlib
import tempfile
from collections.abc import Iterator

import numpy as np
import soundfile
from jaxtyping import Float

from spectrodiff.audio.files import FORMATS
from spectrodiff.audio.loudness import level_gain
from spectrodiff.audio.mel import SAMPLE_RATE
from spectrodiff.errors import InputError

_BLOCK = 2**20  # samples in memory at once


class AudioSpool:
    """Collects float32 mono audio at SAMPLE_RATE in an unnamed temporary file, in constant memory.

    The gain is applied when the audio is saved, since the peak is known only then.

    Attributes:
      samples: the number of samples written.
      peak: the largest absolute value among them.
    """

    def __init__(self, folder: str | os.PathLike | None = None):
        """Opens the temporary file in `folder`, which defaults to the system's folder of temporary files."""
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (closed by `__exit__`)
        self.samples, self.peak = 0, 0.0

    def __enter__(self) -> "AudioSpool":
        return self

    def __exit__(self, *error) -> None:
        self._file.close()

    def write(self, audio: Float[np.ndarray, " s"]) -> None:
        """Appends samples.

        Raises:
          InputError: they are not finite, or the disk is full.
        """
        audio = np.asarray(audio, np.float32)
        if not np.isfinite(audio).all():
            raise InputError("the audio holds samples that are not numbers")
        try:
            self._file.write(audio.tobytes())
        except OSError as error:
            raise InputError(f"cannot store the audio while it is generated: {error.strerror or error}") from error
        self.samples += len(audio)
        self.peak = max(self.peak, float(np.abs(audio).max(initial=0.0)))

    def blocks(self) -> Iterator[Float[np.ndarray, " s"]]:
        """Yields all samples in order, in blocks."""
        self._file.seek(0)
        while block := self._file.read(4 * _BLOCK):
            yield np.frombuffer(block, np.float32)

    def gain(self, level: str) -> float:
        """Returns the factor that brings the audio to a level that `level_gain` describes."""
        return level_gain(level, self.peak, self.blocks)

    def save(self, path: str | os.PathLike, level: str = "raw") -> None:
        """Writes the audio, at a level that `level_gain` describes, to a file whose suffix determines its format.

        Raises:
          InputError: the file cannot be written, or there is no such level.
        """
        path = pathlib.Path(path)
        kind, subtype = FORMATS[path.suffix.lower()]
        gain = np.float32(self.gain(level))
        try:
            with soundfile.SoundFile(os.fsencode(path), "w", SAMPLE_RATE, 1, subtype, format=kind) as file:
                for block in self.blocks():
                    file.write(gain * block)
        except (soundfile.SoundFileError, OSError) as error:
            raise InputError(f"cannot write {path}: {error}") from error
