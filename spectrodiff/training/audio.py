"""What the tasks of learning audio from mels share: crops of recordings to learn from, and held-out ones."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping

import jax
import numpy as np
from jaxtyping import Array, Float, Int
from tqdm import tqdm

from spectrodiff.audio.mel import EXTRA_FRAMES, HOP, SAMPLE_RATE, log_mel, scale_mel, unscale_mel
from spectrodiff.config import WINDOW_FRAMES, to_dict
from spectrodiff.data.augmentation import OFF, Augmentation
from spectrodiff.data.crops import Crops
from spectrodiff.data.mixture import Mixture
from spectrodiff.data.pieces import open_piece
from spectrodiff.data.pipeline import stream
from spectrodiff.data.windows import Windows
from spectrodiff.errors import InputError
from spectrodiff.pretrained.vocoders import GRIFFIN_LIM
from spectrodiff.synthesizer import Synthesizer
from spectrodiff.training.heldout import Pictures, Sounds, side_by_side

Given = Float[Array | np.ndarray, "b ..."]
_FIRST_SHARE = 0.05  # of predicted windows that have none before them


@dataclasses.dataclass(frozen=True)
class AudioTask:
    """Crops of `crop_frames` frames from the recordings of prepared datasets, whatever is learnt from them."""

    mixture: Mixture = Mixture()
    loss_weights: Mapping[str, float] = dataclasses.field(default_factory=dict)
    batch_size: int = 16
    crop_frames: int = 50
    heldout_crops: int = 32
    augmentation: Augmentation = OFF
    # A spectrogram model, by name or folder, whose mels are learnt from in place of those of the recordings, so that
    # its errors are known; held-out figures remain those of true mels.
    predicted_by: str | None = None
    dtype = "float32"

    def batches(self, seed: int, start: int = 0) -> Iterator[dict[str, np.ndarray]]:
        if self.predicted_by is not None:
            return PredictedMels(self, seed, start)
        crops = Crops(self.crop_frames, self.augmentation)
        return stream(self.mixture, crops, batch_size=self.batch_size, seed=seed, start=start)

    def whence(self, source: dict[str, np.ndarray]) -> list[str]:
        return self.mixture.whence(source)

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
        if not 0 < task.crop_frames <= WINDOW_FRAMES:
            raise InputError(f"crop_frames is {task.crop_frames}; a predicted mel has {WINDOW_FRAMES} frames at most")
        synthesizer = Synthesizer.from_pretrained(task.predicted_by, GRIFFIN_LIM)
        config = synthesizer.config
        per_note = config.model.tokens_per_note if config.model.compact_notes else 1
        windows = Windows(
            *(synthesizer.tokenizer, per_note, config.tokenizer.max_tokens, _FIRST_SHARE),
            augmentation=task.augmentation,
            audio=True,
        )
        self.frames, self.step, self.seed = task.crop_frames, start // task.batch_size, seed
        self._windows = stream(task.mixture, windows, batch_size=task.batch_size, seed=seed, start=start)
        self._sample = functools.partial(synthesizer.sample_windows, **to_dict(config.sampling))

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        batch = next(self._windows)
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(self.seed), self.step), jax.process_index())
        mel = self._sample(batch["tokens"], batch["context"], batch["context_mask"], key)
        first = int(np.random.default_rng([self.seed, self.step]).integers(WINDOW_FRAMES - self.frames + 1))
        self.step += 1
        return {
            "mel": np.asarray(unscale_mel(mel))[:, first : first + self.frames],
            "audio": batch["audio"][:, first * HOP : (first + self.frames + EXTRA_FRAMES) * HOP],
            "record": batch["record"],
            "start": batch["start"] + np.int32(first),
        }

    def close(self) -> None:
        self._windows.close()


def show_audio(true: Float[np.ndarray, "n s"], made: Float[np.ndarray, "n s"]) -> tuple[Pictures, Sounds]:
    """Crops as recorded and as made from their mels: mels side by side, and audio."""
    audio = {"true": true, "generated": made}
    mels = {name: np.asarray(scale_mel(log_mel(both))) for name, both in audio.items()}
    pictures = {f"heldout_mel/{i}": side_by_side(*(both[i] for both in mels.values())) for i in range(len(true))}
    sounds = {f"heldout_audio/{i}_{name}": both[i] for i in range(len(true)) for name, both in audio.items()}
    return pictures, sounds


def any_frame(key: jax.Array, count: int) -> Int[Array, " n"]:
    """Numbers of the frames that crops begin with, as far as a generator's excitation goes."""
    return jax.random.randint(key, (count,), 0, 2**30)


def cut_crop(batch: dict, frames: int) -> tuple[Given, Given]:
    """The mel [b, frames, m] that a batch says, else that of its audio; and the audio [b, frames * HOP] it is of."""
    mel = batch["mel"] if "mel" in batch else jax.lax.stop_gradient(log_mel(batch["audio"]))[:, :frames]
    return mel, batch["audio"][:, : frames * HOP]
