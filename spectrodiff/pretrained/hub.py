"""Finds the folder of a checkpoint by its name."""

import os
import pathlib
import re

from spectrodiff.errors import InputError, reason
from spectrodiff.files import is_folder, local_path
from spectrodiff.pretrained import diffusers
from spectrodiff.pretrained.kinds import KINDS, SPECTROGRAM

_WEIGHTS = pathlib.Path(__file__).parent / "weights"
_HUB = "hf://"
# The files that are read, of all formats; pickled weights are downloaded only if there are no safetensors.
_NEEDED = [
    *(name for kind in KINDS.values() for name in kind.files),
    *("model_index.json", "*/config.json", "*/diffusion_pytorch_model.safetensors", "melgan/model.onnx"),
    "scheduler/scheduler_config.json",
    *("config.gin", "checkpoint_*/checkpoint", "checkpoint_*/target.*"),
]


class UnknownCheckpointError(InputError):
    """There is no checkpoint of a name."""


def packaged_weights() -> dict[str, pathlib.Path]:
    """Returns the folders of the weights that are part of this package, by name."""
    return {folder.name: folder for folder in sorted(_WEIGHTS.glob("*/")) if folder.is_dir()}


def find_checkpoint(checkpoint: str | os.PathLike) -> pathlib.Path:
    """Returns the folder of a checkpoint: one in the package by name, one on a hub, or the folder `checkpoint` itself.

    `hf://owner/name` is downloaded once; without a network the downloaded copy is used.

    Raises:
      UnknownCheckpointError: `checkpoint` is none of these.
      InputError: it cannot be downloaded, or is the folder of a run.
    """
    if str(checkpoint).startswith(_HUB):
        return _download(str(checkpoint))
    path = local_path(checkpoint)
    packaged = {name: folder for name, folder in packaged_weights().items() if SPECTROGRAM.exists_in(folder)}
    if str(checkpoint) in packaged:
        return packaged[str(checkpoint)]
    if is_folder(path / "checkpoints"):
        raise InputError(f"{path} is the folder of a run: its weights are in {path / 'export'}")
    if is_folder(path):
        return path
    if path.name == "export" and is_folder(path.parent / "checkpoints"):
        raise InputError(
            f"the run in {path.parent} has not ended, and so has not written {path}; to take weights from it now, "
            f"use spectrodiff export {path.parent} NEW"
        )
    known = f"one of {', '.join(packaged)}, or " if packaged else ""
    raise UnknownCheckpointError(
        f"no checkpoint {str(checkpoint)!r}: give {known}a folder of weights, or hf://owner/name"
    )


def _download(name: str) -> pathlib.Path:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository := name.removeprefix(_HUB)):
        raise InputError(f"no checkpoint {name!r}: give hf://owner/name")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise InputError(f'{name} needs huggingface_hub: pip install "spectrodiff[hub]"') from error
    try:
        folder = pathlib.Path(snapshot_download(repository, allow_patterns=_NEEDED))
        if (folder / diffusers.INDEX).is_file() and (pickles := diffusers.pickle_fallbacks(folder)):
            folder = pathlib.Path(snapshot_download(repository, allow_patterns=[*_NEEDED, *pickles]))
    except Exception as error:  # exceptions of networks have no common class
        said = reason(error)
        raise InputError(f"cannot get {name} from the hub, and the cache does not hold it: {said}") from error
    return folder
