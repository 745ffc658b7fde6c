"""The kinds of networks whose weights are kept: all that other modules know of them, they know from this table."""

import pathlib
from collections.abc import Callable
from typing import NamedTuple

from flax import nnx

from spectrodiff.models.spectrogram_model import SpectrogramConfig, SpectrogramModel
from spectrodiff.vocoder.generator import Generator, GeneratorConfig
from spectrodiff.vocoder.griffin_lim import GriffinLim
from spectrodiff.vocoder.refiner import Refiner, RefinerConfig
from spectrodiff.vocoder.streaming import MelGAN, Vocoder


class Kind(NamedTuple):
    """A network that a checkpoint folder may hold, as NAME.safetensors and NAME.json.

    `network(config, rngs=...)` builds it. `vocoder` makes of it what turns mels into audio, where it does so.
    """

    name: str
    title: str
    config: type
    network: type[nnx.Module]
    vocoder: Callable[[nnx.Module], Vocoder] | None = None

    @property
    def files(self) -> tuple[str, str]:
        """The names of its two files, the description first."""
        return f"{self.name}.json", f"{self.name}.safetensors"

    def lies_in(self, folder: str | pathlib.Path) -> bool:
        """Whether `folder` has a network of this kind."""
        return (pathlib.Path(folder) / self.files[0]).is_file()


SPECTROGRAM = Kind("spectrogram", "spectrogram model", SpectrogramConfig, SpectrogramModel)
MELGAN = Kind("vocoder", "MelGAN", GeneratorConfig, Generator, MelGAN)
REFINER = Kind("refiner", "refiner of Griffin-Lim", RefinerConfig, Refiner, GriffinLim)
KINDS = {kind.name: kind for kind in (SPECTROGRAM, MELGAN, REFINER)}  # the first vocoder that a folder has plays


def vocoder_kind(folder: str | pathlib.Path) -> Kind | None:
    """The kind of the vocoder that lies in `folder`, or None where there is none of ours."""
    return next((kind for kind in KINDS.values() if kind.vocoder and kind.lies_in(folder)), None)
