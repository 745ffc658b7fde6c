"""What the tests are fed: random notes, models small enough to compile at once, and a corpus in miniature."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from spectrodiff.audio.mel import SAMPLE_RATE
from spectrodiff.config import ModelConfig, TokenizerConfig
from spectrodiff.data.recordings import Entry, Recording, encode
from spectrodiff.diffusion.objective import X0
from spectrodiff.diffusion.process import Process
from spectrodiff.models.decoder import Conditioning
from spectrodiff.models.diffusion_decoder import DiffusionConfig
from spectrodiff.models.spectrogram_model import SpectrogramConfig
from spectrodiff.notes.midi import Notes
from spectrodiff.notes.tokenizer import NoteTokenizer

_SIZES = {"width": 32, "heads": 2, "head_dim": 16, "mlp_width": 64, "max_tokens": 128}
_LAYERS = {"note_layers": 1, "context_layers": 1, "decoder_layers": 1}
PAPER = SpectrogramConfig(model=ModelConfig(**_SIZES, **_LAYERS))
OURS = SpectrogramConfig(
    TokenizerConfig(velocity_bins=32, ghost_ties=False),
    ModelConfig(
        **(_SIZES | _LAYERS), dropout=0.0, compact_notes=True, event_times=True, note_roll=True, continuation=True
    ),
    DiffusionConfig(mean=-0.3, std=0.375, process=Process(X0())),
)


def jitted(function):
    """`function(module, *arrays)` compiled; the module is only read."""
    compiled = jax.jit(lambda graph, state, *args: function(nnx.merge(graph, state), *args), static_argnums=0)
    return lambda module, *args: compiled(*nnx.split(module), *args)


def conditioning(memory: jax.Array, mask: jax.Array, sketch: jax.Array | None = None) -> Conditioning:
    """What a decoder is given where there was no window before."""
    return Conditioning(memory, mask, sketch, jnp.zeros((len(mask), 8, 128)), jnp.zeros((len(mask), 8), bool))


def windows_of(tokenizer: NoteTokenizer, length: int, count: int = 3) -> np.ndarray:
    """Tokens of a few different windows, padded: int32 [count, length]."""
    notes = [random_notes(seed, voices=5, drums=3) for seed in range(count)]
    windows = [tokenizer.window(tokenizer.timeline(piece), 64 * i) for i, piece in enumerate(notes)]
    return np.stack([np.pad(window, (0, length - len(window))) for window in windows])


def random_notes(seed: int, seconds: float = 12.0, programs=(0, 5, 40), voices: int = 12, drums: int = 8) -> Notes:
    """Notes on and off the 10 ms grid; each key of each program sounds one note at a time, some to their very end."""
    rng = np.random.default_rng(seed)
    rows = []
    for key in rng.choice(np.arange(30, 90), size=voices, replace=False):
        now, program = rng.uniform(0, 2), int(rng.choice(programs))
        while now < seconds - 0.5:
            end = min(now + rng.choice([0.02, 0.3, 1.0, 6.0]) * rng.uniform(1, 2), seconds)
            rows.append((now, end, int(key), int(rng.integers(1, 128)), program, False))
            now = end + rng.choice([0.0, 0.1, 2.0]) * rng.uniform(0.5, 1)
    for _ in range(drums):
        hit = rng.uniform(0, seconds - 0.5)
        rows.append((hit, hit + 0.1, int(rng.integers(35, 50)), int(rng.integers(1, 128)), 0, True))
    start, end, pitch, velocity, program, is_drum = (np.array(column) for column in zip(*sorted(rows), strict=True))
    if rng.random() < 0.5:
        start, end = np.round(start, 2), np.round(end, 2)
    return Notes(
        start=start,
        end=end,
        pitch=pitch.astype(np.int32),
        velocity=velocity.astype(np.int32),
        program=program.astype(np.int32),
        is_drum=is_drum.astype(bool),
        total_time=seconds + 1.0,
    )


def make_recording(seed: int, seconds: float = 6.0, **options) -> Recording:
    """Random notes as decaying sines, and silence after them, the longer the higher the seed."""
    notes = random_notes(seed, seconds, **{"voices": 4, "drums": 3} | options)
    audio = np.zeros(int((notes.total_time + 0.123 * seed) * SAMPLE_RATE), np.float32)
    time = np.arange(len(audio)) / SAMPLE_RATE
    for start, end, pitch in zip(notes.start, notes.end, notes.pitch, strict=True):
        since = time[(time >= start) & (time < end)] - start
        tone = np.sin(2 * np.pi * 440 * 2 ** ((pitch - 69) / 12) * since)
        audio[(time >= start) & (time < end)] += 0.1 * np.exp(-2 * since) * tone
    return Recording(f"piece{seed}", audio, notes)


@dataclasses.dataclass(frozen=True)
class Listed:
    """A corpus of recordings that are there already: `source` of an entry is its recording."""

    name: str
    splits: dict[str, list[Recording]]
    homepage: str = "nowhere"
    description: str = "made by a test"

    def entries(self, folder: pathlib.Path) -> list[Entry]:
        return [Entry(piece.name, split, piece) for split, pieces in self.splits.items() for piece in pieces]

    def read(self, entry: Entry) -> Recording:
        return entry.source


def write_dataset(data_dir: pathlib.Path, name: str, splits: dict[str, list[Recording]]) -> pathlib.Path:
    """A prepared dataset of these recordings; returns its folder."""
    from spectrodiff.data.builders.tfds_builder import build  # heavy

    shards = {split: [lambda pieces=pieces: enumerate(map(encode, pieces))] for split, pieces in splits.items()}
    return build(Listed(name, splits), {}, data_dir, shards)


def make_corpus(data_dir: pathlib.Path) -> pathlib.Path:
    """The prepared dataset "rendered": piece0 validates, piece1 and piece2 train."""
    pieces = [make_recording(seed) for seed in range(3)]
    write_dataset(data_dir, "rendered", {"train": pieces[1:], "validation": pieces[:1]})
    return data_dir
