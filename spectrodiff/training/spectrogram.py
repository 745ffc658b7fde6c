"""The task of learning spectrograms from notes: its model, its data, its loss."""

import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import gin
import jax
import numpy as np
from flax import nnx

from spectrodiff.config import WINDOW_FRAMES, to_dict
from spectrodiff.data.augmentation import OFF, Augmentation
from spectrodiff.data.mixture import Mixture
from spectrodiff.data.pipeline import Loader
from spectrodiff.data.resident import ResidentLoader
from spectrodiff.data.windows import Windows
from spectrodiff.errors import InputError
from spectrodiff.models.diffusion_decoder import DiffusionConfig
from spectrodiff.models.layers import Buffer
from spectrodiff.models.spectrogram_model import SpectrogramConfig, SpectrogramModel
from spectrodiff.models.texture_decoder import TextureConfig
from spectrodiff.notes.tokenizer import NoteTokenizer
from spectrodiff.pretrained.formats import open_checkpoint
from spectrodiff.pretrained.hub import find_checkpoint
from spectrodiff.pretrained.kinds import SPECTROGRAM
from spectrodiff.pretrained.native import build, flatten, save
from spectrodiff.training.heldout import cut_windows
from spectrodiff.training.programs import add_programs, check_new
from spectrodiff.training.steps import Others

# What a model's weights do not depend on: how they are computed, learnt and sampled.
_CHANGEABLE = {
    *("dropout", "dtype", "remat", "tokens_per_note"),
    *("condition_drop", "sampling", "process.levels", "process.schedule"),
}


@gin.configurable
@dataclasses.dataclass(frozen=True)
class SpectrogramTask:
    """Trains a `SpectrogramModel` on a mixture of prepared datasets.

    `tokens`, `first_share`, `on_overflow` and `augmentation` are those of `data.windows.Windows`; `loader` reads
    records from disk or keeps all of them on the device. `new_programs` are instruments that weights which training
    starts from never knew: their MIDI programs, each with that of a relative, whose embedding they begin with.
    """

    mixture: Mixture = Mixture()
    config: SpectrogramConfig = SpectrogramConfig()
    batch_size: int = 8
    tokens: int = 512
    first_share: float = 0.05
    on_overflow: str = "skip"
    augmentation: Augmentation = OFF
    loader: Loader | ResidentLoader = Loader()
    heldout_windows: int = 64
    heldout_split: str = "validation"
    new_programs: Mapping[int, int] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        check_new(self.new_programs, self.config.tokenizer)

    @functools.cached_property
    def tokenizer(self) -> NoteTokenizer:
        return NoteTokenizer(self.config.tokenizer)

    @property
    def dtype(self) -> str:
        """What the model computes in."""
        return self.config.model.dtype

    def build(self, rngs: nnx.Rngs) -> SpectrogramModel:
        """A model with new parameters."""
        return SpectrogramModel(self.config, rngs=rngs)

    def load(self, checkpoint: str) -> SpectrogramModel:
        """The model of this task's config with the weights of a checkpoint, and with `new_programs`.

        Raises:
          InputError: there is no such checkpoint, or its weights mean something else; the message names what.
        """
        found, decoder = open_checkpoint(find_checkpoint(checkpoint)), self.config.decoder
        arrays, as_mean = found.arrays, False
        if isinstance(decoder, TextureConfig) and isinstance(found.config.decoder, DiffusionConfig):
            decoder, as_mean = decoder.average, True
        theirs, ours = (
            _flat({**to_dict(config.model), **to_dict(some), "velocity_bins": config.tokenizer.velocity_bins})
            for config, some in ((found.config, found.config.decoder), (self.config, decoder))
        )
        for name in sorted(theirs.keys() | ours.keys(), key=lambda name: (not name.endswith("kind"), name)):
            if theirs.get(name) != ours.get(name) and not any(name.startswith(some) for some in _CHANGEABLE):
                values = f"its {name} is {theirs.get(name)!r}, the config's {ours.get(name)!r}"
                raise InputError(f"cannot train from {checkpoint}: {values}")
        if as_mean:  # a diffusion decoder becomes the mean of one with texture, which is new
            new = flatten(nnx.state(self.build(nnx.Rngs(0)), nnx.Any(nnx.Param, Buffer)))
            renamed = {name.replace("decoder.", "decoder.average.", 1): arrays[name] for name in arrays}
            arrays = {**new, **renamed}
        model = build(SPECTROGRAM, self.config, arrays, str(found.folder))
        add_programs(model, self.new_programs, theirs=found.config.tokenizer, ours=self.config.tokenizer)
        return model

    def frozen_modules(self) -> dict[str, nnx.Module]:
        """Networks that the loss looks at, and that are neither trained nor saved: none."""
        return {}

    def batches(self, seed: int, start: int = 0) -> Iterator[dict[str, Any]]:
        """Endless batches from example number `start` on; see the loader."""
        windows = Windows(
            *(self.tokenizer, self._tokens_per_note, self.tokens, self.first_share, self.on_overflow),
            augmentation=self.augmentation,
        )
        return self.loader.batches(self.mixture, windows, batch_size=self.batch_size, seed=seed, start=start)

    @property
    def _tokens_per_note(self) -> int:
        return self.config.model.tokens_per_note if self.config.model.compact_notes else 1

    def sources(self, source: dict[str, np.ndarray]) -> list[str]:
        """Where a batch's examples come from, for people."""
        return self.mixture.sources(source)

    def loss(self, model: SpectrogramModel, batch: dict, key: jax.Array, others: Others) -> tuple[jax.Array, dict]:
        """The decoder's loss as a mean over the real frames of a batch, as in the paper."""
        loss_key, dropout_key = jax.random.split(key)
        rngs = nnx.Rngs(dropout=dropout_key)
        conditioning = model.encode(batch["tokens"], batch["context"], batch["context_mask"], WINDOW_FRAMES, rngs)
        losses, metrics = model.decoder.loss(conditioning, batch["target"], batch["target_mask"], loss_key, rngs)
        frames = batch["target_mask"].sum(-1)
        if "overfull" in batch:
            metrics = {**metrics, "overfull": batch["overfull"].mean()}
        return (losses * frames).sum() / jax.numpy.maximum(frames.sum(), 1), metrics

    @functools.cached_property
    def heldout(self) -> dict[str, np.ndarray]:
        """Windows of the held-out split, spread evenly over its music, the same every time."""
        return cut_windows(
            self.mixture, self.heldout_split, self.heldout_windows, self.tokenizer, self._tokens_per_note
        )

    def save(self, folder: pathlib.Path, model: SpectrogramModel, card: dict) -> None:
        """Writes the weights; how training computed them is not part of what they are."""
        plain = dataclasses.replace(self.config.model, dtype="float32", remat=False)
        save(folder, SPECTROGRAM, model, dataclasses.replace(self.config, model=plain), card)


def _flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Nested settings by dotted names."""
    flat = {}
    for name, value in values.items():
        flat |= _flat(value, f"{before}{name}.") if isinstance(value, dict) else {before + name: value}
    return flat
