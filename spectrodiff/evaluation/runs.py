"""Whole songs of a dataset rendered by a model, many at once, and kept one by one: a run that was cut off goes on.

A workdir holds `run.json`, what made its songs, and of each song `songs/NAME.npz` and then `songs/NAME.json`.
"""

import collections
import dataclasses
import functools
import hashlib
import json
import pathlib
import time
import urllib.parse
import zlib
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float
from tqdm import tqdm

from spectrodiff.audio.mel import FRAMES_PER_SECOND, MEL_BINS, SAMPLE_RATE, log_mel_on_host, unscale_mel
from spectrodiff.config import WINDOW_FRAMES, DiffusionConfig
from spectrodiff.diffusion.samplers import STEPS
from spectrodiff.errors import InputError
from spectrodiff.evaluation.songs import Audio, Song, Songs, Stems
from spectrodiff.files import replacing, write_json
from spectrodiff.models.sampling import sample_mel
from spectrodiff.synthesizer import RING_OUT, Synthesizer
from spectrodiff.vocoder.streaming import Vocoder

Mel = Float[np.ndarray, "_t m"]
Spent = tuple[float, float]  # seconds of work, and of the audio that they made


@dataclasses.dataclass(frozen=True)
class Run:
    """What a workdir's songs are made by. `weights` is `fingerprint`'s."""

    checkpoint: str
    weights: str
    vocoder: str
    dataset: str
    split: str
    seconds: float | None
    sampler: str
    steps: int
    guidance: float
    seed: int
    soundfont: str | None = None  # that another system plays

    def claim(self, workdir: pathlib.Path) -> None:
        """Makes the workdir, or finds that it is this run's.

        Raises:
          InputError: it holds songs that were made otherwise, or cannot be written.
        """
        try:
            (workdir / "songs").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot make the folder {workdir}: {error.strerror or error}") from error
        path, ours = workdir / "run.json", dataclasses.asdict(self)
        if not path.exists():
            write_json(path, ours)
            return
        theirs = _read_json(path)
        for name, value in ours.items():
            if theirs.get(name) != value:
                raise InputError(
                    f"{workdir} holds songs made with {name} {theirs.get(name)}, not {value}; give another workdir"
                )


def fingerprint(model: nnx.Module) -> str:
    """Short hash of a model's weights."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()[:16]


def describe(vocoder: Vocoder) -> str:
    """What a vocoder is, in words that another of the same kind, with other weights, does not share."""
    kind = type(vocoder).__name__
    refiner = getattr(vocoder, "refiner", None)
    return kind if refiner is None else f"{kind} with refiner {fingerprint(refiner)}"


def song_seed(seed: int, name: str) -> int:
    """The seed with which `Synthesizer` renders the same song: `seed`, with the CRC-32 of its name folded in.

    So a song sounds the same whatever is rendered beside it, before it, or by which process.
    """
    return int(jax.random.bits(jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))))


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is known of a rendered song without its sound.

    `dropped` notes of over-full windows were left out; `silent` says that nothing is to be heard. `spectrogram` and
    `vocoder` are Spent, without what ran for the first time: the first window in a program, the first piece from a
    vocoder.
    """

    name: str
    seed: int
    seconds: float
    dropped: int
    batch: int
    spectrogram: Spent
    vocoder: Spent
    silent: bool

    @classmethod
    def load(cls, workdir: pathlib.Path, name: str) -> "Facts":
        """Raises InputError for a file that is missing or damaged."""
        return cls(**_read_facts(workdir, name))


@dataclasses.dataclass(frozen=True)
class Rendered(Facts):
    """What is kept of a song.

    `mel` is unscaled; `audio` is what the vocoder makes of it, `encoded` what it makes of the true audio's mel, both as
    a file of 16 bits keeps them.
    """

    mel: Mel
    audio: Audio
    encoded: Audio

    def save(self, workdir: pathlib.Path) -> None:
        """Raises InputError as `replacing`."""
        with replacing(song_path(workdir, "songs", self.name, ".npz")) as temporary:
            np.savez_compressed(temporary, mel=self.mel, audio=_pcm(self.audio), encoded=_pcm(self.encoded))
        facts = {field.name: getattr(self, field.name) for field in dataclasses.fields(Facts)}
        write_json(song_path(workdir, "songs", self.name, ".json"), facts)  # last: it says that the song is there

    @classmethod
    def load(cls, workdir: pathlib.Path, name: str) -> "Rendered":
        """Raises InputError for files that are missing or damaged."""
        arrays = read_arrays(song_path(workdir, "songs", name, ".npz"), ("mel", "audio", "encoded"))
        arrays |= {part: arrays[part].astype(np.float32) / 32767 for part in ("audio", "encoded")}
        return cls(**_read_facts(workdir, name), **arrays)


def _read_facts(workdir: pathlib.Path, name: str) -> dict:
    path = song_path(workdir, "songs", name, ".json")
    facts = _read_json(path)
    if set(facts) != {field.name for field in dataclasses.fields(Facts)}:
        raise InputError(f"{path} is of another version of spectrodiff; delete {workdir}, or give another workdir")
    return {**facts, "spectrogram": tuple(facts["spectrogram"]), "vocoder": tuple(facts["vocoder"])}


def song_path(workdir: pathlib.Path, kind: str, name: str, suffix: str) -> pathlib.Path:
    """Where a song's file of some kind lies; names with slashes and the like are quoted as in addresses."""
    return workdir / kind / (urllib.parse.quote(name, safe=" ") + suffix)


def is_rendered(workdir: pathlib.Path, name: str) -> bool:
    return song_path(workdir, "songs", name, ".json").is_file()


def read_arrays(path: pathlib.Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Raises InputError for a file that is missing or damaged."""
    try:
        with np.load(path) as arrays:
            return {name: arrays[name] for name in names}
    except Exception as error:  # zipfile and NumPy raise what they like
        raise InputError(f"cannot read {path}; delete it and its neighbours of that name, and run again") from error


def _read_json(path: pathlib.Path) -> dict:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}; delete it and run again") from error


def _pcm(audio: Audio) -> np.ndarray:
    """As `write_audio` would: turned down as a whole where it peaks above 1."""
    return np.round(audio / max(1.0, np.abs(audio).max(initial=0.0)) * 32767).astype(np.int16)


class _Performance:
    """A song while it is rendered."""

    def __init__(self, synthesizer: Synthesizer, song: Song, seed: int):
        self.song, self.seed = song, song_seed(seed, song.name)
        notes, self.dropped = synthesizer.tokenizer.thin(song.notes)
        self.frames = int(np.ceil((notes.total_time + RING_OUT) * FRAMES_PER_SECOND))
        if not synthesizer.config.tokenizer.ghost_ties:  # as the synthesizer does
            notes = dataclasses.replace(notes, total_time=notes.total_time + RING_OUT)
        self.windows = [synthesizer._bucketed(tokens) for tokens in synthesizer.tokenizer.encode(notes)]
        self.key = jax.random.key(self.seed)
        self.context = np.zeros((WINDOW_FRAMES, MEL_BINS), np.float32)
        self.mels: list[Mel] = []
        self.spent = (0.0, 0.0)

    @property
    def given(self) -> tuple:
        """Tokens, context, whether there is any, and key of the next window."""
        index = len(self.mels)
        return self.windows[index], self.context, index > 0, jax.random.fold_in(self.key, index)

    @property
    def finished(self) -> bool:
        return len(self.mels) == len(self.windows)

    def hear(self, scaled: Mel, seconds: float | None) -> None:
        """The next window, which took `seconds`, or None where that says nothing."""
        self.context = scaled
        self.mels.append(np.asarray(unscale_mel(scaled)))
        if seconds is not None:
            self.spent = self.spent[0] + seconds, self.spent[1] + WINDOW_FRAMES / FRAMES_PER_SECOND


def render(
    synthesizer: Synthesizer,
    songs: Songs | Stems,
    chosen: Sequence[int],
    *,
    sampler: str,
    steps: int,
    guidance: float,
    seed: int,
    batch: int,
) -> Iterator[Rendered]:
    """Yields the `chosen` songs as they are finished, `batch` of them rendered at once, the longest begun first.

    All devices of this process take a share of every batch, which is filled up to a multiple of them. Each song has the
    mel that `synthesizer.mels` makes with `song_seed(seed, name)`, to rounding. Windows over the limit of tokens are
    thinned.

    Raises:
      InputError: a record is damaged, or the model's mel holds what is not a number.
    """
    sample = functools.partial(_song_sampler(synthesizer), step=STEPS[sampler], steps=steps, guided=guidance != 1.0)
    waiting = collections.deque(sorted(chosen, key=songs.windows, reverse=True))
    devices = jax.local_device_count()
    rows, playing, compiled = -(-min(batch, len(waiting)) // devices) * devices, [], set()
    with tqdm(total=sum(map(songs.windows, waiting)), desc="rendering", unit="window", disable=not waiting) as bar:
        while waiting or playing:
            while waiting and len(playing) < rows:
                index = waiting.popleft()
                playing.append(_Performance(synthesizer, songs[index], seed))
                bar.total += len(playing[-1].windows) - songs.windows(index)
            filled = playing + playing[-1:] * (rows - len(playing))  # one shape to the end: one program
            tokens, contexts, heard, keys = zip(*(performance.given for performance in filled), strict=True)
            bucket = max(map(len, tokens))
            tokens = np.stack([np.pad(some, (0, bucket - len(some))) for some in tokens])
            start = time.perf_counter()
            mels = np.asarray(sample(tokens, np.stack(contexts), np.array(heard), jnp.stack(keys), float(guidance)))
            seconds = (time.perf_counter() - start) / len(playing) if bucket in compiled else None
            compiled.add(bucket)
            for performance, mel in zip(playing, mels, strict=False):
                performance.hear(mel, seconds)
            bar.update(len(playing))
            yield from (_finish(done, synthesizer.vocoder, rows) for done in playing if done.finished)
            playing = [performance for performance in playing if not performance.finished]


def _song_sampler(synthesizer: Synthesizer) -> Callable[..., Float[Array, "b t m"]]:
    """Weights lie whole on each of this process's devices, rows of a batch are shared out among them."""
    mesh = Mesh(np.array(jax.local_devices()), ("songs",), axis_types=(AxisType.Auto,))
    shared = NamedSharding(mesh, PartitionSpec("songs"))
    graph, *weights = nnx.split(synthesizer.model)
    weights = jax.device_put(weights, NamedSharding(mesh, PartitionSpec()))
    compiled = _compiled(graph, synthesizer.config.diffusion)

    def sample(tokens, contexts, heard, keys, guidance, **options):
        return compiled(weights, *jax.device_put((tokens, contexts, heard, keys), shared), guidance, **options)

    return sample


@functools.cache
def _compiled(graph: nnx.GraphDef, cfg: DiffusionConfig) -> Callable[..., Float[Array, "b t m"]]:
    """As `window_sampler`, but each row has a key of its own, so that its noise does not depend on its neighbours."""

    @functools.partial(jax.jit, static_argnames=("step", "steps", "guided"))
    def sample(weights, tokens, contexts, heard, keys, guidance, *, step, steps, guided):
        model = nnx.merge(graph, *weights)

        def sample_row(tokens, context, heard, key):
            mask = jnp.broadcast_to(heard, (1, WINDOW_FRAMES))
            conditioning = model.encode(tokens[None], context[None], mask, WINDOW_FRAMES)
            weight = guidance if guided else None
            return sample_mel(model, cfg, conditioning, WINDOW_FRAMES, key, step=step, steps=steps, guidance=weight)[0]

        return jax.vmap(sample_row)(tokens, contexts, heard, keys)

    return sample


def _finish(done: _Performance, vocoder: Vocoder, batch: int) -> Rendered:
    mel = np.concatenate(done.mels)[: done.frames]
    audio, spent = _play(vocoder, mel)
    true = done.song.audio
    encoded, spent_too = _play(vocoder, log_mel_on_host(true))
    return Rendered(
        name=done.song.name,
        seed=done.seed,
        seconds=len(true) / SAMPLE_RATE,
        dropped=done.dropped,
        batch=batch,
        spectrogram=done.spent,
        vocoder=(spent[0] + spent_too[0], spent[1] + spent_too[1]),
        silent=not audio.any(),
        mel=mel,
        audio=audio,
        encoded=encoded[: len(true)],
    )


def _play(vocoder: Vocoder, mel: Mel) -> tuple[Audio, Spent]:
    stream = vocoder.stream([mel])
    pieces = [next(stream)]
    start = time.perf_counter()
    pieces += stream
    seconds = time.perf_counter() - start
    return np.concatenate(pieces), (seconds, sum(map(len, pieces[1:])) / SAMPLE_RATE)
