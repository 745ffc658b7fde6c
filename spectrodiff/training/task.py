"""The interface of training tasks."""

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from flax import nnx

from spectrodiff.training.steps import Loss


@runtime_checkable
class Task(Protocol):
    """A training task: a model, its data and its loss."""

    loss: Loss
    dtype: str  # dtype of the model's activations

    def build(self, rngs: nnx.Rngs) -> nnx.Module:
        """Builds the model with newly initialised parameters."""

    def load(self, checkpoint: str) -> nnx.Module:
        """Builds the model with the parameters of a checkpoint, given by name or folder."""

    def frozen_modules(self) -> Mapping[str, nnx.Module]:
        """Returns modules that the loss uses but that are not trained or saved, such as a teacher."""

    def batches(self, seed: int, start: int = 0) -> Iterator[dict[str, Any]]:
        """Yields batches indefinitely, starting at example number `start`. They contain the arrays of `SOURCE`."""

    def sources(self, source: dict[str, np.ndarray]) -> list[str]:
        """Returns a readable description of the source of each example, given the arrays of `SOURCE`."""

    def save(self, folder: pathlib.Path, model: nnx.Module, card: dict) -> None:
        """Exports a trained model to `folder`, with the model card `card`."""
