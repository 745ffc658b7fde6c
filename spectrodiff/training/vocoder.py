"""The task of training a MelGAN vocoder with spectral losses, without discriminators."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator, Mapping

import gin
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from spectrodiff.audio.mel import HOP, log_mels
from spectrodiff.errors import InputError
from spectrodiff.pretrained.hub import packaged_weights
from spectrodiff.pretrained.kinds import MELGAN, REFINER
from spectrodiff.pretrained.native import save
from spectrodiff.pretrained.vocoders import find_griffin_lim
from spectrodiff.training.audio import AnyArray, AudioTask, Weights, mel_of
from spectrodiff.training.excitation import ExcitedCrops
from spectrodiff.training.steps import Others
from spectrodiff.vocoder.generator import Generator, GeneratorConfig, receptive_frames
from spectrodiff.vocoder.griffin_lim import GriffinLim
from spectrodiff.vocoder.losses import MEL_SCALES, STFT_WINDOWS, spectral_losses, total

Terms = dict[str, jax.Array]


@gin.configurable
@dataclasses.dataclass(frozen=True)
class VocoderTask(AudioTask):
    """Trains a MelGAN `Generator` on the weighted sum of the spectral losses named in `loss_weights`.

    If the generator corrects the audio of Griffin-Lim, that of each recording is kept in `excitation_dir`, by default
    `griffin_lim` in the mixture's `data_dir`; see `ExcitedCrops`.
    """

    config: GeneratorConfig = GeneratorConfig()
    loss_weights: Mapping[str, float] = dataclasses.field(
        default_factory=lambda: {"log_magnitude": 1.0, "convergence": 1.0, "mel": 1.0}
    )
    excitation_dir: str | None = None
    kind = MELGAN

    def __post_init__(self):
        super().__post_init__()
        least = -(-max(*STFT_WINDOWS, *MEL_SCALES) // HOP)
        if self.crop_frames < least:
            raise InputError(f"crop_frames is {self.crop_frames}; the spectral losses need {least} frames or more")
        if self.config.corrects and self.augmentation.sub_mix:
            raise InputError("Augmentation.sub_mix must be 0 with the excitation griffin_lim, which has no stems")

    @property
    def margin(self) -> int:
        """The receptive field of the generator on either side, so that padding does not reach the loss."""
        return receptive_frames(self.config)

    @functools.cached_property
    def griffin_lim(self) -> GriffinLim | None:
        """The vocoder whose audio the generator corrects, or None."""
        return find_griffin_lim(self.config.refiner) if self.config.corrects else None

    def batches(self, seed: int, start: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """Yields batches as `AudioTask.batches`, with `excitation` if the generator corrects Griffin-Lim."""
        if self.griffin_lim is None:
            return super().batches(seed, start)
        if self.predicted_by is not None:
            raise InputError("predicted_by cannot be used with the excitation griffin_lim: leave it out")
        folder = pathlib.Path(self.excitation_dir or pathlib.Path(self.mixture.data_dir) / "griffin_lim")
        crops = ExcitedCrops(self.frames, self.augmentation, self.griffin_lim, folder)
        return self.loader.batches(self.mixture, crops, batch_size=self.batch_size, seed=seed, start=start)

    def generated_and_true(self, model: Generator, batch: dict, key: jax.Array) -> tuple[Float[Array, "b s"], AnyArray]:
        """Returns generated and true audio of a batch's crops. `key` draws the frames that index the input noise."""
        mel = mel_of(batch, self.frames)
        first = jax.random.randint(key, (len(mel),), 0, 2**30)
        inner = slice(self.margin * HOP, (self.margin + self.crop_frames) * HOP)
        excitation = batch["excitation"][:, : self.frames * HOP] if self.config.corrects else None
        return model(mel, first, excitation)[:, inner], batch["audio"][:, inner]

    def loss(self, model: Generator, batch: dict, key: jax.Array, others: Others) -> tuple[jax.Array, dict]:
        """Returns the weighted sum of the spectral losses, its terms, and the scales of their gradients."""
        generated, audio = self.generated_and_true(model, batch, key)
        terms = spectral_losses(generated, audio)
        scales = gradient_scales(spectral_losses, generated, audio, self.loss_weights)
        return total(terms, self.loss_weights), terms | scales

    @functools.cached_property
    def _generate(self):
        @functools.partial(jax.jit, static_argnums=0)
        def generate(graph, params, buffers, audio, excitation):
            generated = nnx.merge(graph, params, buffers)(log_mels(audio), excitation=excitation)
            inner = slice(self.margin * HOP, -self.margin * HOP)
            return generated, spectral_losses(generated[:, inner], audio[:, inner])

        return generate

    def _excitation(self, audio: Float[Array | np.ndarray, "n s"]) -> Float[np.ndarray, "n s"] | None:
        """Returns the audio that Griffin-Lim makes of the mels of crops, or None if the generator needs none."""
        return None if self.griffin_lim is None else np.stack([self.griffin_lim(log_mels(crop)) for crop in audio])

    def heldout_losses(self, weights: Weights, audio: Float[Array, "n s"]) -> dict[str, jax.Array]:
        """Returns the spectral losses; see `AudioTask.heldout_losses`."""
        return self._generate(*weights, audio, self._excitation(audio))[1]

    def reconstruct(self, weights: Weights, audio: Float[np.ndarray, "n s"]) -> Float[np.ndarray, "n r"]:
        """Generates audio from the mels of crops of audio."""
        return np.asarray(self._generate(*weights, jnp.asarray(audio), self._excitation(audio))[0])

    def baseline(self) -> dict[str, jax.Array]:
        """Returns the spectral losses of silence on the held-out crops, and those of Griffin-Lim if it is corrected."""
        audio = jnp.asarray(self.heldout)
        made = {"silence": jnp.zeros_like(audio)}
        if self.griffin_lim is not None:
            made["griffin_lim"] = self._excitation(audio)
        inner = slice(self.margin * HOP, -self.margin * HOP)
        return {
            f"{vocoder}_{name}": value
            for vocoder, generated in made.items()
            for name, value in spectral_losses(jnp.asarray(generated)[:, inner], audio[:, inner]).items()
        }

    def save(self, folder: pathlib.Path, model: Generator, card: dict) -> None:
        """Exports the generator to `folder`, and beside it its refiner, unless that is in the package."""
        if self.config.refiner and self.config.refiner not in packaged_weights():
            refiner = self.griffin_lim.refiner
            save(folder, REFINER, refiner, refiner.cfg, {})
        super().save(folder, model, card)


def gradient_scales(
    losses: Callable[[jax.Array, jax.Array], Terms],
    generated: Float[Array, "b s"],
    audio: Float[Array, "b s"],
    weights: Mapping[str, float],
) -> Terms:
    """Returns the norm of the gradient of each weighted loss with respect to the generated audio, as `gradient/NAME`.

    It shows how much each loss contributes to the generator's update. To save time, it is that of the first crop alone.
    """
    generated, audio = jax.lax.stop_gradient((generated[:1], audio[:1]))

    def scale(name: str, weight: float) -> jax.Array:
        return abs(weight) * jnp.linalg.norm(jax.grad(lambda made: losses(made, audio)[name])(generated))

    return {f"gradient/{name}": scale(name, weight) for name, weight in weights.items()}
