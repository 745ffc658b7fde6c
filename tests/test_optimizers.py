import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from spectrodiff.errors import InputError
from spectrodiff.training.optimizers import adafactor, adamw, muon, warmup_cosine


def test_schedule_is_warmup_then_constant_or_cosine():
    constant, cosine = warmup_cosine(2.0, 10, None), warmup_cosine(2.0, 10, 110)
    for step, rate in ((0, 0.0), (5, 1.0), (10, 2.0), (500, 2.0)):
        assert float(constant(step)) == pytest.approx(rate)
    for step, rate in ((5, 1.0), (10, 2.0), (60, 1.0), (110, 0.0), (500, 0.0)):
        assert float(cosine(step)) == pytest.approx(rate, abs=1e-6)
    assert float(warmup_cosine(2.0, 0, None)(0)) == 2.0


def test_cosine_shorter_than_warmup_raises_input_error():
    with pytest.raises(InputError, match=r"100.*warmup.*200"):
        adamw(0.1, warmup=200, steps=100)


@pytest.mark.parametrize(
    "optimizer", [adafactor(0.1), adamw(0.1), muon(0.1, adam_rate=0.1)], ids=["adafactor", "adamw", "muon"]
)
def test_optimizer_minimises_a_quadratic(optimizer):
    target = {"mlp": jax.random.normal(jax.random.key(0), (8, 8)), "scale": jnp.arange(8.0)}

    def loss(params):
        return sum(jnp.sum((params[name] - target[name]) ** 2) for name in target)

    @jax.jit
    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), loss(params)

    params = jax.tree.map(jnp.zeros_like, target)
    _, losses = jax.lax.scan(step, (params, optimizer.init(params)), length=200)
    assert float(losses[-1]) < 0.1 * float(losses[0])


@pytest.mark.parametrize("make", [adafactor, adamw, functools.partial(muon, adam_rate=0.1)])
def test_clip_limits_the_global_gradient_norm(make):
    """The norm is taken over all leaves; gradients below the limit stay unchanged."""
    params = {"mlp": jnp.ones((8, 8)), "scale": jnp.ones(4)}

    def random(seed, norm):
        drawn = jax.tree.map(lambda x: jax.random.normal(jax.random.key(seed + x.size), x.shape), params)
        return optax.tree.scale(norm / optax.global_norm(drawn), drawn)

    def train_on(optimizer, *norms):
        weights, state, update = params, optimizer.init(params), jax.jit(optimizer.update)
        for seed, norm in enumerate(norms):
            updates, state = update(random(seed, norm), state, weights)
            weights = optax.apply_updates(weights, updates)
        return weights

    clipped = train_on(make(0.1, clip=2.0), 100.0, 1.0, 7.0)
    expected = train_on(make(0.1, clip=None), 2.0, 1.0, 2.0)
    unclipped = train_on(make(0.1, clip=None), 100.0, 1.0, 7.0)
    for name in params:
        np.testing.assert_allclose(clipped[name], expected[name], rtol=1e-5)
        assert not np.allclose(clipped[name], unclipped[name], rtol=1e-2)


def test_muon_updates_attention_and_mlps_and_adam_the_rest(our_model):
    params = nnx.state(our_model, nnx.Param)
    gradients = jax.tree.map(lambda x: jax.random.normal(jax.random.key(x.size), x.shape), params)

    def updates_of(optimizer):
        updates, _ = jax.jit(optimizer.update)(gradients, optimizer.init(params), params)
        return {".".join(map(str, path)): np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(updates)}

    matrices, rest = updates_of(muon(1.0, adam_rate=0.0)), updates_of(muon(0.0, adam_rate=1.0))
    by_muon = {name for name, update in matrices.items() if update.any()}
    assert by_muon.isdisjoint(name for name, update in rest.items() if update.any())
    kinds = {name.split(".")[-2] for name in by_muon}
    assert kinds == {"query", "key", "value", "out", "wi_0", "wi_1", "wo"}
    assert "decoder.out.kernel" not in by_muon
    assert {name for name in matrices if "film" in name or "embedding" in name or name.endswith("scale")}.isdisjoint(
        by_muon
    )
    singular = np.linalg.svd(matrices["decoder.blocks.0.mlp.wo.kernel"], compute_uv=False)
    assert singular.max() / singular.min() < 2.0
