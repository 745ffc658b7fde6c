"""Layers of the T5 1.1 architecture, which all transformers of the model use.

As in T5 1.1, no layer has a bias, normalisation is RMSNorm, and attention logits are not scaled.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Key

from spectrodiff.config import ModelConfig

_lecun = nnx.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")


class Dense(nnx.Module):
    """A linear layer without bias, computed in the dtype of its input."""

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs, kernel_init=_lecun):
        self.kernel = nnx.Param(kernel_init(rngs.params(), (inputs, outputs), jnp.float32))

    def __call__(self, x: Float[Array, "... i"]) -> Float[Array, "... o"]:
        kernel = self.kernel[...].astype(x.dtype)
        # One product instead of a batched one: XLA's CPU backend computes its gradient three times as fast.
        return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], kernel.shape[1])


class _RMSNorm(nnx.RMSNorm):
    def __call__(self, x):
        return super().__call__(x).astype(x.dtype)  # flax returns the dtype of the scale, float32


def rms_norm(width: int, *, rngs: nnx.Rngs) -> nnx.RMSNorm:
    """Returns an RMSNorm layer, which computes in float32 and returns the dtype of its input."""
    return _RMSNorm(width, epsilon=1e-6, rngs=rngs)


def dropout(
    x: Float[Array, "*b t d"], rate: float, rngs: nnx.Rngs | None, *, per_position: bool = False
) -> Float[Array, "*b t d"]:
    """Applies dropout to features, with the same mask at all positions t unless `per_position`, as in T5X.

    It is the identity if `rngs` is None or the rate is 0.
    """
    if rngs is None or rate == 0.0:
        return x
    shape = x.shape if per_position else (*x.shape[:-2], 1, x.shape[-1])
    kept = jax.random.bernoulli(rngs.dropout(), 1.0 - rate, shape)
    return jnp.where(kept, x / (1.0 - rate), 0.0)


class Buffer(nnx.Variable):
    """A variable that is stored in checkpoints but not trained."""


def sinusoids(positions: Float[Array, "*n"], width: int, longest: float) -> Float[Array, "*n width"]:
    """Embeds `positions` as width/2 sines and then width/2 cosines.

    Their angular frequencies form a geometric series from 1 to 1 / `longest`.
    """
    rates = jnp.exp(-jnp.log(longest) * jnp.arange(width // 2) / (width // 2 - 1))
    angles = positions[..., None] * rates
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)


_LONGEST = 1e4  # inverse angular frequency of the slowest sinusoid of a position table


class Positions(nnx.Module):
    """A fixed table of sinusoidal position embeddings, [length, width].

    Its channels are permuted and its phases shifted at random when it is built, as in the released code.
    """

    def __init__(self, length: int, width: int, *, rngs: nnx.Rngs):
        phase_key, permutation_key = jax.random.split(rngs.params())
        rates = jnp.exp(-jnp.log(_LONGEST) * jnp.arange(width // 2) / (width // 2 - 1))
        phases = jax.random.uniform(phase_key, (2, width // 2), maxval=2 * np.pi)
        angles = jnp.arange(length)[:, None, None] * rates + phases
        table = jnp.concatenate([jnp.sin(angles[:, 0]), jnp.cos(angles[:, 1])], -1)
        self.table = Buffer(jax.random.permutation(permutation_key, table, axis=1))

    def __call__(self, length: int) -> Float[Array, "n d"]:
        return self.table[:length]

    def at(self, positions: Float[Array, "*n"]) -> Float[Array, "*n d"]:
        """Returns embeddings at fractional positions by linear interpolation. Positions are clipped to the table."""
        table = self.table[...]
        positions = jnp.clip(positions, 0.0, table.shape[0] - 1.0)
        low = jnp.minimum(positions.astype(jnp.int32), table.shape[0] - 2)
        fraction = (positions - low)[..., None]
        return (1.0 - fraction) * table[low] + fraction * table[low + 1]


_MASKED_LOGIT = -1e9


class KeyValue(NamedTuple):
    """The keys and values of an attention layer, with heads folded into the batch: [batch * heads, n, head dim]."""

    key: Float[Array, "bh n k"]
    value: Float[Array, "bh n k"]


@jax.custom_jvp
def _logits(query, key):
    """Returns query key^T in float32, from inputs of 16 or 32 bits.

    Its gradient is rounded to the dtype of the inputs, so that the products of the backward pass are in that dtype too.
    """
    return jnp.matmul(query, key.swapaxes(1, 2), preferred_element_type=jnp.float32)


@_logits.defjvp
def _logits_jvp(primals, tangents):
    (query, key), (query_dot, key_dot) = primals, tangents
    # The transpose of the conversion to float32 rounds the gradient.
    tangent = query_dot @ key.swapaxes(1, 2) + query @ key_dot.swapaxes(1, 2)
    return _logits(query, key), tangent.astype(jnp.float32)


@functools.partial(jax.checkpoint, static_argnums=3)
def _attend(
    query: Float[Array, "bh t k"],
    keys_values: KeyValue,
    mask: Bool[Array, "b #t n"] | None,
    rate: float,
    key: Key[Array, ""] | None,
) -> Float[Array, "bh t k"]:
    """Returns the attended values, with dropout of the weights at `rate` if there is a `key`.

    The backward pass computes the weights again, as in FlashAttention (Dao et al. 2022), because storing them for every
    head would take most of a training step's memory.
    """
    logits = _logits(query, keys_values.key)
    if mask is not None:
        logits = jnp.where(jnp.repeat(mask, len(query) // len(mask), 0), logits, _MASKED_LOGIT)
    # The softmax is normalised after the product with the values, on fewer elements: half the time on a CPU.
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
    dropped = dropout(weights, rate, None if key is None else nnx.Rngs(dropout=key))
    attended = dropped.astype(query.dtype) @ keys_values.value
    return (attended / weights.sum(-1, keepdims=True)).astype(query.dtype)


def _attend_fused(
    query: Float[Array, "bh t k"],
    keys_values: KeyValue,
    mask: Bool[Array, "b #t n"] | None,
    heads: int,
    implementation: str = "cudnn",
) -> Float[Array, "bh t k"]:
    """Computes `_attend` without dropout by a fused kernel, which does not store the weights either.

    `implementation` is that of `jax.nn.dot_product_attention`.
    """

    def split_heads(x):
        return x.reshape(-1, heads, *x.shape[1:]).swapaxes(1, 2)

    if mask is not None:  # cuDNN's bias does not broadcast over queries
        mask = jnp.broadcast_to(mask, (len(mask), query.shape[1], mask.shape[2]))[:, None]
    arrays = map(split_heads, (query, *keys_values))
    attended = jax.nn.dot_product_attention(*arrays, mask=mask, scale=1.0, implementation=implementation)
    return attended.swapaxes(1, 2).reshape(query.shape)


def _has_fused_attention(device: jax.Device) -> bool:
    """Returns whether cuDNN has FlashAttention for the device: NVIDIA GPUs since Ampere, compute capability 8.0."""
    return "cuda" in device.client.platform_version and float(device.compute_capability) >= 8.0


def _is_fusable(query: Float[Array, "bh t k"], keys: Float[Array, "bh n k"]) -> bool:
    """Returns whether `_attend_fused` takes arrays of these shapes and dtypes on the device of this process.

    cuDNN takes 16-bit floats, an even number of positions (where there is a mask and a gradient), and head dimensions
    up to 128 that are multiples of 8. With several devices, XLA's partitioner divides our own code instead.
    """
    device, *others = jax.devices()
    even = query.shape[1] % 2 == 0 and keys.shape[1] % 2 == 0
    fits = query.shape[2] <= 128 and query.shape[2] % 8 == 0 and query.dtype in (jnp.bfloat16, jnp.float16)
    return even and fits and not others and _has_fused_attention(device)


class Attention(nnx.Module):
    """Multi-head attention without logit scaling: the factor 1/sqrt(head_dim) is in the query's initialiser."""

    def __init__(self, cfg: ModelConfig, *, rngs: nnx.Rngs):
        self.heads, self.rate = cfg.heads, cfg.dropout
        inner = cfg.heads * cfg.head_dim
        query_init = nnx.initializers.variance_scaling(1.0 / cfg.head_dim, "fan_in", "truncated_normal")
        self.query = Dense(cfg.width, inner, rngs=rngs, kernel_init=query_init)
        self.key = Dense(cfg.width, inner, rngs=rngs)
        self.value = Dense(cfg.width, inner, rngs=rngs)
        self.out = Dense(inner, cfg.width, rngs=rngs)

    def _fold_heads(self, x: Float[Array, "b n e"]) -> Float[Array, "bh n k"]:
        b, n, _ = x.shape
        return x.reshape(b, n, self.heads, -1).transpose(0, 2, 1, 3).reshape(b * self.heads, n, -1)

    def keys_values(self, x: Float[Array, "b n d"]) -> KeyValue:
        """Projects `x` to keys and values, which can be used in any number of calls."""
        return KeyValue(self._fold_heads(self.key(x)), self._fold_heads(self.value(x)))

    def __call__(
        self,
        x: Float[Array, "b t d"],
        keys_values: KeyValue,
        mask: Bool[Array, "b n"] | Bool[Array, "#b t n"] | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b t d"]:
        """Attends from `x` to the keys and values at the positions n where `mask` is true.

        `mask` is shared by all queries of an example, or has one row per query. The output is 0 for queries whose mask
        is false everywhere.
        """
        b, t, _ = x.shape
        if mask is not None:
            mask = mask[:, None] if mask.ndim == 2 else jnp.broadcast_to(mask, (b, *mask.shape[1:]))
        key = rngs.dropout() if rngs is not None and self.rate else None
        query = self._fold_heads(self.query(x))
        if key is None and _is_fusable(query, keys_values.key):
            attended = _attend_fused(query, keys_values, mask, self.heads)
        else:
            attended = _attend(query, keys_values, mask, self.rate, key)
        attended = attended.reshape(b, self.heads, t, -1).transpose(0, 2, 1, 3).reshape(b, t, -1)
        output = self.out(attended)
        return output if mask is None else jnp.where(mask.any(-1)[..., None], output, 0.0)


class MLP(nnx.Module):
    """The gated-GELU feed-forward layer of T5 1.1 (Shazeer 2020)."""

    def __init__(self, cfg: ModelConfig, *, rngs: nnx.Rngs):
        self.rate = cfg.dropout
        self.wi_0 = Dense(cfg.width, cfg.mlp_width, rngs=rngs)
        self.wi_1 = Dense(cfg.width, cfg.mlp_width, rngs=rngs)
        self.wo = Dense(cfg.mlp_width, cfg.width, rngs=rngs)

    def __call__(self, x: Float[Array, "b t d"], rngs: nnx.Rngs | None = None) -> Float[Array, "b t d"]:
        hidden = nnx.gelu(self.wi_0(x), approximate=True) * self.wi_1(x)
        return self.wo(dropout(hidden, self.rate, rngs))


def remat(block: nnx.Module, *args):
    """Returns `block(*args)`; the backward pass recomputes its activations instead of storing them.

    Dropout masks are the same in the recomputation.
    """
    # A copy, because nnx.remat writes to its arguments, which flax forbids for modules from outside a scan's body.
    return nnx.remat(type(block).__call__)(nnx.clone(block), *args)


class EncoderBlock(nnx.Module):
    """A transformer encoder block with pre-normalisation: self-attention, then an MLP."""

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
    """A stack of encoder blocks, followed by normalisation."""

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
