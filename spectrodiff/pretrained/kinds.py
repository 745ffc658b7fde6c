"""The registry of networks that can be saved; other modules know them from here only."""

import pathlib
from collections.abc import Callable
from typing import NamedTuple

from flax import nnx

from spectrodiff.files import is_file
from spectrodiff.models.spectrogram_model import SpectrogramConfig, SpectrogramModel
from spectrodiff.vocoder.generator import Generator, GeneratorConfig
from spectrodiff.vocoder.griffin_lim import GriffinLim
from spectrodiff.vocoder.refiner import Refiner, RefinerConfig
from spectrodiff.vocoder.streaming import MelGAN, Vocoder


class Kind(NamedTuple):
    """A kind of network, saved in a checkpoint's folder as NAME.safetensors and NAME.json.

    `network(config, rngs=...)` builds it. For vocoders, `vocoder(network)` returns a `Vocoder`.
    """

    name: str
    title: str
    config: type
    network: type[nnx.Module]
    vocoder: Callable[[nnx.Module], Vocoder] | None = None

    @property
    def files(self) -> tuple[str, str]:
        """The names of its two files, the JSON file first."""
        return f"{self.name}.json", f"{self.name}.safetensors"

    def exists_in(self, folder: str | pathlib.Path) -> bool:
        """Returns whether `folder` has a network of this kind."""
        return is_file(pathlib.Path(folder) / self.files[0])


SPECTROGRAM = Kind("spectrogram", "spectrogram model", SpectrogramConfig, SpectrogramModel)
MELGAN = Kind("vocoder", "MelGAN", GeneratorConfig, Generator, MelGAN)
REFINER = Kind("refiner", "refiner of Griffin-Lim", RefinerConfig, Refiner, GriffinLim)
KINDS = {kind.name: kind for kind in (SPECTROGRAM, MELGAN, REFINER)}  # of a folder's vocoders, the first is used


def vocoder_kind(folder: str | pathlib.Path) -> Kind | None:
    """Returns the kind of the vocoder in `folder`, or None if there is none in our format."""
    return next((kind for kind in KINDS.values() if kind.vocoder and kind.exists_in(folder)), None)
