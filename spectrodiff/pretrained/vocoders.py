"""Finds a vocoder by its name or path."""

import contextlib
import os
import pathlib

from spectrodiff.errors import InputError
from spectrodiff.pretrained.hub import find_checkpoint
from spectrodiff.pretrained.kinds import vocoder_kind
from spectrodiff.pretrained.native import load
from spectrodiff.vocoder import saved_model
from spectrodiff.vocoder.griffin_lim import GriffinLim
from spectrodiff.vocoder.onnx import OnnxVocoder
from spectrodiff.vocoder.saved_model import SavedModelVocoder
from spectrodiff.vocoder.streaming import Vocoder

GRIFFIN_LIM = "griffin_lim"


def find_vocoder(vocoder: str | os.PathLike) -> Vocoder:
    """Returns a vocoder: `griffin_lim`, that of weights in the package (`demo`), or the one at a path.

    A path is an .onnx file, the folder of a SavedModel, or a folder into which training exported a vocoder.

    Raises:
      InputError: `vocoder` is none of these, or cannot be read.
    """
    path = pathlib.Path(vocoder)
    if str(vocoder) == GRIFFIN_LIM:
        return GriffinLim()
    if path.suffix == ".onnx":
        return OnnxVocoder(path)
    if (path / saved_model.FILE).is_file():
        return SavedModelVocoder(path)
    with contextlib.suppress(InputError):
        path = find_checkpoint(vocoder)
    if (trained := trained_vocoder(path)) is not None:
        return trained
    raise InputError(
        f"no vocoder {str(vocoder)!r}: give {GRIFFIN_LIM}, demo, an .onnx file, the folder of a SavedModel, "
        "or a folder into which training exported a vocoder"
    )


def trained_vocoder(folder: str | os.PathLike) -> Vocoder | None:
    """Returns the vocoder that training exported into a folder, or None if there is none.

    Raises:
      InputError: it cannot be read.
    """
    kind = vocoder_kind(folder)
    return None if kind is None else kind.vocoder(load(folder, kind)[0])
