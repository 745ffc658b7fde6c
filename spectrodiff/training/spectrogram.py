"""The task of learning spectrograms from notes: its model, its loss, its held-out figures."""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping

import gin
import grain
import jax
import numpy as np
from flax import nnx

from spectrodiff.config import WINDOW_FRAMES, SpectrogramConfig, to_dict
from spectrodiff.data.mixture import Mixture
from spectrodiff.data.pipeline import batches
from spectrodiff.diffusion.objective import OBJECTIVES, diffusion_loss
from spectrodiff.diffusion.schedule import logsnr_at
from spectrodiff.errors import InputError
from spectrodiff.models.spectrogram_model import SpectrogramModel
from spectrodiff.notes.tokenizer import NoteTokenizer
from spectrodiff.pretrained.formats import open_checkpoint
from spectrodiff.pretrained.hub import find_checkpoint
from spectrodiff.pretrained.native import SPECTROGRAM, build, save
from spectrodiff.training.heldout import (
    BANDS,
    Pictures,
    Sounds,
    band_losses,
    cut_windows,
    guesses,
    pick,
    sample_windows,
    score,
    show_windows,
)
from spectrodiff.training.programs import add_programs, check_new

_SHOWN = 3  # held-out windows to look at and listen to
_CHANGEABLE = {"dropout", "dtype", "remat", "tokens_per_note"}  # what a model's weights do not depend on


@gin.configurable
@dataclasses.dataclass(frozen=True)
class SpectrogramTask:
    """Trains a `SpectrogramModel` on a mixture of prepared datasets."""

    mixture: Mixture = Mixture()
    config: SpectrogramConfig = SpectrogramConfig()
    condition_drop: float = 0.1
    # Noise times are uniform to this power: 1 is the paper's, below 1 leans towards noise.
    time_power: float = 1.0
    heldout_windows: int = 64
    heldout_steps: int = 8
    heldout_split: str = "validation"
    # Instruments that weights which training starts from never knew: their MIDI programs, each with that of a relative,
    # whose embedding they begin with.
    new_programs: Mapping[int, int] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        check_new(self.new_programs, self.config.tokenizer)

    @functools.cached_property
    def tokenizer(self) -> NoteTokenizer:
        return NoteTokenizer(self.config.tokenizer)

    def build(self, rngs: nnx.Rngs) -> SpectrogramModel:
        return SpectrogramModel(self.config, rngs=rngs)

    def load(self, checkpoint: str) -> SpectrogramModel:
        """The model of this task's config with the weights of a checkpoint, and with `new_programs`.

        Raises:
          InputError: there is no such checkpoint, or its weights mean something else; the message names what.
        """
        found = open_checkpoint(find_checkpoint(checkpoint))
        theirs, ours = (
            {**to_dict(config.model), **to_dict(config.diffusion), "velocity_bins": config.tokenizer.velocity_bins}
            for config in (found.config, self.config)
        )
        for name in sorted(theirs.keys() - _CHANGEABLE):
            if theirs[name] != ours[name]:
                raise InputError(
                    f"cannot train from {checkpoint}: its {name} is {theirs[name]!r}, the config's {ours[name]!r}"
                )
        model = build(SPECTROGRAM, self.config, found.arrays, str(found.folder))
        add_programs(model, self.new_programs, theirs=found.config.tokenizer, ours=self.config.tokenizer)
        return model

    @property
    def dtype(self) -> str:
        return self.config.model.dtype

    def batches(self, seed: int, start: int = 0) -> grain.DatasetIterator:
        return batches(self.mixture, self.tokenizer, self._tokens_per_note, seed=seed, start=start)

    def whence(self, source: dict[str, np.ndarray]) -> list[str]:
        return self.mixture.whence(source)

    @property
    def _tokens_per_note(self) -> int:
        return self.config.model.tokens_per_note if self.config.model.compact_notes else 1

    def loss(self, model: SpectrogramModel, batch: dict, key: jax.Array) -> tuple[jax.Array, dict]:
        time_key, drop_key, noise_key, dropout_key = jax.random.split(key, 4)
        size = batch["tokens"].shape[0]
        rngs = nnx.Rngs(dropout=dropout_key)
        time = jax.random.uniform(time_key, (size,)) ** self.time_power
        conditioning = model.encode(batch["tokens"], batch["context"], batch["context_mask"], WINDOW_FRAMES, rngs)
        conditioning = conditioning.keep(jax.random.bernoulli(drop_key, 1.0 - self.condition_drop, (size,)))
        losses = self._losses_at(time, noise_key, model, model.remember(conditioning), batch, rngs)
        return losses.mean(), {"overfull": batch["overfull"].mean()} if "overfull" in batch else {}

    def _losses_at(self, time, noise_key, model, memory, batch, rngs=None):
        """Each example's, with noise of its `time` [b]."""
        cfg = self.config.diffusion
        return diffusion_loss(
            lambda z, logsnr: model.decoder(z, logsnr, memory, rngs),
            OBJECTIVES[cfg.prediction],
            (batch["target"] - cfg.mean) / cfg.std,
            batch["target_mask"],
            logsnr_at(time),
            noise_key,
        )

    @functools.cached_property
    def heldout(self) -> dict[str, np.ndarray]:
        """Windows of the held-out split, spread evenly over its music, the same every time."""
        return cut_windows(
            self.mixture, self.heldout_split, self.heldout_windows, self.tokenizer, self._tokens_per_note
        )

    @functools.cached_property
    def _band_losses(self):
        @functools.partial(jax.jit, static_argnums=0)
        def losses(graph, params, buffers, batch, key):
            model = nnx.merge(graph, params, buffers)
            given = (batch[name] for name in ("tokens", "context", "context_mask"))
            memory = model.remember(model.encode(*given, WINDOW_FRAMES))
            bands = batch["time"].T, jax.random.split(key, BANDS)
            return jax.lax.map(lambda band: self._losses_at(*band, model, memory, batch), bands).T

        return losses

    def sample_heldout(self, graph, params, buffers, *, steps: int, guidance: float = 1.0) -> np.ndarray:
        """Scaled mels sampled for the held-out windows, with the true previous window as context."""
        cfg = self.config.diffusion
        return sample_windows(graph, params, buffers, cfg, self.heldout, steps=steps, guidance=guidance)

    def evaluate(self, graph, params, buffers) -> dict[str, float]:
        """What the held-out windows say of a model; with several datasets, also those of each, as NAME/DATASET.

        `heldout_mel_l1`: log-mel L1 in nats between sampled and true windows. `heldout_loss`: the training loss,
        nothing dropped, at fixed times that are uniform whatever `time_power` is. `heldout_loss_band/0` to `/3`: the
        same in four equal bands of time, from the least noise (time 0 has none) to the most (time 1 is nothing else).
        """
        sampled = self.sample_heldout(graph, params, buffers, steps=self.heldout_steps)
        losses = band_losses(functools.partial(self._band_losses, graph, params, buffers), self.heldout)
        return score(self.heldout, self.mixture.names, sampled, losses)

    def show(self, graph, params, buffers) -> tuple[Pictures, Sounds]:
        """A few held-out windows, as they are and as they are sampled: mels side by side, and audio by Griffin-Lim."""
        windows, cfg = pick(self.heldout, _SHOWN), self.config.diffusion
        sampled = sample_windows(graph, params, buffers, cfg, windows, steps=self.heldout_steps)
        return show_windows(windows, sampled)

    def baselines(self) -> dict[str, float]:
        """What guesses score on the held-out windows, in nats: their mean, another window, the mean of the context."""
        return guesses(self.heldout)

    def save(self, folder: pathlib.Path, model: SpectrogramModel, card: dict) -> None:
        """Writes the weights; how training computed them is not part of what they are."""
        plain = dataclasses.replace(self.config.model, dtype="float32", remat=False)
        save(folder, SPECTROGRAM, model, dataclasses.replace(self.config, model=plain), card)
