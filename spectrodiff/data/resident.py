"""A corpus in device memory, for accelerators that train faster than a loader can read and cut windows."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import gin
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from tqdm import tqdm

from spectrodiff.audio.mel import HOP, MEL_BINS, log_mel_on_host, scale_mel
from spectrodiff.config import WINDOW_FRAMES
from spectrodiff.data.augmentation import OFF
from spectrodiff.data.mixture import Mixture
from spectrodiff.data.pipeline import check_stream
from spectrodiff.data.windows import SILENCE, Windows
from spectrodiff.data.workers import parallel_map, worker_count
from spectrodiff.errors import InputError

_MAX_FRAMES = 2**31 - 1  # that int32 can count


class Corpus(NamedTuple):
    """The log-mels of all records, concatenated with silence between them, and their windows, sorted by dataset."""

    mel: Float[Array, "frames m"]  # scaled, float16
    tokens: Int[Array, "windows n"]  # int16
    start: Int[Array, " windows"]  # first frame of the target, in `mel`
    since: Int[Array, " windows"]  # frames of the record before the target's first
    until: Int[Array, " windows"]  # frames of the record from it on
    record: Int[Array, "windows 2"]  # the numbers of the dataset and of its record


@gin.register
@dataclasses.dataclass(frozen=True)
class ResidentLoader:
    """Cuts a corpus into windows `stride` frames apart, once, and draws batches of them on the device.

    Records are read and tokenized by `workers` processes (by default one per core). Windows with too many tokens are
    left out, also if `on_overflow` is "thin".
    """

    stride: int = 64
    workers: int | None = None

    def __post_init__(self):
        if self.stride < 1 or (self.workers is not None and self.workers < 1):
            raise InputError(f"ResidentLoader has stride {self.stride}, workers {self.workers}; choose 1 or more")

    def batches(
        self, mixture: Mixture, examples: Windows, *, batch_size: int, seed: int, start: int = 0
    ) -> Iterator[dict[str, jax.Array]]:
        """Returns an endless iterator of batches like those of `pipeline.Loader`, as arrays on the device.

        Datasets are drawn by their shares, and the windows of a dataset uniformly. Batches depend on (seed, start)
        only; `start` is a multiple of the batch size.

        Raises:
          InputError: a dataset is missing, an option has a value that cannot be used, there is augmentation, or there
            are several processes.
        """
        check_stream(batch_size, seed, start)
        if examples.augmentation != OFF or examples.audio:
            raise InputError("a resident corpus cannot be augmented: turn augmentation off, or use Loader")
        if jax.process_count() > 1:
            raise InputError("a resident corpus is for one process; use Loader")
        parts, shares = mixture.training()
        records = ((part, which, index) for which, part in enumerate(parts) for index in range(len(part)))
        jobs = [(*record, examples, self.stride) for record in records]
        corpus, counts = _join(over_records(_windows_of, jobs, self.workers), len(parts), examples.tokens)
        return _draw(jax.device_put(corpus), counts, shares, examples.first_share, batch_size, seed, start)


def over_records(function: Callable, jobs: Sequence, workers: int | None) -> Iterator:
    """Yields `function(job)` of each job, in order, computed by `workers` processes (by default one per core)."""
    done = parallel_map(function, jobs, worker_count(workers, len(jobs), items_per_worker=1))
    yield from tqdm(done, "reading the corpus", len(jobs), delay=2.0, unit="record")


def _windows_of(job: tuple) -> tuple[np.ndarray, int, int, np.ndarray, np.ndarray]:
    """Returns a record's scaled mel, the numbers of its dataset and of itself, and its windows' starts and tokens."""
    part, which, index, examples, stride = job
    (piece, timeline), _ = examples.read(part[index])
    mel = scale_mel(log_mel_on_host(piece.read(0, piece.samples)))[: piece.frames].astype(np.float16)
    tokenizer = examples.tokenizer
    first = int(np.random.default_rng(index).integers(stride))  # a different grid of windows for each record
    starts, rows = [], []
    for start in (0, *range(first or stride, max(1, len(mel) - WINDOW_FRAMES // 4), stride)):
        try:
            row = tokenizer.window(timeline, start)
        except InputError:  # over the tokenizer's own limit
            continue
        notes = examples.tokens // examples.tokens_per_note
        if len(row) <= examples.tokens and tokenizer.vocabulary.count_notes(row) <= notes:
            starts.append(start)
            rows.append(np.pad(row, (0, examples.tokens - len(row))).astype(np.int16))
    return mel, which, index, np.array(starts, np.int32), np.array(rows, np.int16).reshape(-1, examples.tokens)


def _join(cut: Iterator[tuple], datasets: int, tokens: int) -> tuple[Corpus, list[int]]:
    """Returns the corpus, and the number of windows of each dataset."""
    silence, at, counts = np.full((WINDOW_FRAMES, MEL_BINS), SILENCE, np.float16), WINDOW_FRAMES, [0] * datasets
    columns = [[silence], [np.zeros((0, tokens), np.int16)], *([np.zeros(0, np.int32)] for _ in range(3))]
    columns.append([np.zeros((0, 2), np.int32)])
    for mel, which, index, starts, rows in cut:
        record = np.tile(np.array([which, index], np.int32), (len(starts), 1))
        new = (mel, rows, at + starts, starts, len(mel) - starts, record)
        for column, values in zip(columns, new, strict=True):
            column.append(values)
        columns[0].append(silence)
        counts[which] += len(starts)
        at += len(mel) + WINDOW_FRAMES
    if not all(counts):
        raise InputError(f"a dataset has no window of at most {tokens} tokens; raise SpectrogramTask.tokens")
    if at > _MAX_FRAMES:
        raise InputError(f"the corpus has {at * HOP / 16000 / 3600:.0f} hours, too many for a device; use Loader")
    return Corpus(*map(np.concatenate, columns)), counts


def _draw(
    corpus: Corpus, counts: list[int], shares: np.ndarray, first_share: float, batch_size: int, seed: int, start: int
) -> Iterator[dict[str, jax.Array]]:
    """Yields batches of random windows; `counts` is the number of windows of each dataset."""
    begins = np.concatenate([[0], np.cumsum(counts)[:-1]])
    record, since = np.asarray(corpus.record), np.asarray(corpus.since)
    # The first windows of the records of each dataset, as a rectangular array: rows are repeated to the longest, and a
    # dataset that has none has a row of -1.
    firsts = [np.flatnonzero((record[:, 0] == which) & (since == 0)) for which in range(len(counts))]
    most = max(1, *map(len, firsts))
    firsts = jnp.array([np.resize(row, most) if len(row) else np.full(most, -1) for row in firsts])
    counts, begins, cumulative = jnp.array(counts), jnp.array(begins), jnp.array(np.cumsum(shares)[:-1], jnp.float32)

    @jax.jit
    def batch(corpus: Corpus, step: jax.Array) -> dict[str, jax.Array]:
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), step), 4)
        size = (batch_size,)
        which = jnp.searchsorted(cumulative, jax.random.uniform(keys[0], size), side="right")
        anywhere = begins[which] + jax.random.randint(keys[1], size, 0, 2**30) % counts[which]
        first = firsts[which, jax.random.randint(keys[2], size, 0, most)]
        wanted = jax.random.bernoulli(keys[3], first_share, size) & (first >= 0)
        return examples_of(corpus, jnp.where(wanted, first, anywhere))

    step = start // batch_size
    while True:
        yield batch(corpus, jnp.int32(step))
        step += 1


def examples_of(corpus: Corpus, windows: Int[Array, " b"]) -> dict[str, jax.Array]:
    """Returns the windows of these numbers as a batch like those of `Windows`."""
    start, since, until = corpus.start[windows], corpus.since[windows], corpus.until[windows]
    context = jnp.minimum(since, WINDOW_FRAMES)  # frames; a short context is padded at its end
    frames = jnp.arange(WINDOW_FRAMES)
    span = jax.vmap(functools.partial(jax.lax.dynamic_slice_in_dim, corpus.mel, slice_size=WINDOW_FRAMES))
    batch = {}
    for name, begin, count in (("context", start - context, context), ("target", start, until)):
        batch[f"{name}_mask"] = mask = frames < count[:, None]
        batch[name] = jnp.where(mask[..., None], span(begin).astype(jnp.float32), SILENCE)
    tokens = corpus.tokens[windows].astype(jnp.int32)
    overfull = jnp.zeros(len(windows), jnp.int32)
    return {**batch, "tokens": tokens, "record": corpus.record[windows], "start": since, "overfull": overfull}
