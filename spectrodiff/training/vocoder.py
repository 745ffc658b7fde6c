"""The task of training a MelGAN vocoder with spectral losses, without discriminators."""

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
from spectrodiff.training.audio import AnyArray, AudioTask, Weights, mel_of
from spectrodiff.training.steps import Others
from spectrodiff.vocoder.generator import Generator, GeneratorConfig, receptive_frames
from spectrodiff.vocoder.losses import MEL_SCALES, STFT_WINDOWS, spectral_losses, total


@gin.configurable
@dataclasses.dataclass(frozen=True)
class VocoderTask(AudioTask):
    """Trains a MelGAN `Generator` on the weighted sum of the spectral losses named in `loss_weights`."""

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
        """The receptive field of the generator on either side, so that padding does not reach the loss."""
        return receptive_frames(self.config)

    def generated_and_true(self, model: Generator, batch: dict, key: jax.Array) -> tuple[Float[Array, "b s"], AnyArray]:
        """Returns generated and true audio of a batch's crops. `key` draws the frames that index the input noise."""
        mel = mel_of(batch, self.frames)
        first = jax.random.randint(key, (len(mel),), 0, 2**30)
        inner = slice(self.margin * HOP, (self.margin + self.crop_frames) * HOP)
        return model(mel, first)[:, inner], batch["audio"][:, inner]

    def loss(self, model: Generator, batch: dict, key: jax.Array, others: Others) -> tuple[jax.Array, dict]:
        """Returns the weighted sum of the spectral losses, and its terms."""
        terms = spectral_losses(*self.generated_and_true(model, batch, key))
        return total(terms, self.loss_weights), terms

    @functools.cached_property
    def _generate(self):
        @functools.partial(jax.jit, static_argnums=0)
        def generate(graph, params, buffers, audio):
            generated = nnx.merge(graph, params, buffers)(log_mel(audio))
            inner = slice(self.margin * HOP, -self.margin * HOP)
            return generated, spectral_losses(generated[:, inner], audio[:, inner])

        return generate

    def heldout_losses(self, weights: Weights, audio: Float[Array, "n s"]) -> dict[str, jax.Array]:
        """Returns the spectral losses; see `AudioTask.heldout_losses`."""
        return self._generate(*weights, audio)[1]

    def reconstruct(self, weights: Weights, audio: Float[np.ndarray, "n s"]) -> Float[np.ndarray, "n r"]:
        """Generates audio from the mels of crops of audio."""
        return np.asarray(self._generate(*weights, jnp.asarray(audio))[0])

    def baseline(self) -> dict[str, jax.Array]:
        """Returns the spectral losses of silence on the held-out crops."""
        terms = spectral_losses(jnp.zeros_like(self.heldout), jnp.asarray(self.heldout))
        return {f"silence_{name}": value for name, value in terms.items()}
