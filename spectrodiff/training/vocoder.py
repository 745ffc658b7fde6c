"""The task of learning audio from mels by spectral losses alone."""

import dataclasses
import functools
from collections.abc import Mapping

import gin
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from spectrodiff.audio.mel import HOP, log_mel
from spectrodiff.errors import InputError
from spectrodiff.pretrained.kinds import MELGAN
from spectrodiff.training.audio import AudioTask, Given, Weights, mel_of
from spectrodiff.training.steps import Others
from spectrodiff.vocoder.generator import Generator, GeneratorConfig, receptive_frames
from spectrodiff.vocoder.losses import MEL_SCALES, STFT_WINDOWS, spectral_losses, total


@gin.configurable
@dataclasses.dataclass(frozen=True)
class VocoderTask(AudioTask):
    """Trains a MelGAN `Generator`."""

    config: GeneratorConfig = GeneratorConfig()
    loss_weights: Mapping[str, float] = dataclasses.field(
        default_factory=lambda: {"log_magnitude": 1.0, "convergence": 1.0, "mel": 1.0}
    )
    kind = MELGAN

    def __post_init__(self):
        least = -(-max(*STFT_WINDOWS, *MEL_SCALES) // HOP)
        if self.crop_frames < least:
            raise InputError(f"crop_frames is {self.crop_frames}; the spectral losses need {least} frames or more")

    @property
    def margin(self) -> int:
        """See `AudioTask`: past the ends of a crop the generator would see what no piece has there."""
        return receptive_frames(self.config)

    def made_and_true(self, model: Generator, batch: dict, key: jax.Array) -> tuple[Float[Array, "b s"], Given]:
        """What a generator makes of a batch's crops, and their audio; its noise is of frames drawn by `key`."""
        mel = mel_of(batch, self.frames)
        first = jax.random.randint(key, (len(mel),), 0, 2**30)
        inner = slice(self.margin * HOP, (self.margin + self.crop_frames) * HOP)
        return model(mel, first)[:, inner], batch["audio"][:, inner]

    def loss(self, model: Generator, batch: dict, key: jax.Array, others: Others) -> tuple[jax.Array, dict]:
        terms = spectral_losses(*self.made_and_true(model, batch, key))
        return total(terms, self.loss_weights), terms

    @functools.cached_property
    def _generate(self):
        @functools.partial(jax.jit, static_argnums=0)
        def generate(graph, params, buffers, audio):
            made = nnx.merge(graph, params, buffers)(log_mel(audio))
            inner = slice(self.margin * HOP, -self.margin * HOP)
            return made, spectral_losses(made[:, inner], audio[:, inner])

        return generate

    def terms(self, weights: Weights, audio: Float[Array, "n s"]) -> dict[str, jax.Array]:
        """See `AudioTask`."""
        return self._generate(*weights, audio)[1]

    def made(self, weights: Weights, audio: Float[np.ndarray, "n s"]) -> Float[np.ndarray, "n r"]:
        """See `AudioTask`."""
        return np.asarray(self._generate(*weights, jnp.asarray(audio))[0])

    def baseline(self) -> dict[str, jax.Array]:
        """What silence scores."""
        terms = spectral_losses(jnp.zeros_like(self.heldout), jnp.asarray(self.heldout))
        return {f"silence_{name}": value for name, value in terms.items()}
