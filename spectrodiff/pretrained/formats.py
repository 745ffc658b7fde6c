"""Opens checkpoints of all formats."""

import os
import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from spectrodiff.errors import InputError
from spectrodiff.models.spectrogram_model import SpectrogramConfig, SpectrogramModel
from spectrodiff.notes.vocabulary import Vocabulary
from spectrodiff.pretrained import diffusers, native, t5x
from spectrodiff.pretrained.arrays import Spec, check_names, check_spec, spec_of
from spectrodiff.pretrained.kinds import SPECTROGRAM


class Checkpoint(NamedTuple):
    """Weights of a spectrogram model, in any format.

    `arrays` maps our names of parameters to arrays, and reads them lazily. `card` has information such as the number of
    training `steps`. `onnx_vocoder` is the path of the vocoder in the folder, if there is one.
    """

    format: str  # spectrodiff | diffusers | t5x
    folder: pathlib.Path
    config: SpectrogramConfig
    arrays: Mapping[str, np.ndarray]
    card: dict
    onnx_vocoder: pathlib.Path | None

    def build(self) -> SpectrogramModel:
        """Returns the network with these weights; raises InputError as `specs`."""
        return native.build(SPECTROGRAM, self.config, self.arrays, str(self.folder))

    def specs(self) -> dict[str, Spec]:
        """Returns the stored shape and type of each parameter.

        Raises:
          InputError: a parameter has another shape than in `config`, is not of floats, or cannot be read.
        """
        shapes, where = self.shapes(), str(self.folder)
        check_names(self.arrays, shapes, where)
        specs = {name: spec_of(self.arrays, name) for name in shapes}
        for name, spec in specs.items():
            check_spec(spec, name, shapes[name], where)
        return specs

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns the shapes of all parameters, from `config`."""
        return native.shapes_of(SPECTROGRAM, self.config)


def open_checkpoint(folder: str | os.PathLike) -> Checkpoint:
    """Opens the weights in `folder`, whose format is recognised by its files; only their description is read.

    Raises:
      InputError: there are no weights, or they are damaged or of another network than the paper's.
    """
    folder = pathlib.Path(folder)
    if (folder / diffusers.INDEX).is_file():
        kind, card = "diffusers", {}
        config, arrays = diffusers.read(folder)
    elif (found := t5x.find(folder)) is not None:
        kind = "t5x"
        config, arrays, card = t5x.read(found)
    elif SPECTROGRAM.exists_in(folder):
        kind = "spectrodiff"
        config, arrays, card = native.read(folder, SPECTROGRAM)
    else:
        expected = f"{SPECTROGRAM.files[0]} (ours), {diffusers.INDEX} (diffusers) or checkpoint_N/ (T5X)"
        raise InputError(f"{folder} holds no weights: expected {expected}")
    if config.model.vocabulary_rows < (needed := Vocabulary(config.tokenizer.velocity_bins).end):
        rows, bins = config.model.vocabulary_rows, config.tokenizer.velocity_bins
        raise InputError(f"{folder} has {rows} token embeddings; with {bins} velocity bins it needs {needed}")
    vocoder = folder / diffusers.ONNX_VOCODER
    return Checkpoint(kind, folder, config, arrays, card, vocoder if vocoder.is_file() else None)
