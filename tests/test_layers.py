import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from inputs import PAPER

from spectrodiff.models import layers
from spectrodiff.models.layers import (
    MLP,
    Attention,
    Encoder,
    Positions,
    _attend_fused,
    _logits,
    dropout,
    rms_norm,
    sinusoids,
)

CFG = dataclasses.replace(PAPER.model, width=8, heads=2, head_dim=4, mlp_width=12)
X = jax.random.normal(jax.random.key(0), (2, 5, 8))
MEMORY = jax.random.normal(jax.random.key(1), (2, 7, 8))
MASK = jnp.arange(7) < jnp.array([[4], [7]])


@pytest.fixture(scope="module")
def attention():
    return Attention(CFG, rngs=nnx.Rngs(0))


def test_attention_is_softmax_of_unscaled_dot_products(attention):
    attended = attention(X, attention.keys_values(MEMORY), MASK)
    query, key, value, out = (
        np.float64(m.kernel[...]) for m in (attention.query, attention.key, attention.value, attention.out)
    )
    for b in range(2):
        heads = []
        for h in range(2):
            part = slice(4 * h, 4 * h + 4)
            logits = (X[b] @ query[:, part]) @ (MEMORY[b] @ key[:, part]).T
            weights = np.where(MASK[b], np.exp(logits), 0.0)
            heads.append(weights / weights.sum(-1, keepdims=True) @ (MEMORY[b] @ value[:, part]))
        np.testing.assert_allclose(attended[b], np.concatenate(heads, -1) @ out, atol=1e-5)


def test_masked_memory_has_no_effect(attention):
    wild = jnp.where(MASK[..., None], MEMORY, 1e3)
    seen, unseen = (attention(X, attention.keys_values(m), MASK) for m in (MEMORY, wild))
    np.testing.assert_array_equal(seen, unseen)


def test_fully_masked_memory_gives_zeros(attention):
    mask = MASK.at[0].set(False)
    found = attention(X, attention.keys_values(MEMORY), mask)
    np.testing.assert_array_equal(found[0], np.zeros((5, 8)))
    np.testing.assert_array_equal(found[1], attention(X, attention.keys_values(MEMORY), MASK)[1])


def test_attention_takes_a_mask_per_query(attention):
    """A mask that is the same for all queries equals a mask per example."""
    seen = attention.keys_values(MEMORY)
    np.testing.assert_array_equal(
        attention(X, seen, jnp.broadcast_to(MASK[:, None], (2, 5, 7))), attention(X, seen, MASK)
    )
    each = jnp.arange(7) < jnp.arange(5)[:, None]  # everything is masked for the first query
    found = attention(X, seen, each[None])
    np.testing.assert_array_equal(found[:, 0], np.zeros((2, 8)))
    for t in range(1, 5):
        alone = attention(X, seen, jnp.broadcast_to(each[t], (2, 7)))
        np.testing.assert_allclose(found[:, t], alone[:, t], atol=1e-6)


def wide_attention(dtype):
    """Attention with sizes that cuDNN supports, inputs, and a mask that hides all memory from one example."""
    attention = Attention(dataclasses.replace(CFG, width=16, heads=2, head_dim=8), rngs=nnx.Rngs(0))
    x, memory = (jax.random.normal(jax.random.key(i), (3, n, 16)).astype(dtype) for i, n in ((4, 4), (5, 6)))
    return attention, x, memory, jnp.arange(6) < jnp.array([[4], [6], [0]])


@pytest.mark.parametrize("masked", ["not at all", "by example", "by query"])
@pytest.mark.parametrize(("dtype", "within"), [(jnp.float32, 1e-5), (jnp.bfloat16, 0.03)])
def test_fused_attention_equals_ours(monkeypatch, masked, dtype, within):
    """Gradients and fully masked rows included. XLA's implementation replaces cuDNN's, which has the same interface."""
    attention, x, memory, mask = wide_attention(dtype)
    mask = {"not at all": None, "by example": mask, "by query": (jnp.arange(6) < jnp.arange(4)[:, None])[None]}[masked]

    def attended(x, memory):
        return attention(x, attention.keys_values(memory), mask)

    def loss(x, memory):
        return jnp.square(attended(x, memory).astype(jnp.float32)).sum()

    ours = attended(x, memory), *jax.grad(loss, (0, 1))(x, memory)
    monkeypatch.setattr(layers, "_is_fusable", lambda query, keys: True)
    calls = []

    def fused(*args):
        calls.append(args)
        return _attend_fused(*args, implementation="xla")

    monkeypatch.setattr(layers, "_attend_fused", fused)
    theirs = attended(x, memory), *jax.grad(loss, (0, 1))(x, memory)
    assert len(calls) == 2
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype == dtype
        scale = np.abs(np.float32(a)).max()
        np.testing.assert_allclose(np.float32(a) / scale, np.float32(b) / scale, atol=within)


def test_fused_attention_needs_16_bit_no_dropout_and_one_gpu(monkeypatch):
    taken = []

    def attended(dtype, t=4, rngs=None):
        attention, x, memory, mask = wide_attention(dtype)
        attention(x[:, :t], attention.keys_values(memory), mask, rngs)
        return bool(taken) and taken.pop()

    monkeypatch.setattr(layers, "_attend_fused", lambda query, *_: taken.append(True) or query)
    assert not attended(jnp.bfloat16)  # on a CPU
    monkeypatch.setattr(layers, "_has_fused_attention", lambda device: True)
    monkeypatch.setattr(jax, "devices", lambda: ["a GPU"])
    assert attended(jnp.bfloat16)
    assert attended(jnp.float16)
    assert not attended(jnp.float32)
    assert not attended(jnp.bfloat16, t=3)
    assert not attended(jnp.bfloat16, rngs=nnx.Rngs(dropout=0))
    monkeypatch.setattr(jax, "devices", lambda: ["a GPU", "another"])
    assert not attended(jnp.bfloat16)


def test_logit_gradients_equal_those_of_a_matrix_product():
    """In reverse and forward mode and at second order, up to rounding; in bfloat16, the gradients are rounded first."""
    keys = jax.random.split(jax.random.key(3), 4)
    query, key, query_dot, key_dot = (jax.random.normal(k, (3, n, 4)) for k, n in zip(keys, (5, 7, 5, 7), strict=True))
    weights = jax.random.normal(keys[0], (3, 5, 7))

    def plain(query, key):
        return query @ key.swapaxes(1, 2)

    def loss(logits):
        return lambda query, key: (weights * jnp.tanh(logits(query, key))).sum()

    for mine, theirs in (
        (jax.grad(loss(_logits), (0, 1))(query, key), jax.grad(loss(plain), (0, 1))(query, key)),
        (
            jax.jvp(_logits, (query, key), (query_dot, key_dot)),
            jax.jvp(plain, (query, key), (query_dot, key_dot)),
        ),
        (
            jax.jvp(jax.grad(loss(_logits)), (query, key), (query_dot, key_dot)),
            jax.jvp(jax.grad(loss(plain)), (query, key), (query_dot, key_dot)),
        ),
    ):
        for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
    halves = query.astype(jnp.bfloat16), key.astype(jnp.bfloat16)
    assert _logits(*halves).dtype == jnp.float32
    gradient = jax.grad(lambda *args: (weights * _logits(*args)).sum(), (0, 1))(*halves)
    rounded = weights.astype(jnp.bfloat16)
    np.testing.assert_array_equal(gradient[0], rounded @ halves[1])
    np.testing.assert_array_equal(gradient[1], rounded.swapaxes(1, 2) @ halves[0])


def test_initial_attention_logits_have_unit_variance():
    attention = Attention(dataclasses.replace(CFG, width=256, heads=4, head_dim=64), rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(2), (64, 256))
    query, key = (jnp.reshape(x @ m.kernel[...], (64, 4, 64)) for m in (attention.query, attention.key))
    assert float(jnp.einsum("qhk,nhk->hqn", query, key).std()) == pytest.approx(1.0, rel=0.1)


def test_mlp_is_a_gated_gelu():
    mlp = MLP(CFG, rngs=nnx.Rngs(0))
    wi_0, wi_1, wo = (np.float64(m.kernel[...]) for m in (mlp.wi_0, mlp.wi_1, mlp.wo))
    gate = X @ wi_0
    gelu = 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
    np.testing.assert_allclose(mlp(X), (gelu * (X @ wi_1)) @ wo, atol=1e-5)


def test_rms_norm_divides_by_the_root_mean_square():
    norm = rms_norm(8, rngs=nnx.Rngs(0))
    norm.scale[...] = jnp.arange(8.0)
    x = X + 3.0
    expected = x / np.sqrt(np.mean(np.square(x), -1, keepdims=True) + 1e-6) * np.arange(8)
    np.testing.assert_allclose(norm(x), expected, atol=1e-5)


def test_encoder_has_no_biases():
    state = nnx.state(Encoder(CFG, 1, rngs=nnx.Rngs(0)), nnx.Param)
    assert {path[-1] for path, _ in nnx.to_flat_state(state)} == {"kernel", "scale"}


def test_dropout_keeps_the_mean_and_needs_rngs():
    x = jnp.ones((100, 3, 100))
    for per_position in (False, True):
        dropped = np.asarray(dropout(x, 0.1, nnx.Rngs(dropout=0), per_position=per_position))
        assert (dropped == 0).mean() == pytest.approx(0.1, abs=0.01)
        assert dropped.mean() == pytest.approx(1.0, abs=0.02)
        assert (dropped == dropped[:, :1]).all() != per_position  # by default a feature is dropped at all positions
    assert dropout(x, 0.1, None) is x
    assert dropout(x, 0.0, nnx.Rngs(dropout=0)) is x


def test_sinusoid_rates_run_from_1_to_the_longest_period():
    positions = np.array([0.0, 1.0, 777.0])
    rates = np.exp(-np.log(2e4) * np.arange(8) / 7)
    assert rates[-1] == pytest.approx(1 / 2e4)
    expected = np.concatenate([np.sin(positions[:, None] * rates), np.cos(positions[:, None] * rates)], -1)
    np.testing.assert_allclose(sinusoids(jnp.array(positions), 16, 2e4), expected, atol=1e-4)


def test_position_table_has_shuffled_sinusoids():
    """A sinusoid of rate w satisfies x[n+1] + x[n-1] = 2 cos(w) x[n], whatever its phase."""
    table = np.float64(Positions(64, 8, rngs=nnx.Rngs(0)).table[...])
    middle = table[1:-1]
    cosines = ((table[2:] + table[:-2]) * middle).sum(0) / (2 * (middle**2).sum(0))
    rates = np.exp(-np.log(1e4) * np.arange(4) / 3)
    np.testing.assert_allclose(np.sort(cosines), np.sort(np.repeat(np.cos(rates), 2)), atol=1e-4)
    assert np.abs(table).max() <= 1.0
    other = Positions(64, 8, rngs=nnx.Rngs(1)).table[...]
    assert not np.allclose(table, other, atol=0.1)


def test_positions_are_interpolated_and_clamped():
    positions = Positions(16, 8, rngs=nnx.Rngs(0))
    table = positions.table[...]
    found = positions.at(jnp.array([0.0, 3.0, 3.25, 15.0, -jnp.inf, jnp.inf, 99.0]))
    expected = [table[0], table[3], 0.75 * table[3] + 0.25 * table[4], table[15], table[0], table[15], table[15]]
    np.testing.assert_allclose(found, np.stack(expected), atol=1e-6)
    np.testing.assert_array_equal(positions(5), table[:5])
