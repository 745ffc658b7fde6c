"""From the name of a checkpoint to its folder."""

import os
import pathlib

from spectrodiff.errors import InputError

_WEIGHTS = pathlib.Path(__file__).parent / "weights"


def find_checkpoint(checkpoint: str | os.PathLike) -> pathlib.Path:
    """The folder of a checkpoint that comes with the package, or `checkpoint` itself where it is a folder.

    Raises:
      InputError: it is neither.
    """
    path = pathlib.Path(checkpoint)
    names = (
        sorted(folder.name for folder in _WEIGHTS.iterdir() if (folder / "spectrogram.json").is_file())
        if _WEIGHTS.is_dir()
        else []
    )
    if str(checkpoint) in names:
        return _WEIGHTS / str(checkpoint)
    if path.is_dir():
        return path
    known = f"one of {', '.join(names)}, or " if names else ""
    raise InputError(f"no checkpoint {str(checkpoint)!r}: give {known}a folder that training exported")
