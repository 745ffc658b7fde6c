"""Batches of examples: deterministic in the seed, sharded over processes, and resumable."""

import dataclasses
import os
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import gin
import grain
import jax
import numpy as np

from spectrodiff.data.mixture import Mixture
from spectrodiff.data.pieces import LRUCache
from spectrodiff.errors import InputError

_SLOTS = 64  # pieces that examples are drawn from in turn, over all processes
_ENDLESS = 2**40  # the number of examples, more than any run draws
SOURCE = ("record", "start")  # keys of a batch that give the origin of its examples, and are not inputs


@runtime_checkable
class Examples(Protocol):
    """A way to draw training examples from pieces."""

    def read(self, record: dict[str, Any]) -> tuple[Any, int]:
        """Returns what to cache of a record, and its size in bytes."""
        ...

    def draw(self, candidates: Iterator[Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Returns an example of the first candidate (what `read` returned), or of a later one if that has none."""
        ...


class _Draw(grain.transforms.Map):
    """Draws example number `index`, which depends on (seed, index) only."""

    def __init__(self, parts, shares, examples: Examples, seed: int, windows_per_piece: int, capacity: int):
        self.parts, self.shares, self.examples = parts, np.cumsum(shares), examples
        self.seed, self.windows_per_piece = seed, windows_per_piece
        self.ends = [np.cumsum(part.samples) for part in parts]
        self.cache = LRUCache(capacity)

    def map(self, index):
        rng = np.random.default_rng([self.seed, 0, int(index)])
        tried = []
        example = self.examples.draw(self._candidates(int(index), rng, tried), rng)
        return {**example, "record": np.array(tried[-1], np.int32)}

    def _candidates(self, index, rng, tried):
        """Yields the piece of this example's slot, then random ones; appends (dataset, record) of each to `tried`.

        Examples take turns with the slots. In each slot, a piece is kept for `windows_per_piece` turns.
        """
        slot, turn = index % _SLOTS, index // _SLOTS
        visit = (turn + slot) // self.windows_per_piece  # slots change their pieces at different turns
        yield self._piece(np.random.default_rng([self.seed, 1, slot, visit]), tried)
        while True:
            yield self._piece(rng, tried)

    def _piece(self, rng, tried):
        """Draws a dataset by its share, and of it a piece with a probability proportional to its length."""
        which = int(np.searchsorted(self.shares[:-1], rng.random(), side="right"))
        ends = self.ends[which]
        index = int(np.searchsorted(ends, rng.integers(ends[-1]), side="right"))
        tried.append((which, index))
        return self.cache.get((which, index), lambda: self.examples.read(self.parts[which][index]))


@gin.register
@dataclasses.dataclass(frozen=True)
class Loader:
    """Reads records from disk during training.

    Whole records are cached, encoded, up to `memory_gb`. With datasets larger than that, `windows_per_piece` examples
    should be drawn from a piece before it is dropped: reading ten minutes of piano takes ten times as long as cutting
    one window from it. Examples come from 64 pieces in turn, which the cache should hold at least: one GB of piano, or
    three GB of songs with stems. `threads` read ahead (by default one per core, at most 16); their number does not
    change the examples.
    """

    windows_per_piece: int = 1
    memory_gb: float = 4.0
    threads: int | None = None

    def __post_init__(self):
        for name, least in (("windows_per_piece", 1), ("memory_gb", 0), ("threads", 1)):
            if (value := getattr(self, name)) is not None and not value >= least:
                raise InputError(f"Loader.{name} is {value}; choose {least} or more")

    def batches(
        self,
        mixture: Mixture,
        examples: Examples,
        *,
        batch_size: int,
        seed: int,
        start: int = 0,
        process_index: int | None = None,
        process_count: int | None = None,
    ) -> grain.DatasetIterator:
        """Returns an endless iterator of batches of numpy arrays, with grain's `get_state` and `set_state`.

        A batch has `batch_size` examples over all processes, each of which gets its own part. The first example has
        number `start`: a run that has seen n examples continues with `start` n, on any number of processes. In addition
        to what `examples` draws, a batch has `record`, int32 [b, 2]: the numbers of the dataset and of its record.

        Raises:
          InputError: a dataset is missing, or an option has a value that cannot be used.
        """
        process_index = jax.process_index() if process_index is None else process_index
        process_count = jax.process_count() if process_count is None else process_count
        check_stream(batch_size, seed, start)
        if batch_size % process_count:
            raise InputError(
                f"batch size is {batch_size}; choose a multiple of {process_count}, the number of processes"
            )
        threads = min(16, os.cpu_count() or 1) if self.threads is None else self.threads
        size, capacity = batch_size // process_count, int(self.memory_gb * 2**30)
        draw = _Draw(*mixture.training(), examples, seed, self.windows_per_piece, capacity)
        indices = grain.MapDataset.range(_ENDLESS)[start + process_index :: process_count]
        drawn = indices.map(draw).to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * size))
        return iter(grain.experimental.ThreadPrefetchIterDataset(drawn.batch(size), prefetch_buffer_size=2))


def check_stream(batch_size: int, seed: int, start: int) -> None:
    """Raises InputError if `batch_size` is below 1, or `seed` or `start` below 0."""
    for name, value, least in (("batch size", batch_size, 1), ("seed", seed, 0), ("start", start, 0)):
        if not value >= least:
            raise InputError(f"{name} is {value}; choose {least} or more")
