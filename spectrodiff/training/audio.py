"""What the tasks of learning audio from mels share: crops of recordings to learn from, and held-out ones."""

import dataclasses
import functools
from collections.abc import Mapping

import grain
import jax
import numpy as np
from jaxtyping import Array, Float, Int
from tqdm import tqdm

from spectrodiff.audio.mel import HOP, SAMPLE_RATE, log_mel, scale_mel
from spectrodiff.data.augmentation import OFF, Augmentation
from spectrodiff.data.crops import Crops
from spectrodiff.data.mixture import Mixture
from spectrodiff.data.pieces import open_piece
from spectrodiff.data.pipeline import stream
from spectrodiff.errors import InputError
from spectrodiff.training.heldout import Pictures, Sounds, side_by_side


@dataclasses.dataclass(frozen=True)
class AudioTask:
    """Crops of `crop_frames` frames from the recordings of prepared datasets, whatever is learnt from them."""

    mixture: Mixture = Mixture()
    loss_weights: Mapping[str, float] = dataclasses.field(default_factory=dict)
    batch_size: int = 16
    crop_frames: int = 50
    heldout_crops: int = 32
    augmentation: Augmentation = OFF
    dtype = "float32"

    def batches(self, seed: int, start: int = 0) -> grain.DatasetIterator:
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


def cut_crop(batch: dict, frames: int) -> tuple[Float[Array, "b t m"], Float[Array, "b s"]]:
    """Mel [b, frames, m], as constants of the gradient, and the audio [b, frames * HOP] that it is of."""
    mel = jax.lax.stop_gradient(log_mel(batch["audio"]))[:, :frames]
    return mel, batch["audio"][:, : frames * HOP]
