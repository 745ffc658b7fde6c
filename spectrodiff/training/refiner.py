"""The task of learning the magnitudes that a mel leaves open."""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import gin
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from spectrodiff.audio.mel import EXTRA_FRAMES, HOP, log_mel
from spectrodiff.config import RefinerConfig
from spectrodiff.errors import InputError
from spectrodiff.pretrained.native import REFINER
from spectrodiff.training.audio import AudioTask, mel_of, show_audio
from spectrodiff.training.heldout import Pictures, Sounds
from spectrodiff.vocoder.griffin_lim import GriffinLim
from spectrodiff.vocoder.losses import magnitude_losses, total
from spectrodiff.vocoder.refiner import receptive_frames, spread
from spectrodiff.vocoder.stft import FINE, stft


@gin.configurable
@dataclasses.dataclass(frozen=True)
class RefinerTask(AudioTask):
    """Trains a `Refiner`. With `predicted_by` its config should have no `agreement` with mels that are not true."""

    config: RefinerConfig = RefinerConfig()
    loss_weights: Mapping[str, float] = dataclasses.field(
        default_factory=lambda: {"log_magnitude": 1.0, "convergence": 0.3}
    )
    kind = REFINER

    def __post_init__(self):
        if self.crop_frames < 1:
            raise InputError(f"crop_frames is {self.crop_frames}; choose 1 or more")
        if self.predicted_by is not None and self.config.agreement:
            raise InputError(
                "with RefinerTask.predicted_by, RefinerConfig.agreement has to be 0: what a refiner mends of predicted "
                "mels would be undone by agreeing with them"
            )

    @property
    def margin(self) -> int:
        """See `AudioTask`."""
        return receptive_frames(self.config)

    def loss(self, model: Callable, batch: dict, key: jax.Array) -> tuple[jax.Array, dict]:
        terms = self._terms(model, batch)
        return total(terms, self.loss_weights), terms

    def _terms(self, model: Callable, batch: dict) -> dict[str, jax.Array]:
        """Of all frames whose neighbours and samples are there."""
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

    def evaluate(self, graph, params, buffers) -> dict[str, float]:
        """The losses on held-out crops, but for their margins."""
        terms = self._losses(graph, params, buffers, jnp.asarray(self.heldout))
        return {f"heldout_{name}": float(value) for name, value in terms.items()}

    def show(self, graph, params, buffers) -> tuple[Pictures, Sounds]:
        """Two held-out crops, as recorded and as rebuilt from their mels: mels side by side, and audio."""
        true = self.heldout[[0, -1]]
        vocoder = GriffinLim(nnx.merge(graph, params, buffers))
        return show_audio(true, np.stack([vocoder(log_mel(audio)) for audio in true]))

    def baselines(self) -> dict[str, float]:
        """What the mel spread evenly over its bins scores on the held-out crops."""

        def as_it_is(mel):
            return jnp.repeat(spread(mel), FINE, axis=1)

        terms = self._terms(as_it_is, {"audio": jnp.asarray(self.heldout)})
        return {f"spread_{name}": float(value) for name, value in terms.items()}
