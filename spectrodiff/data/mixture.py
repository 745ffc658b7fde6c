"""A weighted mixture of datasets."""

import dataclasses
from collections.abc import Mapping, Sequence

import gin
import numpy as np
from jaxtyping import Float64

from spectrodiff.audio.mel import FRAMES_PER_SECOND, HOP
from spectrodiff.config import WINDOW_FRAMES, is_whole
from spectrodiff.data.dataset import Dataset, Records, open_dataset
from spectrodiff.errors import InputError


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Mixture:
    """A mixture of prepared datasets in `data_dir`, each with the probability that an example comes from it.

    `weights` maps names of datasets to weights, which are normalized: {"folder": 0.8, "rendered": 0.2}. Datasets given
    by name only, ("maestro", "slakh"), are weighted by n^(1 / temperature), where n is the number of windows in a
    dataset (Hawthorne et al. 2022, temperature 10/3).

    `programs` maps names of datasets to the MIDI program given to all of their notes except drums: {"glass": 98}.
    """

    data_dir: str = "data"
    weights: Mapping[str, float] | Sequence[str] = ("rendered",)
    temperature: float = 10 / 3
    programs: Mapping[str, int] = dataclasses.field(default_factory=dict)

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
        for name, program in self.programs.items():
            if name not in self.weights:
                raise InputError(f"Mixture.programs names {name!r}, which is not in Mixture.weights; set both")
            if not is_whole(program, 0, 127):
                raise InputError(f"Mixture.programs has {program!r} for {name!r}; choose a program from 0 to 127")

    @property
    def names(self) -> list[str]:
        """The names of the datasets with a weight above 0."""
        if isinstance(self.weights, Mapping):
            return [name for name, weight in self.weights.items() if weight]
        return list(dict.fromkeys(self.weights))

    def training(self) -> tuple[list[Records], Float64[np.ndarray, " datasets"]]:
        """Returns the train splits, and the probability of each (float64 [datasets]).

        Raises:
          InputError: a dataset is missing, or has no train split.
        """
        parts = [self._records(open_dataset(self.data_dir, name), "train") for name in self.names]
        if isinstance(self.weights, Mapping):
            weights = np.array([self.weights[name] for name in self.names], np.float64)
        else:
            windows = np.array([part.samples.sum() for part in parts]) / (WINDOW_FRAMES * HOP)
            weights = windows ** (1 / self.temperature)
        return parts, weights / weights.sum()

    def heldout(self, split: str) -> list[Records]:
        """Returns this split of every dataset that has it.

        Raises:
          InputError: a dataset is missing, or none has the split.
        """
        datasets = [open_dataset(self.data_dir, name) for name in self.names]
        # If no dataset has the split, the first one raises the error.
        with_split = [dataset for dataset in datasets if split in dataset.splits] or datasets
        return [self._records(dataset, split) for dataset in with_split]

    def _records(self, dataset: Dataset, split: str) -> Records:
        return dataclasses.replace(dataset[split], program=self.programs.get(dataset.name))

    def sources(self, source: Mapping[str, np.ndarray]) -> list[str]:
        """Describes the origin of each example of a batch, such as "dataset/piece at 12.34 s".

        `source` holds the batch's `record` [b, 2] and `start` [b].
        """
        parts, _ = self.training()
        names = []
        for (which, index), start in zip(source["record"], source["start"], strict=True):
            piece = parts[which][int(index)]["name"]
            names.append(f"{parts[which].dataset}/{piece} at {start / FRAMES_PER_SECOND:.2f} s")
        return names
