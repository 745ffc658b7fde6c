"""Several datasets as one: which, and how often each."""

import dataclasses
from collections.abc import Mapping, Sequence

import gin
import numpy as np
from jaxtyping import Float64

from spectrodiff.audio.mel import HOP
from spectrodiff.config import WINDOW_FRAMES
from spectrodiff.data.dataset import Records, open_dataset
from spectrodiff.errors import InputError


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Mixture:
    """Prepared datasets in `data_dir`, and how often an example comes from each.

    `weights` maps names of datasets to weights, whose sum does not matter: {"folder": 0.8, "rendered": 0.2}. Names
    alone, ("maestro", "slakh"), are weighted by n^(1 / temperature), n being how many windows their music fills: large
    ones do not drown the small, as the paper has it (Hawthorne et al. 2022, temperature 10/3).
    """

    data_dir: str = "data"
    weights: Mapping[str, float] | Sequence[str] = ("rendered",)
    temperature: float = 10 / 3

    def __post_init__(self):
        if isinstance(self.weights, str):
            object.__setattr__(self, "weights", (self.weights,))
        if not self.names:
            raise InputError("Mixture.weights names no dataset with a weight above 0")
        if isinstance(self.weights, Mapping):
            for name, weight in self.weights.items():
                if not 0 <= weight < float("inf"):
                    raise InputError(f"Mixture.weights has {weight} for {name!r}; choose a number from 0 up")
        if not self.temperature > 0:
            raise InputError(f"Mixture.temperature is {self.temperature}; choose more than 0")

    @property
    def names(self) -> list[str]:
        """The datasets that are drawn from."""
        if isinstance(self.weights, Mapping):
            return [name for name, weight in self.weights.items() if weight]
        return list(dict.fromkeys(self.weights))

    def training(self) -> tuple[list[Records], Float64[np.ndarray, " datasets"]]:
        """The train splits, and each one's share of the examples.

        Raises:
          InputError: a dataset is not there, or has no train split.
        """
        parts = [open_dataset(self.data_dir, name)["train"] for name in self.names]
        if isinstance(self.weights, Mapping):
            weights = np.array([self.weights[name] for name in self.names], np.float64)
        else:
            windows = np.array([part.samples.sum() for part in parts]) / (WINDOW_FRAMES * HOP)
            weights = windows ** (1 / self.temperature)
        return parts, weights / weights.sum()

    def heldout(self, split: str) -> list[Records]:
        """That split of every dataset that has it.

        Raises:
          InputError: a dataset is not there, or none has the split.
        """
        datasets = [open_dataset(self.data_dir, name) for name in self.names]
        having = [dataset for dataset in datasets if split in dataset.splits] or datasets
        return [dataset[split] for dataset in having]
