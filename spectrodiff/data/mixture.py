"""Several datasets as one: which, and how often each."""

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
    """Prepared datasets in `data_dir`, and how often an example comes from each.

    `weights` maps names of datasets to weights, whose sum does not matter: {"folder": 0.8, "rendered": 0.2}. Names
    alone, ("maestro", "slakh"), are weighted by n^(1 / temperature), n being how many windows their music fills: large
    ones do not drown the small, as the paper has it (Hawthorne et al. 2022, temperature 10/3).

    `programs` maps names of datasets to the MIDI program that all of their notes but drums are read as, whatever the
    files said: {"glass": 98}.
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
                raise InputError(f"Mixture.programs names {name!r}, which Mixture.weights does not; add it or mend it")
            if not is_whole(program, 0, 127):
                raise InputError(f"Mixture.programs has {program!r} for {name!r}; choose a program from 0 to 127")

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
        parts = [self._records(open_dataset(self.data_dir, name), "train") for name in self.names]
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
        return [self._records(dataset, split) for dataset in having]

    def _records(self, dataset: Dataset, split: str) -> Records:
        return dataclasses.replace(dataset[split], program=self.programs.get(dataset.name))

    def sources(self, source: Mapping[str, np.ndarray]) -> list[str]:
        """Where a batch's examples come from, of its `record` [b, 2] and `start` [b], as "dataset/piece at 12.34 s"."""
        parts, _ = self.training()
        names = []
        for (which, index), start in zip(source["record"], source["start"], strict=True):
            piece = parts[which][int(index)]["name"]
            names.append(f"{parts[which].dataset}/{piece} at {start / FRAMES_PER_SECOND:.2f} s")
        return names
