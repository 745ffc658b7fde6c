"""The parts of T5 1.1 that all three stacks share: no biases anywhere, scale-only norms, unscaled attention logits."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from spectrodiff.config import ModelConfig

_lecun = nnx.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")


class Dense(nnx.Module):
    """A matrix and no bias; the product is of its input's dtype."""

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs, kernel_init=_lecun):
        self.kernel = nnx.Param(kernel_init(rngs.params(), (inputs, outputs), jnp.float32))

    def __call__(self, x: Float[Array, "... i"]) -> Float[Array, "... o"]:
        kernel = self.kernel[...].astype(x.dtype)
        # One matrix product, not a batch of them: XLA's CPU backend is three times as fast at this one's gradient.
        return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], kernel.shape[1])


class _RMSNorm(nnx.RMSNorm):
    def __call__(self, x):
        return super().__call__(x).astype(x.dtype)  # float32 before: its scale's


def rms_norm(width: int, *, rngs: nnx.Rngs) -> nnx.RMSNorm:
    """Scale only, computed in float32 and given in its input's dtype."""
    return _RMSNorm(width, epsilon=1e-6, rngs=rngs)


def dropout(
    x: Float[Array, "*b t d"], rate: float, rngs: nnx.Rngs | None, *, per_position: bool = False
) -> Float[Array, "*b t d"]:
    """Drops features while training, the same ones at all places t unless `per_position`, as T5X does.

    Without `rngs`, and at rate 0, the identity.
    """
    if rngs is None or rate == 0.0:
        return x
    shape = x.shape if per_position else (*x.shape[:-2], 1, x.shape[-1])
    kept = jax.random.bernoulli(rngs.dropout(), 1.0 - rate, shape)
    return jnp.where(kept, x / (1.0 - rate), 0.0)


class Buffer(nnx.Variable):
    """Part of a checkpoint, never trained."""


def sinusoids(positions: Float[Array, "*n"], width: int, longest: float) -> Float[Array, "*n width"]:
    """Sines, then cosines, of `positions` at width/2 rates from 1 down to 1/longest radians."""
    rates = jnp.exp(-jnp.log(longest) * jnp.arange(width // 2) / (width // 2 - 1))
    angles = positions[..., None] * rates
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)


_LONGEST = 1e4  # scale of the slowest sinusoid of a position table, in places


class Positions(nnx.Module):
    """A fixed table of sinusoids [length, width], its bands permuted and its phases shifted at random once."""

    def __init__(self, length: int, width: int, *, rngs: nnx.Rngs):
        phase_key, order_key = jax.random.split(rngs.params())
        rates = jnp.exp(-jnp.log(_LONGEST) * jnp.arange(width // 2) / (width // 2 - 1))
        phases = jax.random.uniform(phase_key, (2, width // 2), maxval=2 * np.pi)
        angles = jnp.arange(length)[:, None, None] * rates + phases
        table = jnp.concatenate([jnp.sin(angles[:, 0]), jnp.cos(angles[:, 1])], -1)
        self.table = Buffer(jax.random.permutation(order_key, table, axis=1))

    def __call__(self, length: int) -> Float[Array, "n d"]:
        return self.table[:length]

    def at(self, positions: Float[Array, "*n"]) -> Float[Array, "*n d"]:
        """Linear interpolation at fractional positions; those outside the table take its ends."""
        table = self.table[...]
        positions = jnp.clip(positions, 0.0, table.shape[0] - 1.0)
        low = jnp.minimum(positions.astype(jnp.int32), table.shape[0] - 2)
        part = (positions - low)[..., None]
        return (1.0 - part) * table[low] + part * table[low + 1]


_HIDDEN = -1e9  # the logit of what must not be seen


class KeyValue(NamedTuple):
    """Heads are folded into the batch: [batch * heads, places, head dim]."""

    key: Float[Array, "bh n k"]
    value: Float[Array, "bh n k"]


@jax.custom_jvp
def _logits(query, key):
    """`query` times `key` transposed, in float32; gradients are rounded to their dtype before they are multiplied."""
    return jnp.matmul(query, key.swapaxes(1, 2), preferred_element_type=jnp.float32)


@_logits.defjvp
def _logits_jvp(primals, tangents):
    (query, key), (query_dot, key_dot) = primals, tangents
    # Transposed, the conversion at the end rounds the gradient.
    tangent = query_dot @ key.swapaxes(1, 2) + query @ key_dot.swapaxes(1, 2)
    return _logits(query, key), tangent.astype(jnp.float32)


class Attention(nnx.Module):
    """Multi-head attention whose logits are not divided by sqrt(head_dim): the query's initialiser holds the factor."""

    def __init__(self, cfg: ModelConfig, *, rngs: nnx.Rngs):
        self.heads, self.rate = cfg.heads, cfg.dropout
        inner = cfg.heads * cfg.head_dim
        query_init = nnx.initializers.variance_scaling(1.0 / cfg.head_dim, "fan_in", "truncated_normal")
        self.query = Dense(cfg.width, inner, rngs=rngs, kernel_init=query_init)
        self.key = Dense(cfg.width, inner, rngs=rngs)
        self.value = Dense(cfg.width, inner, rngs=rngs)
        self.out = Dense(inner, cfg.width, rngs=rngs)

    def _split(self, x):
        b, n, _ = x.shape
        return x.reshape(b, n, self.heads, -1).transpose(0, 2, 1, 3).reshape(b * self.heads, n, -1)

    def keys_values(self, x: Float[Array, "b n d"]) -> KeyValue:
        """Keys and values of `memory`, to be attended to any number of times."""
        return KeyValue(self._split(self.key(x)), self._split(self.value(x)))

    def __call__(
        self,
        x: Float[Array, "b t d"],
        keys_values: KeyValue,
        mask: Bool[Array, "b n"] | Bool[Array, "#b t n"] | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b t d"]:
        """What `x` finds in `memory` where `mask` is true; nothing (zeros) where there is nothing to see.

        `mask` is one for all places t of an example, or one for each.
        """
        b, t, _ = x.shape
        logits = _logits(self._split(self.query(x)), keys_values.key)
        if mask is not None:
            mask = mask[:, None] if mask.ndim == 2 else jnp.broadcast_to(mask, (b, *mask.shape[1:]))
            logits = jnp.where(jnp.repeat(mask, self.heads, 0), logits, _HIDDEN)
        # Softmax with the division last, where there is least to divide: half the time of the usual order on a CPU.
        weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
        attended = dropout(weights, self.rate, rngs).astype(x.dtype) @ keys_values.value
        attended = (attended / weights.sum(-1, keepdims=True)).astype(x.dtype)
        attended = attended.reshape(b, self.heads, t, -1).transpose(0, 2, 1, 3).reshape(b, t, -1)
        found = self.out(attended)
        return found if mask is None else jnp.where(mask.any(-1)[..., None], found, 0.0)


class MLP(nnx.Module):
    """Gated GELU."""

    def __init__(self, cfg: ModelConfig, *, rngs: nnx.Rngs):
        self.rate = cfg.dropout
        self.wi_0 = Dense(cfg.width, cfg.mlp_width, rngs=rngs)
        self.wi_1 = Dense(cfg.width, cfg.mlp_width, rngs=rngs)
        self.wo = Dense(cfg.mlp_width, cfg.width, rngs=rngs)

    def __call__(self, x: Float[Array, "b t d"], rngs: nnx.Rngs | None = None) -> Float[Array, "b t d"]:
        hidden = nnx.gelu(self.wi_0(x), approximate=True) * self.wi_1(x)
        return self.wo(dropout(hidden, self.rate, rngs))


def remat(block: nnx.Module, *args):
    """`block(*args)`, computed again in the backward pass instead of kept, with the same dropout."""
    # A copy, because what is given to nnx.remat is written back, which a scan allows only to what was made inside it.
    return nnx.remat(type(block).__call__)(nnx.clone(block), *args)


class EncoderBlock(nnx.Module):
    """Self-attention, then an MLP, each on a normed copy of the residual stream."""

    def __init__(self, cfg: ModelConfig, *, rngs: nnx.Rngs):
        self.rate = cfg.dropout
        self.norm_attention = rms_norm(cfg.width, rngs=rngs)
        self.attention = Attention(cfg, rngs=rngs)
        self.norm_mlp = rms_norm(cfg.width, rngs=rngs)
        self.mlp = MLP(cfg, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b n d"], mask: Bool[Array, "b n"], rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b n d"]:
        h = self.norm_attention(x)
        x += dropout(self.attention(h, self.attention.keys_values(h), mask, rngs), self.rate, rngs)
        return x + dropout(self.mlp(self.norm_mlp(x), rngs), self.rate, rngs)


class Encoder(nnx.Module):
    """A stack of blocks and a final norm."""

    def __init__(self, cfg: ModelConfig, layers: int, *, rngs: nnx.Rngs):
        self.rate, self.remat = cfg.dropout, cfg.remat
        self.blocks = nnx.List(EncoderBlock(cfg, rngs=rngs) for _ in range(layers))
        self.norm = rms_norm(cfg.width, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b n d"], mask: Bool[Array, "b n"], rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b n d"]:
        x = dropout(x, self.rate, rngs)
        for block in self.blocks:
            x = remat(block, x, mask, rngs) if self.remat else block(x, mask, rngs)
        return dropout(self.norm(x), self.rate, rngs, per_position=True)
