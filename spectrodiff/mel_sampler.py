"""Sampling of the log-mels of songs from notes: window by window, each conditioned on the frames before it."""

import dataclasses
import numbers
import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int32, Key, UInt32
from tqdm import tqdm

from spectrodiff.audio.mel import FRAMES_PER_SECOND, MEL_BINS, unscale_mel
from spectrodiff.config import WINDOW_FRAMES, is_whole
from spectrodiff.errors import InputError
from spectrodiff.models.sampling import window_sampler
from spectrodiff.models.spectrogram_model import SpectrogramConfig, SpectrogramModel
from spectrodiff.notes.midi import Notes
from spectrodiff.notes.sequence import check_notes
from spectrodiff.notes.tokenizer import NoteTokenizer
from spectrodiff.pretrained.formats import open_checkpoint
from spectrodiff.pretrained.hub import find_checkpoint

RELEASE_SECONDS = 1.0  # time after the end of the last note, in which its sound may decay
MAX_SEEDS = 2**32
_BUCKETS = (512, 1024)  # numbers of tokens that windows are padded to, besides the maximum; each is compiled once

Mel = Float[np.ndarray, "_t m"]


def check_seed(seed: int) -> None:
    """Raises InputError if `seed` is not the seed of a random key: an integer from 0 to MAX_SEEDS - 1."""
    if isinstance(seed, bool) or not isinstance(seed, numbers.Integral) or not 0 <= seed < MAX_SEEDS:
        raise InputError(f"seed is {seed!r}; choose an integer from 0 to {MAX_SEEDS - 1}")


class SampledSong(NamedTuple):
    """A song's unscaled log-mel, and the time that sampling it took.

    The mel is a memory map of an unnamed temporary file. `compute_seconds` is the time spent on the song's windows and
    `music_seconds` the music that they add, both without windows that had to wait for compilation.
    """

    mel: Mel
    compute_seconds: float
    music_seconds: float


class MelSampler:
    """Samples the log-mels of songs from a spectrogram model.

    Attributes:
      model: the network, which `model(tokens, context, context_mask, z, logsnr)` evaluates once.
      config: the config of the model, including its default sampling options.
      tokenizer: the tokenizer that the model was trained with.

    The methods' keyword arguments `sampling` are the options of the decoder: `steps` and `sampler` of
    texture and diffusion decoders, `tone_temperature` of the former, `guidance` of the latter, `dither` of an
    autoregressive one, and `overlap` of all (see `SongSampling`). Missing options, and None, take the defaults of
    `config`.
    """

    def __init__(self, model: SpectrogramModel, config: SpectrogramConfig):
        self.model, self.config = model, config
        self.tokenizer = NoteTokenizer(config.tokenizer)
        graph, *weights = nnx.split(model)
        # Data parallelism over the devices of this process: weights are replicated, rows of a batch are sharded.
        mesh = Mesh(np.array(jax.local_devices()), ("rows",), axis_types=(AxisType.Auto,))
        self._rows, replicated = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("rows",), ()))
        self._devices = mesh.size
        self._weights = jax.device_put(weights, replicated) if self._devices > 1 else weights
        self._sample = window_sampler(graph)

    @classmethod
    def from_pretrained(cls, checkpoint: str | os.PathLike = "demo") -> "MelSampler":
        """Loads a checkpoint: a name, `hf://owner/name`, or a folder in this package's, diffusers' or T5X's format.

        Raises:
          InputError: the checkpoint does not exist or cannot be read.
        """
        found = open_checkpoint(find_checkpoint(checkpoint))
        return cls(found.build(), found.config)

    def sampling(self, **sampling: Any) -> Any:
        """Returns the decoder's sampling config with the given options.

        Raises:
          InputError: an option is out of range, or the decoder does not have it.
        """
        return self.config.decoder.sampled(**sampling).sampling

    def sample_windows(
        self,
        tokens: Int32[Array | np.ndarray, "b n"],
        context: Float[Array | np.ndarray, "b t m"],
        context_mask: Bool[Array | np.ndarray, "b t"],
        keys: Key[Array, " b"],
        **sampling: Any,
    ) -> Float[jax.Array, "b t m"]:
        """Samples a batch of windows and returns their scaled log-mels, from -1 to 1.

        Each row has its own tokens, padded with 0, its own scaled `context`, valid where `context_mask` is true, and
        its own random key.

        Raises:
          InputError: an option is out of range, or the decoder does not have it.
        """
        options = self.config.decoder.sampled(**sampling).options()
        arrays = tokens, context, context_mask, keys
        if self._devices > 1 and len(tokens) % self._devices == 0:
            arrays = jax.device_put(arrays, self._rows)
        return self._sample(self._weights, *arrays, options)

    def stream(self, notes: Notes, *, seed: int = 0, progress: bool = False, **sampling: Any) -> Iterator[Mel]:
        """Yields the unscaled log-mel of a song, float32 [frames, 128] in nats, in windows of at most 256 frames.

        There are 50 frames a second. The same `seed`, an integer from 0 to 2^32 - 1, gives the same mel. `progress`
        shows a progress bar.

        Raises:
          InputError: a window has too many notes, or an option or the seed is out of range.
        """
        song = _Song(self, notes, seed, self.sampling(**sampling).overlap, keep=False)

        def windows() -> Iterator[Mel]:
            upcoming = None
            for index in tqdm(range(song.windows_left), desc="synthesizing", unit="window", disable=not progress):
                mels, _ = upcoming or self._start([song], 1, sampling)
                song.add(np.asarray(mels[0]))
                # JAX samples the next window while the caller, such as a vocoder, uses this one; but the first sound is
                # not to wait for anything else.
                upcoming = self._start([song], 1, sampling) if index and song.windows_left else None
                yield song.latest

        return windows()

    def songs(
        self, pieces: Iterable[tuple[Notes, int]], *, batch: int = 4, windows: int | None = None, **sampling: Any
    ) -> Iterator[tuple[int, SampledSong]]:
        """Samples songs, `batch` of them at a time, and yields each with its index in `pieces` when it is finished.

        `pieces` are pairs of notes and seed. A song starts when another one finishes, so the batch stays full longest
        if long songs come first. Up to rounding, a song's mel is that of `stream`. `windows` is the total number of
        windows, for the progress bar.

        Raises:
          InputError: a window has too many notes, or an option or a seed is out of range.
        """
        overlap = self.sampling(**sampling).overlap
        if not is_whole(batch):
            raise InputError(f"batch is {batch}; choose 1 or more")
        waiting, active, compiled, rows = enumerate(pieces), [], set(), 0
        with tqdm(total=windows, desc="rendering", unit="window", disable=windows == 0) as bar:
            while True:
                while len(active) < (rows or batch) and (upcoming := next(waiting, None)) is not None:
                    index, piece = upcoming
                    if not isinstance(piece, tuple) or len(piece) != 2:
                        raise InputError(f"pieces are pairs of notes and seed, but one is a {type(piece).__name__}")
                    notes, seed = piece
                    active.append((index, _Song(self, notes, seed, overlap, keep=True)))
                if not active:
                    return
                rows = rows or -(-len(active) // self._devices) * self._devices
                start = time.perf_counter()
                mels, bucket = self._start([song for _, song in active], rows, sampling)
                for (_, song), mel in zip(active, np.asarray(mels), strict=False):
                    song.add(mel)
                spent = (time.perf_counter() - start) / len(active)
                for _, song in active:
                    if bucket in compiled:
                        song.compute_seconds += spent
                        song.music_seconds += (WINDOW_FRAMES - overlap) / FRAMES_PER_SECOND
                compiled.add(bucket)
                if bar.total is not None:
                    bar.total = max(bar.total, bar.n + len(active))  # the number of windows may be an estimate
                bar.update(len(active))
                yield from ((index, song.sampled) for index, song in active if not song.windows_left)
                active = [(index, song) for index, song in active if song.windows_left]

    def thin(self, notes: Notes, **sampling: Any) -> tuple[Notes, int]:
        """Returns a song without the quietest notes of windows with too many, and the number of notes left out.

        Raises:
          InputError: `notes` are not notes, or an option is out of range.
        """
        check_notes(notes)
        overlap = self.sampling(**sampling).overlap
        thinned, dropped = self.tokenizer.thin(self._with_release(notes), overlap)
        return dataclasses.replace(thinned, total_time=notes.total_time), dropped

    def num_windows(self, notes: Notes, **sampling: Any) -> int:
        """Returns the number of windows in which a song is sampled.

        Raises:
          InputError: one has too many notes, or an option is out of range.
        """
        return _Song(self, notes, 0, self.sampling(**sampling).overlap, keep=False).windows_left

    def _with_release(self, notes: Notes) -> Notes:
        """Returns the notes with RELEASE_SECONDS of silence after them."""
        if self.config.tokenizer.ghost_ties:  # a window after the last note would have notes
            return notes
        return dataclasses.replace(notes, total_time=notes.total_time + RELEASE_SECONDS)

    def _start(self, songs: list["_Song"], rows: int, sampling: dict[str, Any]) -> tuple[jax.Array, int]:
        """Starts to sample the next window of each song, in a batch of `rows`.

        Returns their scaled mels [rows, 256, 128], which JAX may still be computing, and the number of their tokens.
        """
        filled = songs + songs[-1:] * (rows - len(songs))  # a constant batch size, so that nothing is recompiled
        tokens, contexts, masks, seeds, indices = zip(*(song.next_inputs for song in filled), strict=True)
        bucket = max(map(len, tokens))
        tokens = np.stack([np.pad(some, (0, bucket - len(some))) for some in tokens])
        keys = _window_keys(np.uint32(seeds), np.uint32(indices))
        return self.sample_windows(tokens, np.stack(contexts), np.stack(masks), keys, **sampling), bucket

    def _bucketed(self, tokens: Int32[np.ndarray, " n"]) -> Int32[np.ndarray, " bucket"]:
        """Pads a window's tokens to a bucket size, and further if it has more notes than compact notes admit there."""
        model, limit = self.config.model, self.config.tokenizer.max_tokens
        needed = np.count_nonzero(tokens)
        if model.compact_notes:
            needed = max(needed, self.tokenizer.vocabulary.count_notes(tokens) * model.tokens_per_note)
        bucket = next((size for size in _BUCKETS if needed <= size <= limit), -(-needed // limit) * limit)
        return np.pad(tokens, (0, max(0, bucket - limit)))[:bucket]


@jax.jit  # one program instead of five
@jax.vmap
def _window_keys(seed: UInt32[Array, ""], index: UInt32[Array, ""]) -> Key[Array, ""]:
    """Returns the random key of a window from its song's seed and its index in the song."""
    return jax.random.fold_in(jax.random.key(seed), index)


class _Song:
    """A song that is being sampled: its windows of tokens, the latest mel and, with `keep`, a file of all its mels."""

    def __init__(self, sampler: MelSampler, notes: Notes, seed: int, overlap: int, keep: bool):
        check_seed(seed)
        check_notes(notes)
        frames = (notes.total_time + RELEASE_SECONDS) * FRAMES_PER_SECOND
        self._frames = int(np.ceil(round(frames, 6)))  # a rounding error must not add a frame, and with it a window
        self._hop = WINDOW_FRAMES - overlap
        notes = sampler._with_release(notes)
        count = 1 + max(0, -(-(self._frames - WINDOW_FRAMES) // self._hop))
        self._windows = [sampler._bucketed(tokens) for tokens in sampler.tokenizer.encode(notes, overlap)[:count]]
        self._seed, self._index = seed, 0
        nothing = np.zeros((0, MEL_BINS), np.float32)
        self._before = nothing  # the context of the next window, scaled
        self._overlapping = nothing  # the frames of the latest window that the next one will change
        self._file = tempfile.TemporaryFile() if keep else None  # noqa: SIM115 (lives as long as the mel)
        self.latest: Mel | None = None
        self.compute_seconds = self.music_seconds = 0.0

    @property
    def windows_left(self) -> int:
        return len(self._windows) - self._index

    @property
    def next_inputs(self) -> tuple:
        """The tokens, context and context mask of the next window, and the song's seed and the window's index."""
        valid = len(self._before)
        context = np.pad(self._before, ((0, WINDOW_FRAMES - valid), (0, 0)))
        return self._windows[self._index], context, np.arange(WINDOW_FRAMES) < valid, self._seed, self._index

    def add(self, scaled: Mel) -> None:
        """Appends the scaled mel of the next window, but for frames that the window after it will change."""
        overlap = len(self._overlapping)
        # The weight of the new window is 0 in the first half of the overlap, and rises to 1 in the second.
        weight = np.clip(2 * (np.arange(overlap) + 0.5) / max(1, overlap) - 1, 0, 1)[:, None]
        faded = (1 - weight) * self._overlapping + weight * scaled[:overlap]
        scaled = np.concatenate([faded.astype(np.float32), scaled[overlap:]])
        first = self._index * self._hop
        self._index += 1
        self._before = np.concatenate([self._before, scaled[: self._hop]])[-WINDOW_FRAMES:]
        self._overlapping = scaled[self._hop :]
        final = scaled[: self._hop] if self.windows_left else scaled
        self.latest = np.asarray(unscale_mel(final))[: self._frames - first]
        if self._file is not None:
            try:
                self._file.write(self.latest.tobytes())
                self._file.flush()
            except OSError as error:
                raise InputError(f"cannot store the mel while it is sampled: {error.strerror or error}") from error

    @property
    def sampled(self) -> SampledSong:
        """The finished song. Its file is deleted with the mel."""
        mel = np.memmap(self._file, np.float32, "r").reshape(-1, MEL_BINS)
        return SampledSong(mel, self.compute_seconds, self.music_seconds)
