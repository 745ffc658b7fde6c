"""Crops of recordings with the audio that Griffin-Lim makes of their mels, to train generators that correct it.

Griffin-Lim takes longer than a training step of a small generator on the same audio. So each recording is decoded once,
as a whole and as in synthesis, and kept in a folder.
"""

import dataclasses
import hashlib
import pathlib
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float

from spectrodiff.audio.mel import log_mel_on_host
from spectrodiff.data.crops import Crops
from spectrodiff.data.pieces import Piece, open_piece
from spectrodiff.errors import InputError, reason
from spectrodiff.files import replacing
from spectrodiff.vocoder.griffin_lim import GriffinLim

_DIGITS = 16  # hexadecimal, of the hash of a recording


@dataclasses.dataclass(frozen=True)
class ExcitedCrops(Crops):
    """Crops as `Crops`, with `excitation`: the audio of `griffin_lim` at the same place, float32 of the same length.

    It is made when a recording is first read, and kept in `folder` in float16, whose error is 66 dB below the audio.
    Files are named after the vocoder and the recording's content, so that a folder can serve several datasets and runs.
    Augmentation changes both in the same way.
    """

    griffin_lim: GriffinLim = GriffinLim()
    folder: pathlib.Path = pathlib.Path("griffin_lim")
    names: ClassVar[tuple[str, ...]] = ("audio", "excitation")
    reads_on_device: ClassVar[bool] = True

    def read(self, record: dict[str, Any]) -> tuple[Piece, int]:
        """Returns the piece of a record, whose `read` returns two columns: the recording and its excitation."""
        piece = open_piece(record)
        name = hashlib.sha256(record["audio"]).hexdigest()[:_DIGITS]
        excitation = self._excitation(piece, self.folder / self.griffin_lim.identity().split()[-1] / f"{name}.npy")

        def read(start: int, count: int) -> Float[np.ndarray, "s 2"]:
            audio = piece.read(start, count)
            return np.stack([audio, excitation[start : start + len(audio)].astype(np.float32)], axis=1)

        return dataclasses.replace(piece, read=read), piece.size

    def _excitation(self, piece: Piece, path: pathlib.Path) -> Float[np.ndarray, " s"]:
        """Returns the audio of Griffin-Lim, mapped from its file, which is written if it is missing or damaged."""
        if (cached := _load_cached(path, piece.samples)) is not None:
            return cached
        audio = self.griffin_lim(log_mel_on_host(piece.read(0, piece.samples)))[: piece.samples].astype(np.float16)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary, temporary.open("wb") as file:
                np.save(file, audio)
        except OSError as error:
            raise InputError(f"cannot write {path}: {reason(error)}; name another excitation_dir") from error
        return np.load(path, mmap_mode="r")


def _load_cached(path: pathlib.Path, samples: int) -> Float[np.ndarray, " s"] | None:
    """Returns the memory-mapped audio of a file, or None if it is missing, damaged, or not of `samples` samples."""
    try:
        audio = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return None
    return audio if audio.dtype == np.float16 and audio.shape == (samples,) else None
