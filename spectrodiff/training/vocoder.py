"""The task of learning audio from mels by spectral losses alone."""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping

import gin
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from spectrodiff.audio.mel import HOP, log_mel
from spectrodiff.config import GeneratorConfig
from spectrodiff.errors import InputError
from spectrodiff.pretrained.hub import find_checkpoint
from spectrodiff.pretrained.native import VOCODER, load, save
from spectrodiff.training.audio import AudioTask, any_frame, cut_crop, show_audio
from spectrodiff.training.heldout import Pictures, Sounds
from spectrodiff.vocoder.generator import Generator
from spectrodiff.vocoder.losses import MEL_SCALES, STFT_WINDOWS, spectral_losses, total


@gin.configurable
@dataclasses.dataclass(frozen=True)
class VocoderTask(AudioTask):
    """Trains a MelGAN `Generator`."""

    config: GeneratorConfig = GeneratorConfig()
    loss_weights: Mapping[str, float] = dataclasses.field(
        default_factory=lambda: {"log_magnitude": 1.0, "convergence": 1.0, "mel": 1.0}
    )

    def __post_init__(self):
        least = -(-max(*STFT_WINDOWS, *MEL_SCALES) // HOP)
        if self.crop_frames < least:
            raise InputError(f"crop_frames is {self.crop_frames}; the spectral losses need {least} frames or more")

    def build(self, rngs: nnx.Rngs) -> Generator:
        return Generator(self.config, rngs=rngs)

    def load(self, checkpoint: str) -> Generator:
        """The generator of a checkpoint's folder. Raises InputError where there is none, or one of another config."""
        generator, config = load(find_checkpoint(checkpoint), VOCODER)
        if config != self.config:
            raise InputError(f"cannot train from {checkpoint}: its vocoder is {config}, but the config's {self.config}")
        return generator

    def loss(self, model: Generator, batch: dict, key: jax.Array) -> tuple[jax.Array, dict]:
        mel, audio = cut_crop(batch, self.crop_frames)
        terms = spectral_losses(model(mel, any_frame(key, len(mel))), audio)
        return total(terms, self.loss_weights), terms

    @functools.cached_property
    def _generate(self):
        @functools.partial(jax.jit, static_argnums=0)
        def generate(graph, params, buffers, audio):
            made = nnx.merge(graph, params, buffers)(log_mel(audio))
            return made, spectral_losses(made, audio)

        return generate

    def evaluate(self, graph, params, buffers) -> dict[str, float]:
        """The spectral losses on held-out crops."""
        _, terms = self._generate(graph, params, buffers, jnp.asarray(self.heldout))
        return {f"heldout_{name}": float(value) for name, value in terms.items()}

    def show(self, graph, params, buffers) -> tuple[Pictures, Sounds]:
        """Two held-out crops, as recorded and as generated from their mels: mels side by side, and audio."""
        true = self.heldout[[0, -1]]
        return show_audio(true, np.asarray(self._generate(graph, params, buffers, true)[0]))

    def baselines(self) -> dict[str, float]:
        """What silence scores on the held-out crops."""
        terms = spectral_losses(jnp.zeros_like(self.heldout), jnp.asarray(self.heldout))
        return {f"silence_{name}": float(value) for name, value in terms.items()}

    def save(self, folder: pathlib.Path, model: Generator, card: dict) -> None:
        save(folder, VOCODER, model, self.config, card)
