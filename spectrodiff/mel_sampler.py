"""Notes in, log-mels out: the windows of a song in order, each conditioned on the one before; one song or many."""

import dataclasses
import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int32, Key
from tqdm import tqdm

from spectrodiff.audio.mel import FRAMES_PER_SECOND, MEL_BINS, unscale_mel
from spectrodiff.config import WINDOW_FRAMES
from spectrodiff.errors import InputError
from spectrodiff.models.sampling import window_sampler
from spectrodiff.models.spectrogram_model import SpectrogramConfig, SpectrogramModel
from spectrodiff.notes.midi import Notes
from spectrodiff.notes.tokenizer import NoteTokenizer
from spectrodiff.pretrained.formats import open_checkpoint
from spectrodiff.pretrained.hub import find_checkpoint

RING_OUT = 1.0  # seconds kept after the last note's end, as far as the published windows reach
MAX_SEEDS = 2**32
_BUCKETS = (512, 1024)  # lengths that token windows are padded to, besides the longest: one compiled program each

Mel = Float[np.ndarray, "_t m"]


def check_seed(seed: int) -> None:
    """Raises InputError for a seed that no random key can be made of."""
    if not 0 <= seed < MAX_SEEDS:
        raise InputError(f"seed is {seed}; choose 0 to {MAX_SEEDS - 1}")


class SampledSong(NamedTuple):
    """A song's unscaled log-mel, and the seconds of work and of music that its windows were timed over.

    The mel lies in an unnamed temporary file, of which the operating system keeps in memory what is being read. Windows
    that waited for a program to be compiled are not timed.
    """

    mel: Mel
    work: float
    music: float


class MelSampler:
    """A spectrogram model with what it takes to sample songs from it, and no vocoder.

    Attributes:
      model: the network; `model(tokens, context, context_mask, z, logsnr)` is one evaluation.
      config: what the model is, and how it is best sampled.
      tokenizer: the notes-to-tokens half that goes with the model.

    Methods take, as `sampling`, what the decoder has to choose: `steps`, `sampler` and `guidance` of a diffusion
    decoder, `dither` of an autoregressive one. What is not given, or None, is what `config` recommends.
    """

    def __init__(self, model: SpectrogramModel, config: SpectrogramConfig):
        self.model, self.config = model, config
        self.tokenizer = NoteTokenizer(config.tokenizer)
        graph, *weights = nnx.split(model)
        # Weights lie whole on each of this process's devices, which share out the rows of a batch.
        mesh = Mesh(np.array(jax.local_devices()), ("rows",), axis_types=(AxisType.Auto,))
        self._rows, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("rows",), ()))
        self._devices = mesh.size
        self._weights = jax.device_put(weights, whole) if self._devices > 1 else weights
        self._sample = window_sampler(graph)

    @classmethod
    def from_pretrained(cls, checkpoint: str | os.PathLike = "demo") -> "MelSampler":
        """The sampler of a checkpoint: a name, `hf://owner/name`, or a folder (ours, diffusers' or T5X's).

        Raises:
          InputError: there is no such checkpoint, or it cannot be read.
        """
        found = open_checkpoint(find_checkpoint(checkpoint))
        return cls(found.build(), found.config)

    def sampling(self, **sampling: Any) -> Any:
        """The decoder's sampling config with these options; raises InputError where one is out of range or unknown."""
        return self.config.decoder.sampled(**sampling).sampling

    def sample_windows(
        self,
        tokens: Int32[Array | np.ndarray, "b n"],
        context: Float[Array | np.ndarray, "b t m"],
        context_mask: Bool[Array | np.ndarray, "b t"],
        keys: Key[Array, " b"],
        **sampling: Any,
    ) -> Float[jax.Array, "b t m"]:
        """Scaled log-mels of windows of tokens, each after its own context, scaled too, and by its own random key."""
        options = self.config.decoder.sampled(**sampling).options()
        arrays = tokens, context, context_mask, keys
        if self._devices > 1 and len(tokens) % self._devices == 0:
            arrays = jax.device_put(arrays, self._rows)
        return self._sample(self._weights, *arrays, options)

    def stream(self, notes: Notes, *, seed: int = 0, progress: bool = False, **sampling: Any) -> Iterator[Mel]:
        """The unscaled log-mels of a song, a window of at most 5.12 s at a time; the same `seed` gives the same again.

        Raises:
          InputError: a window has too many notes, or an option is out of range.
        """
        self.sampling(**sampling)
        song = _Song(self, notes, seed, keep=False)

        def windows() -> Iterator[Mel]:
            for _ in tqdm(range(song.windows_left), desc="synthesizing", unit="window", disable=not progress):
                self._advance([song], 1, sampling)
                yield song.latest

        return windows()

    def songs(
        self, pieces: Iterable[tuple[Notes, int]], *, batch: int = 4, windows: int | None = None, **sampling: Any
    ) -> Iterator[tuple[int, SampledSong]]:
        """Yields songs as they are finished, each with its place in `pieces`, `batch` of them sampled at once.

        `pieces` are notes and seeds, taken up as there is room for them: put long ones first. A song's mel is, to
        rounding, what `stream` makes of it. `windows` is how many there are in all, for the progress bar.

        Raises:
          InputError: as `stream`, or a seed is out of range.
        """
        self.sampling(**sampling)
        waiting, playing, compiled, rows = enumerate(pieces), [], set(), 0
        with tqdm(total=windows, desc="rendering", unit="window", disable=windows == 0) as bar:
            while True:
                while len(playing) < (rows or batch) and (following := next(waiting, None)) is not None:
                    place, (notes, seed) = following
                    playing.append((place, _Song(self, notes, seed, keep=True)))
                if not playing:
                    return
                rows = rows or -(-len(playing) // self._devices) * self._devices
                start = time.perf_counter()
                bucket = self._advance([song for _, song in playing], rows, sampling)
                spent = (time.perf_counter() - start) / len(playing)
                for _, song in playing:
                    if bucket in compiled:
                        song.work, song.music = song.work + spent, song.music + WINDOW_FRAMES / FRAMES_PER_SECOND
                compiled.add(bucket)
                bar.update(len(playing))
                yield from ((place, song.sampled) for place, song in playing if not song.windows_left)
                playing = [(place, song) for place, song in playing if song.windows_left]

    def _advance(self, songs: list["_Song"], rows: int, sampling: dict[str, Any]) -> int:
        """Samples the next window of each song, as a batch of `rows`; returns how many tokens they were padded to."""
        filled = songs + songs[-1:] * (rows - len(songs))  # one shape to the end: one program
        tokens, contexts, masks, keys = zip(*(song.following for song in filled), strict=True)
        bucket = max(map(len, tokens))
        tokens = np.stack([np.pad(some, (0, bucket - len(some))) for some in tokens])
        mels = self.sample_windows(tokens, np.stack(contexts), np.stack(masks), jax.numpy.stack(keys), **sampling)
        for song, mel in zip(songs, np.asarray(mels), strict=False):
            song.add(mel)
        return bucket

    def _bucketed(self, tokens: Int32[np.ndarray, " n"]) -> Int32[np.ndarray, " bucket"]:
        """A window's tokens, padded to its bucket: a longer one than usual where compact notes need the room."""
        model, limit = self.config.model, self.config.tokenizer.max_tokens
        needed = np.count_nonzero(tokens)
        if model.compact_notes:
            needed = max(needed, self.tokenizer.vocabulary.count_notes(tokens) * model.tokens_per_note)
        bucket = next((size for size in _BUCKETS if needed <= size <= limit), -(-needed // limit) * limit)
        return np.pad(tokens, (0, max(0, bucket - limit)))[:bucket]


class _Song:
    """A song while it is sampled: its windows of tokens, the latest mel, and with `keep` a file of all mels so far."""

    def __init__(self, sampler: MelSampler, notes: Notes, seed: int, keep: bool):
        check_seed(seed)
        frames = (notes.total_time + RING_OUT) * FRAMES_PER_SECOND
        self._frames = int(np.ceil(round(frames, 6)))  # a rounding too many would be a frame, and with it a window
        if not sampler.config.tokenizer.ghost_ties:  # else a window after the last note would hold notes
            notes = dataclasses.replace(notes, total_time=notes.total_time + RING_OUT)
        windows = sampler.tokenizer.encode(notes)[: -(-self._frames // WINDOW_FRAMES)]
        self._windows = [sampler._bucketed(tokens) for tokens in windows]
        self._key, self._index = jax.random.key(seed), 0
        self._context = np.zeros((WINDOW_FRAMES, MEL_BINS), np.float32)
        self._file = tempfile.TemporaryFile() if keep else None  # noqa: SIM115 (lives as long as the mel)
        self.latest: Mel | None = None
        self.work = self.music = 0.0

    @property
    def windows_left(self) -> int:
        return len(self._windows) - self._index

    @property
    def following(self) -> tuple:
        """Tokens, context, its mask and the key of the next window."""
        context_mask = np.full(WINDOW_FRAMES, self._index > 0)  # nothing comes before the first
        return self._windows[self._index], self._context, context_mask, jax.random.fold_in(self._key, self._index)

    def add(self, scaled: Mel) -> None:
        """The next window, which is the context of the one after it."""
        self._context = scaled
        self.latest = np.asarray(unscale_mel(scaled))[: self._frames - self._index * WINDOW_FRAMES]
        self._index += 1
        if self._file is not None:
            self._file.write(self.latest.tobytes())

    @property
    def sampled(self) -> SampledSong:
        """The whole song; the file goes when its mel does."""
        self._file.flush()
        mel = np.memmap(self._file, np.float32, "r").reshape(-1, MEL_BINS)
        return SampledSong(mel, self.work, self.music)
