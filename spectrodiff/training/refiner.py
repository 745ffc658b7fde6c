"""The task of training a refiner, which predicts the magnitude spectrogram of a mel for Griffin-Lim."""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import gin
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from spectrodiff.audio.mel import EXTRA_FRAMES, HOP, log_mels
from spectrodiff.errors import InputError
from spectrodiff.pretrained.kinds import REFINER
from spectrodiff.training.audio import AudioTask, Weights, mel_of
from spectrodiff.training.steps import Others
from spectrodiff.vocoder.griffin_lim import GriffinLim
from spectrodiff.vocoder.losses import magnitude_losses, total
from spectrodiff.vocoder.refiner import RefinerConfig, receptive_frames, spread_over_bins
from spectrodiff.vocoder.stft import FINE, stft


@gin.configurable
@dataclasses.dataclass(frozen=True)
class RefinerTask(AudioTask):
    """Trains a `Refiner` on the weighted sum of the magnitude losses named in `loss_weights`.

    With `predicted_by`, `config.agreement` must be 0: predicted mels have errors, which the output should not keep.
    """

    config: RefinerConfig = RefinerConfig()
    loss_weights: Mapping[str, float] = dataclasses.field(
        default_factory=lambda: {"log_magnitude": 1.0, "convergence": 0.3}
    )
    kind = REFINER

    def __post_init__(self):
        super().__post_init__()
        if self.crop_frames < 1:
            raise InputError(f"crop_frames is {self.crop_frames}; choose 1 or more")
        if self.predicted_by is not None and self.config.agreement:
            raise InputError(
                "with RefinerTask.predicted_by, RefinerConfig.agreement has to be 0: agreement would keep the errors "
                "of predicted mels"
            )

    @property
    def margin(self) -> int:
        """The receptive field of the refiner on either side."""
        return receptive_frames(self.config)

    def loss(self, model: Callable, batch: dict, key: jax.Array, others: Others) -> tuple[jax.Array, dict]:
        """Returns the weighted sum of the magnitude losses, and its terms."""
        terms = self._terms(model, batch)
        return total(terms, self.loss_weights), terms

    def _terms(self, model: Callable, batch: dict) -> dict[str, jax.Array]:
        """Returns the losses over all frames whose receptive field and samples are within the crop."""
        frames = batch["audio"].shape[1] // HOP - EXTRA_FRAMES
        inner = slice(FINE * self.margin, FINE * (frames - self.margin))
        true = jnp.abs(jax.vmap(stft)(batch["audio"]))
        return magnitude_losses(model(mel_of(batch, frames))[:, inner], true[:, inner])

    @functools.cached_property
    def _losses(self):
        @functools.partial(jax.jit, static_argnums=0)
        def losses(graph, params, buffers, audio):
            return self._terms(nnx.merge(graph, params, buffers), {"audio": audio})

        return losses

    def heldout_losses(self, weights: Weights, audio: Float[Array, "n s"]) -> dict[str, jax.Array]:
        """Returns the magnitude losses; see `AudioTask.heldout_losses`."""
        return self._losses(*weights, audio)

    def reconstruct(self, weights: Weights, audio: Float[np.ndarray, "n s"]) -> Float[np.ndarray, "n r"]:
        """Reconstructs crops of audio from their mels, by the refiner and Griffin-Lim."""
        vocoder = GriffinLim(nnx.merge(*weights))
        return np.stack([vocoder(log_mels(crop)) for crop in audio])

    def baseline(self) -> dict[str, jax.Array]:
        """Returns the losses of the mel spread evenly over its STFT bins, on the held-out crops."""

        def spread(mel):
            return jnp.repeat(spread_over_bins(mel), FINE, axis=1)

        terms = self._terms(spread, {"audio": jnp.asarray(self.heldout)})
        return {f"spread_{name}": value for name, value in terms.items()}
