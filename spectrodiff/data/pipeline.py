"""Examples in batches: deterministic in the seed, shared out among hosts, and able to continue where it was."""

import os
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import gin
import grain
import jax
import numpy as np

from spectrodiff.data.augmentation import OFF, Augmentation
from spectrodiff.data.mixture import Mixture
from spectrodiff.data.pieces import Shelf
from spectrodiff.data.windows import Windows
from spectrodiff.errors import InputError
from spectrodiff.notes.tokenizer import NoteTokenizer

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
        self.shelf = Shelf(capacity)

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
        return self.shelf.get((which, index), lambda: self.examples.read(self.parts[which][index]))


@gin.configurable
def batches(
    mixture: Mixture,
    tokenizer: NoteTokenizer,
    tokens_per_note: int,
    *,
    batch_size: int,
    seed: int,
    start: int = 0,
    tokens: int = 512,
    first_share: float = 0.05,
    on_overflow: str = "skip",
    augmentation: Augmentation = OFF,
) -> grain.DatasetIterator:
    """An endless `stream` of batches of `Windows`, whose options these are."""
    windows = Windows(tokenizer, tokens_per_note, tokens, first_share, on_overflow, augmentation)
    return stream(mixture, windows, batch_size=batch_size, seed=seed, start=start)


@gin.configurable
def stream(
    mixture: Mixture,
    examples: Examples,
    *,
    batch_size: int,
    seed: int,
    start: int = 0,
    windows_per_piece: int = 1,
    memory_gb: float = 4.0,
    threads: int | None = None,
    process_index: int | None = None,
    process_count: int | None = None,
) -> grain.DatasetIterator:
    """An endless iterator of batches of numpy arrays, with grain's `get_state` and `set_state`.

    A batch has `batch_size` examples over all processes; each gets its share, and no two the same examples. The first
    is example number `start`: a run that has seen n goes on with `start` n, on however many processes. `threads` read
    and cut ahead of time (by default one a core, 16 at most); how many changes nothing else. Beside what `examples`
    draws, `record` int32 [b, 2] says whence: which dataset of the mixture, which record.

    Records are read whole and kept, encoded, up to `memory_gb`. With datasets larger than that, a piece that was read
    should yield `windows_per_piece` examples before it goes: ten minutes of piano take ten times as long to read as
    one window of it to cut. Windows are cut from 64 pieces in turn, which is what `memory_gb` should hold at least: a
    gigabyte of piano, three of songs with their stems.

    Raises:
      InputError: a dataset is not there, or an option makes no sense.
    """
    process_index = jax.process_index() if process_index is None else process_index
    process_count = jax.process_count() if process_count is None else process_count
    threads = min(16, os.cpu_count() or 1) if threads is None else threads
    for name, value, least in (
        ("batch size", batch_size, 1),
        ("seed", seed, 0),
        ("start", start, 0),
        ("stream.windows_per_piece", windows_per_piece, 1),
        ("stream.memory_gb", memory_gb, 0),
        ("stream.threads", threads, 1),
    ):
        if not value >= least:
            raise InputError(f"{name} is {value}; choose {least} or more")
    if batch_size % process_count:
        raise InputError(f"batch size is {batch_size}; choose a multiple of {process_count}, the number of processes")
    size, capacity = batch_size // process_count, int(memory_gb * 2**30)
    draw = _Draw(*mixture.training(), examples, seed, windows_per_piece, capacity)
    indices = grain.MapDataset.range(_FOREVER)[start + process_index :: process_count]
    drawn = indices.map(draw).to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * size))
    return iter(grain.experimental.ThreadPrefetchIterDataset(drawn.batch(size), prefetch_buffer_size=2))
