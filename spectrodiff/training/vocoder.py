"""The task of learning audio from mels: crops of recordings, spectral losses, held-out figures."""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping

import gin
import grain
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tqdm import tqdm

from spectrodiff.audio.mel import HOP, SAMPLE_RATE, log_mel, scale_mel
from spectrodiff.config import GeneratorConfig
from spectrodiff.data.augmentation import OFF, Augmentation
from spectrodiff.data.crops import Crops
from spectrodiff.data.mixture import Mixture
from spectrodiff.data.pieces import open_piece
from spectrodiff.data.pipeline import stream
from spectrodiff.errors import InputError
from spectrodiff.pretrained.hub import find_checkpoint
from spectrodiff.pretrained.native import VOCODER, load, save
from spectrodiff.training.heldout import Pictures, Sounds, side_by_side
from spectrodiff.vocoder.generator import Generator
from spectrodiff.vocoder.losses import spectral_losses, total


@gin.configurable
@dataclasses.dataclass(frozen=True)
class VocoderTask:
    """Trains a MelGAN `Generator` on the recordings of a mixture of prepared datasets, by spectral losses alone."""

    mixture: Mixture = Mixture()
    config: GeneratorConfig = GeneratorConfig()
    loss_weights: Mapping[str, float] = dataclasses.field(
        default_factory=lambda: {"log_magnitude": 1.0, "convergence": 1.0, "mel": 1.0}
    )
    batch_size: int = 16
    crop_frames: int = 50
    heldout_crops: int = 32
    augmentation: Augmentation = OFF
    dtype = "float32"

    def build(self, rngs: nnx.Rngs) -> Generator:
        return Generator(self.config, rngs=rngs)

    def load(self, checkpoint: str) -> Generator:
        """The generator of a checkpoint's folder. Raises InputError where there is none, or one of another config."""
        generator, config = load(find_checkpoint(checkpoint), VOCODER)
        if config != self.config:
            raise InputError(f"cannot train from {checkpoint}: its vocoder is {config}, but the config's {self.config}")
        return generator

    def batches(self, seed: int, start: int = 0) -> grain.DatasetIterator:
        crops = Crops(self.crop_frames, self.augmentation)
        return stream(self.mixture, crops, batch_size=self.batch_size, seed=seed, start=start)

    def whence(self, source: dict[str, np.ndarray]) -> list[str]:
        return self.mixture.whence(source)

    def loss(self, model: Generator, batch: dict, key: jax.Array) -> tuple[jax.Array, dict]:
        samples = self.crop_frames * HOP
        mel = jax.lax.stop_gradient(log_mel(batch["audio"]))[:, : self.crop_frames]
        terms = spectral_losses(model(mel), batch["audio"][:, :samples])
        return total(terms, self.loss_weights), terms

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

    @functools.cached_property
    def _losses(self):
        @functools.partial(jax.jit, static_argnums=0)
        def losses(graph, params, buffers, audio):
            return spectral_losses(nnx.merge(graph, params, buffers)(log_mel(audio)), audio)

        return losses

    def evaluate(self, graph, params, buffers) -> dict[str, float]:
        """The spectral losses on held-out crops."""
        terms = self._losses(graph, params, buffers, jnp.asarray(self.heldout))
        return {f"heldout_{name}": float(value) for name, value in terms.items()}

    @functools.cached_property
    def _generate(self):
        @functools.partial(jax.jit, static_argnums=0)
        def generate(graph, params, buffers, audio):
            return nnx.merge(graph, params, buffers)(log_mel(audio))

        return generate

    def show(self, graph, params, buffers) -> tuple[Pictures, Sounds]:
        """Two held-out crops, as recorded and as generated from their mels: mels side by side, and audio."""
        true = self.heldout[[0, -1]]
        audio = {"true": true, "generated": np.asarray(self._generate(graph, params, buffers, true))}
        mels = {name: np.asarray(scale_mel(log_mel(both))) for name, both in audio.items()}
        pictures = {f"heldout_mel/{i}": side_by_side(*(both[i] for both in mels.values())) for i in range(len(true))}
        sounds = {f"heldout_audio/{i}_{name}": both[i] for i in range(len(true)) for name, both in audio.items()}
        return pictures, sounds

    def baselines(self) -> dict[str, float]:
        """What silence scores on the held-out crops."""
        terms = spectral_losses(jnp.zeros_like(self.heldout), jnp.asarray(self.heldout))
        return {f"silence_{name}": float(value) for name, value in terms.items()}

    def save(self, folder: pathlib.Path, model: Generator, card: dict) -> None:
        save(folder, VOCODER, model, self.config, card)
