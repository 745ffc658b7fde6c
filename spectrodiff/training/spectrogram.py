"""The task of training a spectrogram model."""

import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import gin
import jax
import numpy as np
from flax import nnx

from spectrodiff.audio.mel import MEL_BINS
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
from spectrodiff.training.distillation import Distillation
from spectrodiff.training.heldout import cut_windows
from spectrodiff.training.programs import add_programs, check_new
from spectrodiff.training.steps import Others

# Settings of computation, training and sampling, in which a task may differ from the checkpoint that it loads.
_CHANGEABLE = (
    "condition_drop",
    "dropout",
    "dtype",
    "mean_weight",
    "process.levels",
    "process.schedule",
    "remat",
    "sampling",
    "texture_weight",
    "tokens_per_note",
)


@gin.configurable
@dataclasses.dataclass(frozen=True)
class SpectrogramTask:
    """Trains a `SpectrogramModel` on a mixture of prepared datasets.

    `tokens`, `first_share`, `on_overflow`, `augmentation` and `silence_after` are those of `data.windows.Windows`.
    `loader` either reads examples from disk or keeps all of them on the device. `new_programs` adds instruments to the
    checkpoint that training starts from: it maps their MIDI programs to the related programs that their embeddings are
    copied from. With `distillation`, the model learns from a teacher instead of the data alone.
    """

    mixture: Mixture = Mixture()
    config: SpectrogramConfig = SpectrogramConfig()
    batch_size: int = 8
    tokens: int = 512
    first_share: float = 0.05
    on_overflow: str = "skip"
    augmentation: Augmentation = OFF
    silence_after: float = 0.0
    loader: Loader | ResidentLoader = Loader()
    heldout_windows: int = 64
    heldout_split: str = "validation"
    new_programs: Mapping[int, int] = dataclasses.field(default_factory=dict)
    distillation: Distillation | None = None

    def __post_init__(self):
        check_new(self.new_programs, self.config.tokenizer)
        if self.distillation is not None:
            self.distillation.check_student(self.config.decoder)

    @functools.cached_property
    def tokenizer(self) -> NoteTokenizer:
        """The tokenizer of the model."""
        return NoteTokenizer(self.config.tokenizer)

    @property
    def dtype(self) -> str:
        """The dtype of the model's activations."""
        return self.config.model.dtype

    def build(self, rngs: nnx.Rngs) -> SpectrogramModel:
        """Builds the model with newly initialised parameters."""
        return SpectrogramModel(self.config, rngs=rngs)

    def load(self, checkpoint: str) -> SpectrogramModel:
        """Builds the model with the weights of a checkpoint, and with `new_programs` added.

        Raises:
          InputError: the checkpoint does not exist, or its config differs in a setting that its weights depend on.
        """
        found = open_checkpoint(find_checkpoint(checkpoint))
        decoder, arrays = self.config.decoder, found.arrays
        # A texture decoder can start from a diffusion decoder, which then predicts its mean; its U-Net is new.
        to_texture = isinstance(decoder, TextureConfig) and isinstance(found.config.decoder, DiffusionConfig)
        if to_texture:
            decoder = dataclasses.replace(decoder.mean_decoder, mean=decoder.mean, std=decoder.std)
        _check_same(checkpoint, found.config, dataclasses.replace(self.config, decoder=decoder))
        if to_texture:
            new = flatten(nnx.state(self.build(nnx.Rngs(0)), nnx.Any(nnx.Param, Buffer)))
            renamed = {name.replace("decoder.", "decoder.mean_decoder.", 1): arrays[name] for name in arrays}
            arrays = {**new, **renamed}
        model = build(SPECTROGRAM, self.config, arrays, str(found.folder))
        add_programs(model, self.new_programs, theirs=found.config.tokenizer, ours=self.config.tokenizer)
        return model

    def frozen_modules(self) -> dict[str, nnx.Module]:
        """Returns the modules that the loss uses but that are not trained or saved: the decoder of a teacher.

        Raises:
          InputError: the teacher does not exist, or it is not of the network that is trained.
        """
        if self.distillation is None:
            return {}
        found = self.distillation.open_teacher()
        _check_same(self.distillation.teacher, found.config, self.config)
        return {"teacher": found.build().decoder}

    def batches(self, seed: int, start: int = 0) -> Iterator[dict[str, Any]]:
        """Yields batches indefinitely, starting at example number `start`; see the loader."""
        windows = Windows(
            self.tokenizer,
            self._tokens_per_note,
            self.tokens,
            self.first_share,
            self.on_overflow,
            augmentation=self.augmentation,
            silence_after=self.silence_after,
        )
        return self.loader.batches(self.mixture, windows, batch_size=self.batch_size, seed=seed, start=start)

    def batch_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns the shapes of a batch, for a dry run without data."""
        mel, mask = (self.batch_size, WINDOW_FRAMES, MEL_BINS), (self.batch_size, WINDOW_FRAMES)
        shapes = {"tokens": jax.ShapeDtypeStruct((self.batch_size, self.tokens), np.int32)}
        for name in ("target", "context"):
            shapes[name] = jax.ShapeDtypeStruct(mel, np.float32)
            shapes[f"{name}_mask"] = jax.ShapeDtypeStruct(mask, np.bool_)
        return shapes

    @property
    def _tokens_per_note(self) -> int:
        return self.config.model.tokens_per_note if self.config.model.compact_notes else 1

    def sources(self, source: dict[str, np.ndarray]) -> list[str]:
        """Returns a readable description of the source of each example of a batch."""
        return self.mixture.sources(source)

    def loss(self, model: SpectrogramModel, batch: dict, key: jax.Array, others: Others) -> tuple[jax.Array, dict]:
        """Returns the decoder's loss averaged over the valid frames of a batch, as in the paper, and its metrics."""
        loss_key, dropout_key = jax.random.split(key)
        rngs = nnx.Rngs(dropout=dropout_key)
        conditioning = model.encode(batch["tokens"], batch["context"], batch["context_mask"], WINDOW_FRAMES, rngs)
        arguments = (conditioning, batch["target"], batch["target_mask"], loss_key)
        if self.distillation is None:
            losses, metrics = model.decoder.loss(*arguments, rngs)
        else:
            teacher, substeps = others.frozen["teacher"], self.distillation.substeps
            losses, metrics = model.decoder.distillation_loss(teacher, substeps, *arguments)
        frames = batch["target_mask"].sum(-1)
        if "overfull" in batch:
            metrics = {**metrics, "overfull": batch["overfull"].mean()}
        return (losses * frames).sum() / jax.numpy.maximum(frames.sum(), 1), metrics

    @functools.cached_property
    def heldout(self) -> dict[str, np.ndarray]:
        """Evenly spaced windows of the held-out split, the same in every run; see `heldout.cut_windows`."""
        return cut_windows(
            self.mixture, self.heldout_split, self.heldout_windows, self.tokenizer, self._tokens_per_note
        )

    def save(self, folder: pathlib.Path, model: SpectrogramModel, card: dict) -> None:
        """Exports the model, with the defaults of settings that only matter in training (dtype and remat)."""
        plain = dataclasses.replace(self.config.model, dtype="float32", remat=False)
        save(folder, SPECTROGRAM, model, dataclasses.replace(self.config, model=plain), card)


def _check_same(checkpoint: str, theirs: SpectrogramConfig, ours: SpectrogramConfig) -> None:
    """Raises InputError if the config of a checkpoint differs from ours in a setting that its weights depend on."""
    their_settings, our_settings = (
        _flat({**to_dict(config.model), **to_dict(config.decoder), "velocity_bins": config.tokenizer.velocity_bins})
        for config in (theirs, ours)
    )
    # Differences of kind come first, because those of other settings follow from them.
    names = sorted(their_settings.keys() | our_settings.keys(), key=lambda name: (not name.endswith("kind"), name))
    for name in names:
        changeable = name.removeprefix("mean_decoder.").startswith(_CHANGEABLE)
        if their_settings.get(name) != our_settings.get(name) and not changeable:
            values = f"its {name} is {their_settings.get(name)!r}, the config's {our_settings.get(name)!r}"
            raise InputError(f"cannot train from {checkpoint}: {values}")


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens nested settings to dotted names."""
    flat = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
