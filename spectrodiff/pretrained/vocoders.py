"""Finds a vocoder by its name or path."""

import contextlib
import os
import pathlib

from spectrodiff.errors import InputError
from spectrodiff.files import as_path, is_file
from spectrodiff.pretrained.hub import UnknownCheckpointError, find_checkpoint, packaged_weights
from spectrodiff.pretrained.kinds import MELGAN, REFINER, Kind, vocoder_kind
from spectrodiff.pretrained.native import load
from spectrodiff.vocoder import saved_model
from spectrodiff.vocoder.generator import GRIFFIN_LIM
from spectrodiff.vocoder.griffin_lim import GriffinLim
from spectrodiff.vocoder.onnx import OnnxVocoder
from spectrodiff.vocoder.saved_model import SavedModelVocoder
from spectrodiff.vocoder.streaming import MelGAN, Vocoder

# Names of the networks in the demo's folder. Its vocoder is the MelGAN, which corrects Griffin-Lim with the refiner.
_OF_DEMO = {"melgan": MELGAN, "refiner": REFINER}


def find_vocoder(vocoder: str | os.PathLike) -> Vocoder:
    """Returns a vocoder: `griffin_lim`, one in the package by its name, or the one at a path.

    Those in the package are `demo`, which is also called `melgan`, and `refiner`, Griffin-Lim with its refiner. A path
    is an .onnx file, the folder of a SavedModel, or a folder into which training exported a vocoder.

    Raises:
      InputError: `vocoder` is none of these, or cannot be read.
    """
    path = as_path(vocoder)
    if str(vocoder) == GRIFFIN_LIM:
        return GriffinLim()
    if path.suffix == ".onnx":
        return OnnxVocoder(path)
    if is_file(path / saved_model.FILE):
        return SavedModelVocoder(path)
    packaged = packaged_vocoders()
    if str(vocoder) in packaged:
        return _load_vocoder(*packaged[str(vocoder)])
    with contextlib.suppress(UnknownCheckpointError):
        path = find_checkpoint(vocoder)
    if (trained := trained_vocoder(path)) is not None:
        return trained
    names = ", ".join([GRIFFIN_LIM, *packaged])
    raise InputError(
        f"no vocoder {str(vocoder)!r}: give {names}, an .onnx file, the folder of a SavedModel, or a folder into which "
        "training exported a vocoder"
    )


def packaged_vocoders() -> dict[str, tuple[pathlib.Path, Kind]]:
    """Returns the folders and kinds of the vocoders in this package, by name."""
    folders = packaged_weights()
    found = {name: (folder, kind) for name, folder in folders.items() if (kind := vocoder_kind(folder))}
    demo = folders.get("demo")
    parts = {name: (demo, kind) for name, kind in _OF_DEMO.items() if demo and kind.exists_in(demo)}
    return found | {name: part for name, part in parts.items() if name not in found}


def find_vocoder_weights(checkpoint: str | os.PathLike) -> pathlib.Path:
    """Returns the folder of a vocoder in this package by its name, or else what `find_checkpoint` returns."""
    if found := packaged_vocoders().get(str(checkpoint)):
        return found[0]
    return find_checkpoint(checkpoint)


def trained_vocoder(folder: str | os.PathLike) -> Vocoder | None:
    """Returns the vocoder that training exported into a folder, or None if there is none.

    A generator that corrects Griffin-Lim uses the refiner in the same folder, if there is one, or else that of the
    checkpoint that its config names.

    Raises:
      InputError: it cannot be read.
    """
    kind = vocoder_kind(folder)
    return None if kind is None else _load_vocoder(folder, kind)


def _load_vocoder(folder: str | os.PathLike, kind: Kind) -> Vocoder:
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
    return GriffinLim(load(find_vocoder_weights(refiner), REFINER)[0] if refiner else None)
