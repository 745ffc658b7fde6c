"""The base class of the tasks of training vocoders, which are trained and evaluated on crops of recordings."""

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

from spectrodiff.audio.mel import EXTRA_FRAMES, HOP, LOG_FLOOR, SAMPLE_RATE, log_mels, unscale_mel
from spectrodiff.config import WINDOW_FRAMES
from spectrodiff.data.augmentation import OFF, Augmentation
from spectrodiff.data.crops import Crops
from spectrodiff.data.mixture import Mixture
from spectrodiff.data.pieces import open_piece
from spectrodiff.data.pipeline import Loader
from spectrodiff.data.resident_audio import ResidentAudioLoader
from spectrodiff.data.windows import Windows
from spectrodiff.errors import InputError
from spectrodiff.mel_sampler import MelSampler
from spectrodiff.pretrained.kinds import Kind
from spectrodiff.pretrained.native import load, save
from spectrodiff.pretrained.vocoders import find_vocoder_weights
from spectrodiff.training.steps import Others

AnyArray = Float[Array | np.ndarray, "b ..."]
Weights = tuple[nnx.GraphDef, nnx.State, nnx.State]
_HELDOUT_SAMPLES = 2 * SAMPLE_RATE
_FIRST_SHARE = 0.05  # fraction of windows whose mels are predicted without context, as for the first of a piece


@dataclasses.dataclass(frozen=True)
class AudioTask(abc.ABC):
    """A task of training a vocoder on random crops of recordings.

    The loss is taken over `crop_frames` frames; `margin` frames more on either side are context. `loss_weights` are the
    weights of the loss terms by name, and `heldout_crops` is the number of crops for evaluation. The classes of
    `config` and of the network are those of `kind`.
    """

    mixture: Mixture = Mixture()
    config: Any = None
    loss_weights: Mapping[str, float] = dataclasses.field(default_factory=dict)
    batch_size: int = 16
    crop_frames: int = 50
    heldout_crops: int = 32
    augmentation: Augmentation = OFF
    loader: Loader | ResidentAudioLoader = Loader()
    # The name or folder of a spectrogram model. If given, the training inputs are mels that it samples from the notes,
    # so that the vocoder learns to correct its errors. Evaluation uses the mels of the recordings in any case.
    predicted_by: str | None = None
    dtype = "float32"
    kind: ClassVar[Kind]

    def __post_init__(self):
        if self.heldout_crops < 1:
            raise InputError(f"heldout_crops is {self.heldout_crops}; choose 1 or more")
        if self.margin > (most := (_HELDOUT_SAMPLES // HOP - EXTRA_FRAMES) // 2 - 1):
            raise InputError(
                f"the {self.kind.name}'s output depends on {self.margin} frames on either side; held-out crops of two "
                f"seconds allow {most} at most"
            )

    @property
    @abc.abstractmethod
    def margin(self) -> int:
        """The number of frames on either side of a frame that its output depends on."""

    @property
    def frames(self) -> int:
        """The number of frames of a crop's mel, including the margins."""
        return self.crop_frames + 2 * self.margin

    def build(self, rngs: nnx.Rngs) -> nnx.Module:
        """Builds the network with newly initialised parameters."""
        return self.kind.network(self.config, rngs=rngs)

    def load(self, checkpoint: str) -> nnx.Module:
        """Loads the network of a checkpoint.

        Raises:
          InputError: the checkpoint has no network of this kind, or one of another config.
        """
        network, config = load(find_vocoder_weights(checkpoint), self.kind)
        if config != self.config:
            raise InputError(
                f"cannot train from {checkpoint}: its {self.kind.name} is {config}, but the config's {self.config}"
            )
        return network

    def frozen_modules(self) -> dict[str, nnx.Module]:
        """Returns the modules that the loss uses but that are not trained or saved; there are none."""
        return {}

    @abc.abstractmethod
    def loss(self, model: nnx.Module, batch: dict, key: jax.Array, others: Others) -> tuple[jax.Array, dict]:
        """Returns the weighted sum of the task's losses, and its terms by name."""

    def vocoder_weights(self, weights: Weights) -> Weights:
        """Returns those of the trained weights that belong to the vocoder, which are evaluated."""
        return weights

    @abc.abstractmethod
    def heldout_losses(self, weights: Weights, audio: Float[Array, "n s"]) -> dict[str, jax.Array]:
        """Returns the losses on crops of audio, given the mels of that audio. The margins of the crops do not count."""

    @abc.abstractmethod
    def reconstruct(self, weights: Weights, audio: Float[np.ndarray, "n s"]) -> Float[np.ndarray, "n r"]:
        """Converts crops of audio to mels and back to audio."""

    @abc.abstractmethod
    def baseline(self) -> dict[str, Any]:
        """Returns the losses of a trivial vocoder on the held-out crops, with its name as a prefix."""

    def save(self, folder: pathlib.Path, model: nnx.Module, card: dict) -> None:
        """Exports the vocoder to `folder`."""
        save(folder, self.kind, model, self.config, card)

    def batches(self, seed: int, start: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """Yields batches indefinitely, starting at example number `start`."""
        if self.predicted_by is not None:
            return PredictedMels(self, seed, start)
        crops = Crops(self.frames, self.augmentation)
        return self.loader.batches(self.mixture, crops, batch_size=self.batch_size, seed=seed, start=start)

    def sources(self, source: dict[str, np.ndarray]) -> list[str]:
        """Returns a readable description of the source of each example of a batch."""
        return self.mixture.sources(source)

    @functools.cached_property
    def heldout(self) -> np.ndarray:
        """Two-second crops of audio [n, s], evenly spaced in the validation split and the same in every run.

        Raises:
          InputError: no recording of the validation split lasts two seconds.
        """
        samples = _HELDOUT_SAMPLES
        crops = [
            (part, index, start)
            for part in self.mixture.heldout("validation")
            for index, length in enumerate(part.samples)
            for start in range(0, length - samples + 1, samples)
        ]
        if not crops:
            raise InputError(f"no validation recording of {', '.join(self.mixture.names)} lasts two seconds")
        chosen = np.linspace(0, len(crops) - 1, min(len(crops), self.heldout_crops)).astype(int)
        progress = tqdm([crops[i] for i in chosen], "held-out crops", unit="crop", delay=2.0)
        return np.stack([open_piece(part[index]).read(start, samples) for part, index, start in progress])


class PredictedMels:
    """An iterator over batches of crops of recordings, with unscaled mels [b, t, m] sampled by a spectrogram model.

    The model is conditioned on the notes and on the true previous window, as in its own training.
    """

    def __init__(self, task: AudioTask, seed: int, start: int = 0):
        """Loads the spectrogram model `task.predicted_by`, and starts at example number `start`.

        Raises:
          InputError: the checkpoint does not exist, or the data cannot be used.
        """
        if task.frames > WINDOW_FRAMES:
            raise InputError(
                f"a crop and its margins are {task.frames} frames, and a predicted mel has {WINDOW_FRAMES} at most"
            )
        self._sampler = MelSampler.from_pretrained(task.predicted_by)
        config = self._sampler.config
        per_note = config.model.tokens_per_note if config.model.compact_notes else 1
        windows = Windows(
            self._sampler.tokenizer,
            per_note,
            config.tokenizer.max_tokens,
            _FIRST_SHARE,
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
        # The gain is applied to mel and audio after sampling: without context, the model could not know it.
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
        """Stops the workers that load examples."""
        self._windows.close()


def mel_of(batch: dict, frames: int) -> AnyArray:
    """Returns the `mel` of a batch if it has one, else the first `frames` frames of the mel of its audio."""
    return batch["mel"] if "mel" in batch else jax.lax.stop_gradient(log_mels(batch["audio"]))[:, :frames]
