"""The seam between what a window is conditioned on and its log-mel: what every decoder is given, and what it does."""

import abc
import dataclasses
import math
from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from spectrodiff.config import Choice, ModelConfig, from_dict, to_dict
from spectrodiff.diffusion.samplers import Keys
from spectrodiff.errors import InputError
from spectrodiff.models.layers import KeyValue

Metrics = dict[str, Float[Array, ""]]


class Conditioning(NamedTuple):
    """What a window is conditioned on, encoded: notes, then context frames, with a mask over both.

    `sketch` is the note roll's first estimate of the mel, in the space the decoder works in; None without a note roll.
    `context` is the previous window itself, scaled log-mel with its real frames first, and `context_mask` tells these.
    """

    encoded: Float[Array, "b n d"]
    mask: Bool[Array, "b n"]
    sketch: Float[Array, "b t m"] | None
    context: Float[Array, "b c m"]
    context_mask: Bool[Array, "b c"]

    @property
    def prior(self) -> Float[Array, "b t m"] | float:
        """The first estimate that decoders start from: the sketch, or 0."""
        return 0.0 if self.sketch is None else self.sketch

    def keep(self, kept: Bool[Array, "b"]) -> "Conditioning":
        """Empties the examples that are not kept, as condition dropout does."""
        sketch = None if self.sketch is None else jnp.where(kept[:, None, None], self.sketch, 0.0)
        return self._replace(
            mask=self.mask & kept[:, None], sketch=sketch, context_mask=self.context_mask & kept[:, None]
        )


class KVCache(NamedTuple):
    """What a decoder's blocks need of the conditioning, computed once a window, however often they are evaluated."""

    layers: tuple[KeyValue, ...]  # the keys and values of each block's cross-attention
    mask: Bool[Array, "b n"]
    sketch: Float[Array, "b t m"] | None

    @classmethod
    def of(cls, blocks: Iterable[Any], conditioning: Conditioning) -> "KVCache":
        """The cache of blocks that have a `cross_attention` each."""
        layers = tuple(block.cross_attention.keys_values(conditioning.encoded) for block in blocks)
        return cls(layers, conditioning.mask, conditioning.sketch)


@runtime_checkable
class Decoder(Protocol):
    """A network that learns log-mels from conditioning, and makes them. It is an nnx.Module."""

    def loss(
        self,
        conditioning: Conditioning,
        target: Float[Array, "b t m"],
        frame_mask: Bool[Array, "b t"],
        key: jax.Array,
        rngs: nnx.Rngs | None = None,
    ) -> tuple[Float[Array, " b"], Metrics]:
        """Each example's mean loss over its real frames, and what else is worth a line in the log.

        `target` is scaled log-mel; `key` draws what the loss is random in, `rngs` dropout, which is off without it.
        """

    def sample(self, conditioning: Conditioning, frames: int, keys: Keys, options: Any) -> Float[Array, "b {frames} m"]:
        """Scaled log-mels in [-1, 1], each row's randomness by its own key.

        `options` are those of `DecoderConfig.options`.
        """


@dataclasses.dataclass(frozen=True)
class NoSampling:
    """The sampling of a decoder that leaves nothing to choose."""


@dataclasses.dataclass(frozen=True)
class DecoderConfig(Choice, abc.ABC):
    """What a decoder is, how it learns, and how it is sampled unless something else is asked for.

    It works in the space x = (scaled mel - mean) / std. `sampling` is a frozen dataclass of what there is to choose.
    """

    mean: float = 0.0
    std: float = 1.0
    sampling: NoSampling = NoSampling()  # in a subclass, its own

    def __post_init__(self):
        if not math.isfinite(self.mean):
            raise InputError(f"mean is {self.mean!r}; choose a finite number")
        if not 0 < self.std < math.inf:
            raise InputError(f"std is {self.std!r}; choose a number above 0")

    @property
    def title(self) -> str:
        """A few words for people."""
        return self.kind

    @abc.abstractmethod
    def build(self, model: ModelConfig, *, rngs: nnx.Rngs) -> Decoder:
        """The decoder, with new parameters."""

    def options(self) -> Any:
        """What `Decoder.sample` takes: `sampling` as a pytree, whose numbers can change without a new program."""
        return None

    def sampled(self, **asked: Any) -> "DecoderConfig":
        """The same decoder with other values in `sampling`; None leaves a value as it is.

        Raises:
          InputError: a value is out of range, or this kind of decoder has no such option.
        """
        asked = {name: value for name, value in asked.items() if value is not None}
        has = to_dict(self.sampling)
        if unknown := sorted(asked.keys() - has.keys()):
            raise InputError(
                f"the {self.kind} decoder has no {' or '.join(unknown)}; its options are {', '.join(has) or 'none'}"
            )
        return dataclasses.replace(self, sampling=from_dict(type(self.sampling), has | asked, "options"))
