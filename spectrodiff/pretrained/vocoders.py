"""From the name or the path of a vocoder to the vocoder."""

import os
import pathlib

from spectrodiff.errors import InputError
from spectrodiff.pretrained.native import VOCODER, holds, load
from spectrodiff.vocoder import saved_model
from spectrodiff.vocoder.griffin_lim import GriffinLim
from spectrodiff.vocoder.onnx import OnnxVocoder
from spectrodiff.vocoder.saved_model import SavedModelVocoder
from spectrodiff.vocoder.streaming import MelGAN, Vocoder

GRIFFIN_LIM = "griffin_lim"


def find_vocoder(vocoder: str | os.PathLike) -> Vocoder:
    """`griffin_lim`, or what is at a path: an .onnx file, a SavedModel's folder, or one that training exported.

    Raises:
      InputError: it is none of these, or cannot be read.
    """
    path = pathlib.Path(vocoder)
    if str(vocoder) == GRIFFIN_LIM:
        return GriffinLim()
    if path.suffix == ".onnx":
        return OnnxVocoder(path)
    if (path / saved_model.FILE).is_file():
        return SavedModelVocoder(path)
    if holds(path, VOCODER):
        return MelGAN(load(path, VOCODER)[0])
    raise InputError(
        f"no vocoder {str(vocoder)!r}: give {GRIFFIN_LIM}, an .onnx file, the folder of a SavedModel, "
        "or a folder into which training exported a MelGAN"
    )
