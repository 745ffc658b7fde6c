"""The audio of a corpus in device memory, to train vocoders on crops of it."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import gin
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from spectrodiff.audio.mel import EXTRA_FRAMES, HOP
from spectrodiff.data.augmentation import Augmentation
from spectrodiff.data.crops import Crops
from spectrodiff.data.mixture import Mixture
from spectrodiff.data.pipeline import check_stream
from spectrodiff.data.resident import over_records
from spectrodiff.errors import InputError

_FULL_SCALE = 2**15  # of 16-bit audio


class Audio(NamedTuple):
    """The audio of all records, each padded to the length of a crop at least, sorted by dataset; cut into frames.

    The columns are those of the pieces: the recording and, for `ExcitedCrops`, the audio of Griffin-Lim.
    """

    samples: Int[Array, "frames columns hop"]  # int16
    first: Int[Array, " records"]  # first frame of each record
    length: Int[Array, " records"]  # number of frames of each record, without padding
    places: Int[Array, " records"]  # number of frames of each record that a crop may start at
    record: Int[Array, "records 2"]  # the numbers of the dataset and of its record


@gin.register
@dataclasses.dataclass(frozen=True)
class ResidentAudioLoader:
    """Keeps the audio of a corpus in 16 bits on the device, and draws batches of crops there.

    Records are decoded by `workers` processes (by default one per core), or in this one if Griffin-Lim has to run on
    the device for them. An hour takes 115 MB, and as much again for the audio of Griffin-Lim.
    """

    workers: int | None = None

    def __post_init__(self):
        if self.workers is not None and self.workers < 1:
            raise InputError(f"ResidentAudioLoader.workers is {self.workers}; choose 1 or more")

    def batches(
        self, mixture: Mixture, examples: Any, *, batch_size: int, seed: int, start: int = 0
    ) -> Iterator[dict[str, jax.Array]]:
        """Returns an endless iterator of batches like those of `pipeline.Loader`, as arrays on the device.

        Datasets are drawn by their shares, records by their lengths, and places in a record uniformly. Of an
        augmentation, only the gain is possible. Batches depend on (seed, start) only; `start` is a multiple of the
        batch size.

        Raises:
          InputError: a dataset is missing, an option has a value that cannot be used, the examples are not plain crops,
            or there are several processes.
        """
        check_stream(batch_size, seed, start)
        if not isinstance(examples, Crops) or examples.augmentation != Augmentation(
            gain_db=examples.augmentation.gain_db
        ):
            raise InputError("resident audio is for crops, of which only the gain can be augmented; use Loader")
        if jax.process_count() > 1:
            raise InputError("resident audio is for one process; use Loader")
        parts, shares = mixture.training()
        jobs = [(part, which, index, examples) for which, part in enumerate(parts) for index in range(len(part))]
        workers = 1 if examples.reads_on_device else self.workers
        audio = _join(over_records(_decode, jobs, workers), examples.frames + EXTRA_FRAMES)
        return _draw(jax.device_put(audio), shares, examples, batch_size, seed, start)


def _decode(job: tuple) -> tuple[np.ndarray, int, int]:
    """Returns a record's audio, int16 [columns, n], and the numbers of its dataset and of itself."""
    part, which, index, examples = job
    piece, _ = examples.read(part[index])
    audio = np.rint(np.atleast_2d(piece.read(0, piece.samples).T) * _FULL_SCALE)
    return np.clip(audio, -_FULL_SCALE, _FULL_SCALE - 1).astype(np.int16), which, index


def _join(decoded: Iterator[tuple], frames: int) -> Audio:
    """Returns the audio of all records, each of which has room for a crop of `frames`."""
    fields, at = ([], [], [], [], []), 0
    for audio, which, index in decoded:
        columns, samples = audio.shape
        length = -(-samples // HOP)
        count = max(frames, length)
        padded = np.pad(audio, ((0, 0), (0, count * HOP - samples))).reshape(columns, count, HOP).swapaxes(0, 1)
        places = max(1, (samples - frames * HOP) // HOP)
        for field, value in zip(fields, (padded, at, length, places, (which, index)), strict=True):
            field.append(value)
        at += count
    return Audio(np.concatenate(fields[0]), *(np.array(field, np.int32) for field in fields[1:]))


def _draw(
    audio: Audio, shares: np.ndarray, examples: Crops, batch_size: int, seed: int, start: int
) -> Iterator[dict[str, jax.Array]]:
    """Yields batches of random crops."""
    frames, gain_db = examples.frames + EXTRA_FRAMES, examples.augmentation.gain_db
    lengths, datasets = np.asarray(audio.length), np.asarray(audio.record[:, 0])
    counts = jnp.array([lengths[datasets == dataset].sum() for dataset in range(len(shares))])
    ends, begins = jnp.cumsum(audio.length), jnp.cumsum(counts) - counts
    cumulative = jnp.array(np.cumsum(shares)[:-1], jnp.float32)

    @jax.jit
    def batch(audio: Audio, step: jax.Array) -> dict[str, jax.Array]:
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), step), 4)
        size = (batch_size,)
        which = jnp.searchsorted(cumulative, jax.random.uniform(keys[0], size), side="right")
        anywhere = begins[which] + jax.random.randint(keys[1], size, 0, counts[which])
        number = jnp.searchsorted(ends, anywhere, side="right")
        since = jax.random.randint(keys[2], size, 0, audio.places[number])
        cut = functools.partial(jax.lax.dynamic_slice_in_dim, audio.samples, slice_size=frames)
        cut_frames = jax.vmap(cut)(audio.first[number] + since)  # [batch, frames, columns, hop]
        columns = jnp.moveaxis(cut_frames, 2, 0).reshape(-1, batch_size, frames * HOP).astype(jnp.float32) / _FULL_SCALE
        gain = 10.0 ** (jax.random.uniform(keys[3], (batch_size, 1), minval=gain_db[0], maxval=gain_db[1]) / 20)
        crops = {name: gain * column for name, column in zip(examples.names, columns, strict=True)}
        return {**crops, "record": audio.record[number], "start": since}

    step = start // batch_size
    while True:
        yield batch(audio, jnp.int32(step))
        step += 1
