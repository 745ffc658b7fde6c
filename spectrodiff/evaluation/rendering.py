"""Songs rendered by a model and its vocoder, many at once: windows of one follow one another, songs do not."""

import collections
import dataclasses
import functools
import time
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
from spectrodiff.evaluation.runs import Mel, RenderedSong, Spent, song_seed
from spectrodiff.evaluation.songs import Audio, Song, Songs, Stems
from spectrodiff.models.sampling import sample_mel
from spectrodiff.synthesizer import RING_OUT, Synthesizer
from spectrodiff.vocoder.streaming import Vocoder


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
) -> Iterator[RenderedSong]:
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


def _finish(done: _Performance, vocoder: Vocoder, batch: int) -> RenderedSong:
    mel = np.concatenate(done.mels)[: done.frames]
    audio, spent = _play(vocoder, mel)
    true = done.song.audio
    encoded, spent_too = _play(vocoder, log_mel_on_host(true))
    return RenderedSong(
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
