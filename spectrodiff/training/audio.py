"""What the tasks of learning audio from mels share: crops of recordings to learn from, and held-out ones."""

import abc
import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float
from tqdm import tqdm

from spectrodiff.audio.mel import EXTRA_FRAMES, HOP, LOG_FLOOR, SAMPLE_RATE, log_mel, unscale_mel
from spectrodiff.config import WINDOW_FRAMES
from spectrodiff.data.augmentation import OFF, Augmentation
from spectrodiff.data.crops import Crops
from spectrodiff.data.mixture import Mixture
from spectrodiff.data.pieces import open_piece
from spectrodiff.data.pipeline import Loader
from spectrodiff.data.windows import Windows
from spectrodiff.errors import InputError
from spectrodiff.mel_sampler import MelSampler
from spectrodiff.pretrained.hub import find_checkpoint
from spectrodiff.pretrained.kinds import Kind
from spectrodiff.pretrained.native import load, save
from spectrodiff.training.steps import Others

Given = Float[Array | np.ndarray, "b ..."]
Weights = tuple[nnx.GraphDef, nnx.State, nnx.State]
_FIRST_SHARE = 0.05  # of predicted windows that have none before them


@dataclasses.dataclass(frozen=True)
class AudioTask(abc.ABC):
    """What is learnt from crops of `crop_frames` frames, with `margin` more on either side to look at."""

    mixture: Mixture = Mixture()
    config: Any = None
    loss_weights: Mapping[str, float] = dataclasses.field(default_factory=dict)
    batch_size: int = 16
    crop_frames: int = 50
    heldout_crops: int = 32
    augmentation: Augmentation = OFF
    loader: Loader = Loader()
    # A spectrogram model, by name or folder, whose mels are learnt from in place of those of the recordings, so that
    # its errors are known; held-out figures remain those of true mels.
    predicted_by: str | None = None
    dtype = "float32"
    kind: ClassVar[Kind]

    @property
    @abc.abstractmethod
    def margin(self) -> int:
        """Frames before and after its own that an output depends on."""

    @property
    def frames(self) -> int:
        """Of the mel of a crop, the margins included."""
        return self.crop_frames + 2 * self.margin

    def build(self, rngs: nnx.Rngs) -> nnx.Module:
        return self.kind.network(self.config, rngs=rngs)

    def load(self, checkpoint: str) -> nnx.Module:
        """The network of a checkpoint's folder. Raises InputError where there is none, or one of another config."""
        network, config = load(find_checkpoint(checkpoint), self.kind)
        if config != self.config:
            raise InputError(
                f"cannot train from {checkpoint}: its {self.kind.name} is {config}, but the config's {self.config}"
            )
        return network

    def frozen_modules(self) -> dict[str, nnx.Module]:
        """Networks that the loss looks at, and that are neither trained nor saved: none."""
        return {}

    @abc.abstractmethod
    def loss(self, model: nnx.Module, batch: dict, key: jax.Array, others: Others) -> tuple[jax.Array, dict]:
        """The weighted sum of the task's losses, and each of them."""

    def played(self, weights: Weights) -> Weights:
        """Of what trains, the part that plays: what evaluators look at."""
        return weights

    @abc.abstractmethod
    def terms(self, weights: Weights, audio: Float[Array, "n s"]) -> dict[str, jax.Array]:
        """The losses on crops of audio, from their true mels and but for their margins."""

    @abc.abstractmethod
    def made(self, weights: Weights, audio: Float[np.ndarray, "n s"]) -> Float[np.ndarray, "n r"]:
        """What becomes of crops of audio by way of their mels."""

    @abc.abstractmethod
    def baseline(self) -> dict[str, Any]:
        """The losses, named after it, of what knows nothing."""

    def save(self, folder: pathlib.Path, model: nnx.Module, card: dict) -> None:
        """Writes the network that plays."""
        save(folder, self.kind, model, self.config, card)

    def batches(self, seed: int, start: int = 0) -> Iterator[dict[str, np.ndarray]]:
        if self.predicted_by is not None:
            return PredictedMels(self, seed, start)
        crops = Crops(self.frames, self.augmentation)
        return self.loader.batches(self.mixture, crops, batch_size=self.batch_size, seed=seed, start=start)

    def sources(self, source: dict[str, np.ndarray]) -> list[str]:
        """Where a batch's examples come from, for people."""
        return self.mixture.sources(source)

    @functools.cached_property
    def heldout(self) -> np.ndarray:
        """Two-second crops of the validation split, spread evenly over its music, the same every time."""
        samples = 2 * SAMPLE_RATE
        places = [
            (part, index, start)
            for part in self.mixture.heldout("validation")
            for index, length in enumerate(part.samples)
            for start in range(0, length - samples + 1, samples)
        ]
        if not places:
            raise InputError(f"no validation recording of {', '.join(self.mixture.names)} lasts two seconds")
        chosen = np.linspace(0, len(places) - 1, min(len(places), self.heldout_crops)).astype(int)
        progress = tqdm([places[i] for i in chosen], "held-out crops", delay=2.0)
        return np.stack([open_piece(part[index]).read(start, samples) for part, index, start in progress])


class PredictedMels:
    """Batches of crops of recordings with the `mel` [b, t, m] that a spectrogram model samples for them, unscaled.

    It is told the notes and the true window before, as when it learnt.
    """

    def __init__(self, task: AudioTask, seed: int, start: int = 0):
        """Raises InputError: there is no such checkpoint, or the data cannot be used."""
        if task.frames > WINDOW_FRAMES:
            raise InputError(
                f"a crop and its margins are {task.frames} frames, and a predicted mel has {WINDOW_FRAMES} at most"
            )
        self._sampler = MelSampler.from_pretrained(task.predicted_by)
        config = self._sampler.config
        per_note = config.model.tokens_per_note if config.model.compact_notes else 1
        windows = Windows(
            *(self._sampler.tokenizer, per_note, config.tokenizer.max_tokens, _FIRST_SHARE),
            augmentation=dataclasses.replace(task.augmentation, gain_db=OFF.gain_db),
            audio=True,
        )
        self.frames, self.gain_db = task.frames, task.augmentation.gain_db
        self.step, self.seed = start // task.batch_size, seed
        self._windows = task.loader.batches(task.mixture, windows, batch_size=task.batch_size, seed=seed, start=start)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        batch = next(self._windows)
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(self.seed), self.step), jax.process_index())
        keys = jax.random.split(key, len(batch["tokens"]))
        mel = self._sampler.sample_windows(batch["tokens"], batch["context"], batch["context_mask"], keys)
        rng = np.random.default_rng([self.seed, self.step, jax.process_index()])
        first = int(rng.integers(WINDOW_FRAMES - self.frames + 1))
        samples = slice(first * HOP, (first + self.frames + EXTRA_FRAMES) * HOP)
        # Of both, after sampling: the model cannot know how loud a recording was made that has no window before.
        gain = (rng.uniform(*self.gain_db, len(mel)) * np.log(10) / 20).astype(np.float32)
        self.step += 1
        mel = np.asarray(unscale_mel(mel))[:, first : first + self.frames] + gain[:, None, None]
        return {
            "mel": np.maximum(mel, LOG_FLOOR),
            "audio": batch["audio"][:, samples] * np.exp(gain)[:, None],
            "record": batch["record"],
            "start": batch["start"] + np.int32(first),
        }

    def close(self) -> None:
        self._windows.close()


def mel_of(batch: dict, frames: int) -> Given:
    """The mel [b, frames, m] that a batch says, else that of its audio."""
    return batch["mel"] if "mel" in batch else jax.lax.stop_gradient(log_mel(batch["audio"]))[:, :frames]
