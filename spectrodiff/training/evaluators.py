"""What is found out about a model while it trains, each by an object of its own that a config names and times."""

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
from spectrodiff.models.diffusion_decoder import DiffusionDecoder
from spectrodiff.training import heldout

Weights = tuple[nnx.GraphDef, nnx.State, nnx.State]  # a module as `state.split` takes it apart
Pictures = Mapping[str, UInt8[np.ndarray, "_h _w 3"]]
Sounds = Mapping[str, Float32[np.ndarray, " _s"]]


class Findings(NamedTuple):
    """Figures, pictures and sounds by their names in the log."""

    figures: Mapping[str, float] = types.MappingProxyType({})
    pictures: Pictures = types.MappingProxyType({})
    sounds: Sounds = types.MappingProxyType({})


@runtime_checkable
class Evaluator(Protocol):
    """Looks at a task's averaged weights every so many steps and after the last one; `every` None: before the first."""

    every: int | None

    def __call__(self, task: Any, weights: Weights) -> Findings: ...


@dataclasses.dataclass(frozen=True)
class Every:
    """What evaluators share: how many steps lie between two evaluations."""

    every: int = 1000

    def __post_init__(self):
        if self.every < 1:
            raise InputError(f"{type(self).__name__}.every is {self.every}; choose 1 or more")


@gin.register
@dataclasses.dataclass(frozen=True)
class Guesses:
    """What guesses score on the held-out windows, in nats: their mean, another window, the mean of the context."""

    every = None

    def __call__(self, task: Any, weights: Weights) -> Findings:
        return Findings(heldout.guesses(task.heldout))


@gin.register
@dataclasses.dataclass(frozen=True)
class MelError(Every):
    """Windows sampled after their true contexts, against the true ones; of several datasets each apart too.

    `heldout_mel_l1` is log-mel L1 in nats; `heldout_roughness` the mean absolute second difference of log-mels over
    frames, relative to that of the true ones: below 1 a model blurs in time.
    """

    sampling: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # {"steps": 20}; else the config's

    def __call__(self, task: Any, weights: Weights) -> Findings:
        sampled = heldout.sample_windows(weights, task.config.decoder.sampled(**self.sampling), task.heldout)
        return Findings(heldout.mel_figures(task.heldout, task.mixture.names, sampled))


@gin.register
@dataclasses.dataclass(frozen=True)
class HeldoutLoss(Every):
    """`heldout_loss`: the training loss on the held-out windows, with random numbers that are always the same."""

    def __call__(self, task: Any, weights: Weights) -> Findings:
        losses = heldout.over_batches(functools.partial(_losses, *weights), task.heldout)
        return Findings(heldout.loss_figures(task.heldout, task.mixture.names, losses))


@gin.register
@dataclasses.dataclass(frozen=True)
class LossByTime(Every):
    """A diffusion decoder's loss by noise level, nothing dropped, at fixed times that are uniform in [0, 1).

    `heldout_loss` is over all times; `heldout_loss_band/0` to `/3` are of four equal bands of time, from the least
    noise (time 0 has none) to the most (time 1 is nothing else).
    """

    def __call__(self, task: Any, weights: Weights) -> Findings:
        timed = {**task.heldout, "time": heldout.stratified_times(len(task.heldout["tokens"]))}
        losses = heldout.over_batches(functools.partial(_losses_by_time, *weights), timed)
        bands = {f"heldout_loss_band/{band}": float(loss) for band, loss in enumerate(losses.mean(0))}
        return Findings({**heldout.loss_figures(task.heldout, task.mixture.names, losses.mean(1)), **bands})


@gin.register
@dataclasses.dataclass(frozen=True)
class Gallery(Every):
    """A few held-out windows, true beside sampled: mels in one picture, and audio by Griffin-Lim."""

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
    if not isinstance(model.decoder, DiffusionDecoder):
        raise InputError("LossByTime is for diffusion decoders; name HeldoutLoss in train.evaluators instead")
    conditioning = model.encode(batch["tokens"], batch["context"], batch["context_mask"], WINDOW_FRAMES)

    def loss(band):
        time, key = band
        return model.decoder.loss_at(conditioning, batch["target"], batch["target_mask"], logsnr_at(time), key)

    return jax.lax.map(loss, (batch["time"].T, jax.random.split(key, heldout.BANDS))).T


@gin.register
@dataclasses.dataclass(frozen=True)
class CropBaseline:
    """What a vocoder scores on the held-out crops that knows nothing; see the task's `baseline`."""

    every = None

    def __call__(self, task: Any, weights: Weights) -> Findings:
        return Findings({name: float(value) for name, value in task.baseline().items()})


@gin.register
@dataclasses.dataclass(frozen=True)
class CropError(Every):
    """A vocoder's spectral losses on held-out crops, from their true mels and but for their margins."""

    def __call__(self, task: Any, weights: Weights) -> Findings:
        terms = task.heldout_losses(task.vocoder_weights(weights), jnp.asarray(task.heldout))
        return Findings({f"heldout_{name}": float(value) for name, value in terms.items()})


@gin.register
@dataclasses.dataclass(frozen=True)
class CropGallery(Every):
    """Two held-out crops as recorded and as made from their mels: mels in one picture, and audio."""

    every: int = 5000

    def __call__(self, task: Any, weights: Weights) -> Findings:
        true = task.heldout[[0, -1]]
        return Findings({}, *heldout.show_audio(true, task.reconstruct(task.vocoder_weights(weights), true)))
