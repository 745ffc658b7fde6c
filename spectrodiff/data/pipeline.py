"""Examples in batches: deterministic in the seed, shared out among hosts, and able to continue where it was."""

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

_SLOTS = 64  # pieces that windows are cut from side by side, by all processes together
_FOREVER = 2**40
SOURCE = ("record", "start")  # what of a batch says where its examples come from, and is not learnt from


@runtime_checkable
class Examples(Protocol):
    """How an example comes from a piece."""

    def read(self, record: dict[str, Any]) -> tuple[Any, int]:
        """What is worth keeping of a record, and its size in bytes."""
        ...

    def draw(self, candidates: Iterator[Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """An example of the first candidate, of those that `read` kept, or of a later one if it will not do."""
        ...


class _Draw(grain.transforms.Map):
    """Example number `index`, which follows from (seed, index) alone."""

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
        """The piece whose turn it is, and after it any; `tried` gets dataset and record of each."""
        slot, turn = index % _SLOTS, index // _SLOTS
        visit = (turn + slot) // self.windows_per_piece  # slots change their pieces at different turns
        yield self._piece(np.random.default_rng([self.seed, 1, slot, visit]), tried)
        while True:
            yield self._piece(rng, tried)

    def _piece(self, rng, tried):
        """Any piece of a dataset as likely as its share, each second of its music equally likely."""
        which = int(np.searchsorted(self.shares[:-1], rng.random(), side="right"))
        ends = self.ends[which]
        index = int(np.searchsorted(ends, rng.integers(ends[-1]), side="right"))
        tried.append((which, index))
        return self.cache.get((which, index), lambda: self.examples.read(self.parts[which][index]))


@gin.register
@dataclasses.dataclass(frozen=True)
class Loader:
    """Reads records from disk while training goes on.

    Records are read whole and kept, encoded, up to `memory_gb`. With datasets larger than that, a piece that was read
    should yield `windows_per_piece` examples before it goes: ten minutes of piano take ten times as long to read as
    one window of it to cut. Windows are cut from 64 pieces in turn, which is what `memory_gb` should hold at least: a
    gigabyte of piano, three of songs with their stems. `threads` read and cut ahead of time (by default one a core, 16
    at most); how many changes nothing else.
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
        """An endless iterator of batches of numpy arrays, with grain's `get_state` and `set_state`.

        A batch has `batch_size` examples over all processes; each gets its part, and no two the same examples. The
        first is example number `start`: a run that has seen n goes on with `start` n, on however many processes. Beside
        what `examples` draws, `record` int32 [b, 2] says whence: which dataset of the mixture, which record.

        Raises:
          InputError: a dataset is not there, or an option makes no sense.
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
        indices = grain.MapDataset.range(_FOREVER)[start + process_index :: process_count]
        drawn = indices.map(draw).to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * size))
        return iter(grain.experimental.ThreadPrefetchIterDataset(drawn.batch(size), prefetch_buffer_size=2))


def check_stream(batch_size: int, seed: int, start: int) -> None:
    """Raises InputError for a batch without examples, and for a seed or a first example below 0."""
    for name, value, least in (("batch size", batch_size, 1), ("seed", seed, 0), ("start", start, 0)):
        if not value >= least:
            raise InputError(f"{name} is {value}; choose {least} or more")
