"""Evaluators, which evaluate a model on held-out data during training. Configs list them in `train.evaluators`."""

import dataclasses
import functools
import types
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import gin
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float32, UInt8

from spectrodiff.config import WINDOW_FRAMES
from spectrodiff.diffusion.schedule import logsnr_at
from spectrodiff.errors import InputError
from spectrodiff.models.diffusion_decoder import DiffusionConfig
from spectrodiff.training import heldout

Weights = tuple[nnx.GraphDef, nnx.State, nnx.State]  # graph, parameters and buffers; see `state.split`
Pictures = Mapping[str, UInt8[np.ndarray, "_h _w 3"]]
Sounds = Mapping[str, Float32[np.ndarray, " _s"]]


class Findings(NamedTuple):
    """The results of an evaluator by their names in the log: scalars, images, and audio."""

    figures: Mapping[str, float] = types.MappingProxyType({})
    pictures: Pictures = types.MappingProxyType({})
    sounds: Sounds = types.MappingProxyType({})


@runtime_checkable
class Evaluator(Protocol):
    """An object that evaluates the EMA weights of a task every `every` steps and after the last step.

    If `every` is None, it is called once, before the first step. It may have a method `check(task)`, which is called
    before anything else, and raises InputError if it cannot evaluate the task.
    """

    every: int | None

    def __call__(self, task: Any, weights: Weights) -> Findings:
        """Evaluates `weights`, which are those of the task's model."""


@dataclasses.dataclass(frozen=True)
class Every:
    """The base class of evaluators that are called every `every` steps."""

    every: int = 1000

    def __post_init__(self):
        if self.every < 1:
            raise InputError(f"{type(self).__name__}.every is {self.every}; choose 1 or more")


class OfWindows:
    """The base class of evaluators of spectrogram models."""

    def check(self, task: Any) -> None:
        """Raises InputError if `task` does not train a spectrogram model."""
        if not hasattr(task.config, "decoder"):
            raise InputError(f"{type(self).__name__} is for spectrogram models; vocoders have CropError")


class OfCrops:
    """The base class of evaluators of vocoders."""

    def check(self, task: Any) -> None:
        """Raises InputError if `task` does not train a vocoder."""
        if not hasattr(task, "vocoder_weights"):
            raise InputError(f"{type(self).__name__} is for vocoders; spectrogram models have MelError")


@gin.register
@dataclasses.dataclass(frozen=True)
class Guesses(OfWindows):
    """Log-mel L1 of trivial predictions of the held-out windows, in nats; see `heldout.guesses`."""

    every = None

    def __call__(self, task: Any, weights: Weights) -> Findings:
        return Findings(heldout.guesses(task.heldout))


@gin.register
@dataclasses.dataclass(frozen=True)
class MelError(Every, OfWindows):
    """The error of held-out windows that are sampled given their true contexts, in all and per dataset if several.

    `heldout_mel_l1` is the log-mel L1 in nats. `heldout_roughness` is the mean absolute second difference of log-mels
    over frames, relative to that of the true ones: it is below 1 if samples are too smooth in time.
    """

    sampling: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # sampling options, such as {"steps": 20}

    def check(self, task: Any) -> None:
        """Raises InputError if `task` has no decoder, or one without these sampling options."""
        super().check(task)
        task.config.decoder.sampled(**self.sampling)

    def __call__(self, task: Any, weights: Weights) -> Findings:
        sampled = heldout.sample_windows(weights, task.config.decoder.sampled(**self.sampling), task.heldout)
        return Findings(heldout.mel_figures(task.heldout, task.mixture.names, sampled))


@gin.register
@dataclasses.dataclass(frozen=True)
class HeldoutLoss(Every, OfWindows):
    """The training loss on the held-out windows, `heldout_loss`, with the same random numbers at every evaluation."""

    def __call__(self, task: Any, weights: Weights) -> Findings:
        losses = heldout.over_batches(functools.partial(_losses, *weights), task.heldout)
        return Findings(heldout.loss_figures(task.heldout, task.mixture.names, losses))


@gin.register
@dataclasses.dataclass(frozen=True)
class LossByTime(Every, OfWindows):
    """The held-out loss of a diffusion decoder by noise level, without condition dropout.

    The times of the noise levels are stratified over [0, 1) and the same at every evaluation. `heldout_loss` is the
    mean over all times; `heldout_loss_band/0` to `heldout_loss_band/3` are means over four equal bands of time, from
    the lowest noise levels to the highest.
    """

    def check(self, task: Any) -> None:
        """Raises InputError if `task` has no decoder, or one without a single diffusion process."""
        super().check(task)
        if not isinstance(task.config.decoder, DiffusionConfig):
            raise InputError("LossByTime is for diffusion decoders; name HeldoutLoss in train.evaluators instead")

    def __call__(self, task: Any, weights: Weights) -> Findings:
        timed = {**task.heldout, "time": heldout.stratified_times(len(task.heldout["tokens"]))}
        losses = heldout.over_batches(functools.partial(_losses_by_time, *weights), timed)
        bands = {f"heldout_loss_band/{band}": float(loss) for band, loss in enumerate(losses.mean(0))}
        return Findings({**heldout.loss_figures(task.heldout, task.mixture.names, losses.mean(1)), **bands})


@gin.register
@dataclasses.dataclass(frozen=True)
class Gallery(Every, OfWindows):
    """Images of the true and sampled mels of a few held-out windows, and their audio by Griffin-Lim."""

    every: int = 5000
    windows: int = 3

    def __call__(self, task: Any, weights: Weights) -> Findings:
        windows = heldout.pick(task.heldout, self.windows)
        return Findings(
            {}, *heldout.show_windows(windows, heldout.sample_windows(weights, task.config.decoder, windows))
        )


@functools.partial(jax.jit, static_argnums=0)
def _losses(graph, params, buffers, batch, key):
    model = nnx.merge(graph, params, buffers)
    conditioning = model.encode(batch["tokens"], batch["context"], batch["context_mask"], WINDOW_FRAMES)
    return model.decoder.loss(conditioning, batch["target"], batch["target_mask"], key)[0]


@functools.partial(jax.jit, static_argnums=0)
def _losses_by_time(graph, params, buffers, batch, key):
    model = nnx.merge(graph, params, buffers)
    conditioning = model.encode(batch["tokens"], batch["context"], batch["context_mask"], WINDOW_FRAMES)

    def loss(band):
        time, key = band
        return model.decoder.loss_at(conditioning, batch["target"], batch["target_mask"], logsnr_at(time), key)

    return jax.lax.map(loss, (batch["time"].T, jax.random.split(key, heldout.BANDS))).T


@gin.register
@dataclasses.dataclass(frozen=True)
class CropBaseline(OfCrops):
    """The losses of a trivial vocoder on the held-out crops; see the task's `baseline`."""

    every = None

    def __call__(self, task: Any, weights: Weights) -> Findings:
        return Findings({name: float(value) for name, value in task.baseline().items()})


@gin.register
@dataclasses.dataclass(frozen=True)
class CropError(Every, OfCrops):
    """The losses of a vocoder on held-out crops, given their true mels."""

    def __call__(self, task: Any, weights: Weights) -> Findings:
        terms = task.heldout_losses(task.vocoder_weights(weights), jnp.asarray(task.heldout))
        return Findings({f"heldout_{name}": float(value) for name, value in terms.items()})


@gin.register
@dataclasses.dataclass(frozen=True)
class CropGallery(Every, OfCrops):
    """Images of the mels of two held-out crops, recorded and generated, and their audio."""

    every: int = 5000

    def __call__(self, task: Any, weights: Weights) -> Findings:
        true = task.heldout[[0, -1]]
        return Findings({}, *heldout.show_audio(true, task.reconstruct(task.vocoder_weights(weights), true)))
