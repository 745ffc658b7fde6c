"""Finds a vocoder by its name or path."""

import contextlib
import os
import pathlib

from spectrodiff.errors import InputError
from spectrodiff.files import as_path
from spectrodiff.pretrained.hub import find_checkpoint, packaged_weights
from spectrodiff.pretrained.kinds import MELGAN, REFINER, vocoder_kind
from spectrodiff.pretrained.native import load
from spectrodiff.vocoder import saved_model
from spectrodiff.vocoder.griffin_lim import GriffinLim
from spectrodiff.vocoder.onnx import OnnxVocoder
from spectrodiff.vocoder.saved_model import SavedModelVocoder
from spectrodiff.vocoder.streaming import MelGAN, Vocoder

GRIFFIN_LIM = "griffin_lim"


def find_vocoder(vocoder: str | os.PathLike) -> Vocoder:
    """Returns a vocoder: `griffin_lim`, that of weights in the package (`demo`), or the one at a path.

    A path is an .onnx file, the folder of a SavedModel, or a folder into which training exported a vocoder.

    Raises:
      InputError: `vocoder` is none of these, or cannot be read.
    """
    path = as_path(vocoder)
    if str(vocoder) == GRIFFIN_LIM:
        return GriffinLim()
    if path.suffix == ".onnx":
        return OnnxVocoder(path)
    if (path / saved_model.FILE).is_file():
        return SavedModelVocoder(path)
    with contextlib.suppress(InputError):
        path = find_vocoder_weights(vocoder)
    if (trained := trained_vocoder(path)) is not None:
        return trained
    names = ", ".join([GRIFFIN_LIM, *packaged_vocoders()])
    raise InputError(
        f"no vocoder {str(vocoder)!r}: give {names}, an .onnx file, the folder of a SavedModel, or a folder into which "
        "training exported a vocoder"
    )


def packaged_vocoders() -> dict[str, pathlib.Path]:
    """Returns the folders of the vocoders in this package, by name."""
    return {name: folder for name, folder in packaged_weights().items() if vocoder_kind(folder)}


def find_vocoder_weights(checkpoint: str | os.PathLike) -> pathlib.Path:
    """Returns the folder of a vocoder in this package by its name, or else what `find_checkpoint` returns."""
    return packaged_vocoders().get(str(checkpoint)) or find_checkpoint(checkpoint)


def trained_vocoder(folder: str | os.PathLike) -> Vocoder | None:
    """Returns the vocoder that training exported into a folder, or None if there is none.

    A generator that corrects Griffin-Lim uses the refiner in the same folder, if there is one, or else that of the
    checkpoint that its config names.

    Raises:
      InputError: it cannot be read.
    """
    kind = vocoder_kind(folder)
    if kind is None:
        return None
    network, config = load(folder, kind)
    if kind is MELGAN and config.corrects:
        here = os.fspath(folder) if REFINER.exists_in(folder) else config.refiner
        return MelGAN(network, griffin_lim=find_griffin_lim(here))
    return kind.vocoder(network)


def find_griffin_lim(refiner: str) -> GriffinLim:
    """Returns Griffin-Lim with the refiner of a checkpoint, given by name or folder, or without one if it is empty.

    Raises:
      InputError: there is no such checkpoint, or it has no refiner.
    """
    return GriffinLim(load(find_checkpoint(refiner), REFINER)[0] if refiner else None)
