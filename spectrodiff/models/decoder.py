"""The interface of decoders, which generate the log-mel of a window from encoded notes and context."""

import abc
import dataclasses
import math
from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import gin
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from spectrodiff.config import WINDOW_FRAMES, Choice, ModelConfig, check_whole, from_dict, to_dict
from spectrodiff.diffusion.samplers import Keys
from spectrodiff.errors import InputError
from spectrodiff.models.layers import KeyValue

Metrics = dict[str, Float[Array, ""]]
_MAX_OVERLAP = WINDOW_FRAMES // 2


class Conditioning(NamedTuple):
    """The encoded notes and context of a batch of windows.

    `encoded` has the outputs of the note encoder and then those of the context encoder, with a mask over both. `sketch`
    is the note roll's estimate of the mel, normalised as the decoder's target is, or None without a note roll.
    `context` is the scaled log-mel of up to 256 frames before the window, which come first; `context_mask` is true
    for them.
    """

    encoded: Float[Array, "b n d"]
    mask: Bool[Array, "b n"]
    sketch: Float[Array, "b t m"] | None
    context: Float[Array, "b c m"]
    context_mask: Bool[Array, "b c"]

    @property
    def prior(self) -> Float[Array, "b t m"] | float:
        """The estimate of the mel that is known before decoding: the sketch, or 0 without a note roll."""
        return 0.0 if self.sketch is None else self.sketch

    def keep(self, kept: Bool[Array, "b"]) -> "Conditioning":
        """Returns the conditioning without that of examples where `kept` is false, for classifier-free guidance."""
        sketch = None if self.sketch is None else jnp.where(kept[:, None, None], self.sketch, 0.0)
        return self._replace(
            mask=self.mask & kept[:, None], sketch=sketch, context_mask=self.context_mask & kept[:, None]
        )


class KVCache(NamedTuple):
    """The inputs of a decoder's blocks that depend on the conditioning alone, computed once per window."""

    layers: tuple[KeyValue, ...]  # keys and values of each block's cross-attention
    mask: Bool[Array, "b n"]
    sketch: Float[Array, "b t m"] | None

    @classmethod
    def of(cls, blocks: Iterable[Any], conditioning: Conditioning) -> "KVCache":
        """Computes the cache of `blocks`, each of which has a `cross_attention`."""
        layers = tuple(block.cross_attention.keys_values(conditioning.encoded) for block in blocks)
        return cls(layers, conditioning.mask, conditioning.sketch)


@runtime_checkable
class Decoder(Protocol):
    """An nnx.Module that generates log-mels from conditioning, with the loss that trains it."""

    def loss(
        self,
        conditioning: Conditioning,
        target: Float[Array, "b t m"],
        frame_mask: Bool[Array, "b t"],
        key: jax.Array,
        rngs: nnx.Rngs | None = None,
    ) -> tuple[Float[Array, " b"], Metrics]:
        """Returns each example's loss, averaged over its valid frames, and scalar metrics for the log.

        `target` is a scaled log-mel, whose valid frames are those where `frame_mask` is true. `key` draws the random
        numbers of the loss. `rngs` draws those of dropout, which is disabled if it is None.
        """

    def sample(self, conditioning: Conditioning, frames: int, keys: Keys, options: Any) -> Float[Array, "b {frames} m"]:
        """Samples scaled log-mels in [-1, 1], each row by its own random key.

        `options` is the result of `DecoderConfig.options`.
        """


@gin.register
@dataclasses.dataclass(frozen=True)
class SongSampling:
    """The base class of sampling options, with those that every decoder has: how the windows of a song are joined.

    Each window begins `overlap` frames before the end of the one before. In the second half of these frames the two are
    cross-faded, so that there is no jump. In the paper windows do not overlap.
    """

    overlap: int = dataclasses.field(default=0, kw_only=True)

    def __post_init__(self):
        check_whole(self, 0, _MAX_OVERLAP, "overlap")


@dataclasses.dataclass(frozen=True)
class DecoderConfig(Choice, abc.ABC):
    """The config of a decoder: its architecture, its training and its default sampling options.

    The decoder models normalised mels x = (scaled mel - mean) / std. `sampling` has the options, in a frozen dataclass
    derived from `SongSampling`.
    """

    mean: float = 0.0
    std: float = 1.0
    sampling: SongSampling = SongSampling()  # subclasses override its type

    def __post_init__(self):
        if not isinstance(self.sampling, SongSampling):
            raise InputError(f"sampling is {self.sampling!r}; its class has to be a subclass of SongSampling")
        if not math.isfinite(self.mean):
            raise InputError(f"mean is {self.mean!r}; choose a finite number")
        if not 0 < self.std < math.inf:
            raise InputError(f"std is {self.std!r}; choose a number above 0")

    @property
    def title(self) -> str:
        """A short description of the decoder for reports and `spectrodiff info`."""
        return self.kind

    @abc.abstractmethod
    def build(self, model: ModelConfig, *, rngs: nnx.Rngs) -> Decoder:
        """Builds the decoder with newly initialised parameters."""

    def normalise(self, scaled: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Returns scaled log-mels as the decoder models them."""
        return (scaled - self.mean) / self.std

    def unnormalise(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Returns the scaled log-mels of normalised ones: the inverse of `normalise`."""
        return self.mean + self.std * x

    @property
    def bounds(self) -> tuple[float, float]:
        """The least and the greatest value of normalised mels: scaled ones are in [-1, 1]."""
        return (-1.0 - self.mean) / self.std, (1.0 - self.mean) / self.std

    def options(self) -> Any:
        """Returns `sampling` as the pytree that `Decoder.sample` takes, so that numeric options do not recompile it."""
        return None

    def sampled(self, **asked: Any) -> "DecoderConfig":
        """Returns the config with the given sampling options; an option that is None keeps its value.

        Raises:
          InputError: an option is out of range, or this kind of decoder does not have it.
        """
        asked = {name: value for name, value in asked.items() if value is not None}
        options = to_dict(self.sampling)
        if unknown := sorted(asked.keys() - options.keys()):
            raise InputError(
                f"the {self.kind} decoder has no {' or '.join(unknown)}; its options are {', '.join(options)}"
            )
        return dataclasses.replace(self, sampling=from_dict(type(self.sampling), options | asked, "options"))
