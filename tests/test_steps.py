"""Training steps of a linear model, compared with values computed by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from spectrodiff.models.layers import Buffer
from spectrodiff.training import state as states
from spectrodiff.training.steps import make_train_step


class Line(nnx.Module):
    def __init__(self):
        self.slope = nnx.Param(jnp.array([2.0]))
        self.table = Buffer(jnp.array([5.0]))


def loss(model, batch, key, others):
    error = model.slope[...] * batch["x"] + model.table[...] - batch["y"]
    return jnp.mean(error**2), {"drawn": jax.random.uniform(key)}


BATCH = {"x": jnp.array([1.0, 3.0]), "y": jnp.array([4.0, 6.0])}  # errors 3 and 5
RATE = 0.01


def make_step(graph, optimizer, loss=loss, **options):
    merge = functools.partial(nnx.merge, graph)
    return make_train_step(merge, loss, optimizer, jax.random.key(0), ema_decay=0.2, **options)


def new_state(optimizer, params, buffers):
    return states.create(jax.tree.map(jnp.copy, params), jax.tree.map(jnp.copy, buffers), optimizer)


@pytest.fixture(scope="module")
def line():
    """A function that makes a new state, and the training step."""
    graph, params, buffers = states.split(Line())
    optimizer = optax.sgd(RATE)
    step = make_step(graph, optimizer)
    return lambda: new_state(optimizer, params, buffers), step


def test_step_applies_the_gradient_and_updates_the_ema(line):
    make, step = line
    state, metrics = step(make(), BATCH)
    gradient = np.mean([2 * 3 * 1, 2 * 5 * 3])
    slope = 2.0 - RATE * gradient
    assert int(state.step) == 1
    assert float(state.params["slope"][0]) == pytest.approx(slope)
    assert float(state.frozen["table"][0]) == 5.0
    assert float(metrics["loss"]) == pytest.approx(np.mean([9, 25]))
    assert float(metrics["gradient_norm"]) == pytest.approx(gradient)
    assert float(state.ema["slope"][0]) == pytest.approx(0.1 * 2.0 + 0.9 * slope)  # decay (1 + 0) / (10 + 0)


def test_step_donates_its_state_and_transfers_nothing(line):
    """A batch that is on the device already, such as one of a resident corpus, stays there."""
    make, step = line
    state, batch = make(), jax.device_put(BATCH)
    step(make(), batch)  # compiled, with its constants on the device
    with jax.transfer_guard("disallow"):
        step(state, batch)
        with pytest.raises(jax.errors.JaxRuntimeError, match="host-to-device"):
            step(make(), jax.tree.map(np.asarray, BATCH))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(batch))


def test_ema_decay_warms_up_to_the_given_value(line):
    make, step = line
    state = make()
    average, slope = 2.0, [2.0]
    for i in range(6):
        state, _ = step(state, BATCH)
        slope.append(float(state.params["slope"][0]))
        decay = min(0.2, (1 + i) / (10 + i))
        average = decay * average + (1 - decay) * slope[-1]
    assert float(state.ema["slope"][0]) == pytest.approx(average)
    assert (1 + 5) / (10 + 5) > 0.2


def test_random_key_depends_on_the_step_number(line):
    make, step = line
    draws = []
    for _ in range(2):
        state = make()
        for _ in range(3):
            state, metrics = step(state, BATCH)
            draws.append(float(metrics["drawn"]))
    assert draws[:3] == draws[3:]
    assert len(set(draws)) == 3
    assert draws[1] == float(jax.random.uniform(jax.random.fold_in(jax.random.key(0), 1)))


@pytest.mark.parametrize("x", [[1.0, np.nan], [1.0, 1e30]])  # 1e30 overflows when squared
def test_non_finite_step_changes_only_the_step_number(line, x):
    make, step = line
    state, metrics = step(make(), BATCH | {"x": jnp.array(x)})
    assert float(metrics["skipped"]) == 1.0
    assert not np.isfinite(float(metrics["loss"]))
    assert int(state.step) == 1
    for after, before in zip(
        jax.tree.leaves(state._replace(step=0)), jax.tree.leaves(make()._replace(step=0)), strict=True
    ):
        np.testing.assert_array_equal(after, before)
    state, metrics = step(state, BATCH)
    assert float(metrics["skipped"]) == 0.0
    assert float(state.params["slope"][0]) != 2.0


def test_gradient_accumulation_matches_the_whole_batch():
    """Each part holds every second example; only random numbers differ between parts."""
    graph, params, buffers = states.split(Line())
    batch = {"x": jnp.array([1.0, 3.0, -2.0, 0.5]), "y": jnp.array([4.0, 6.0, 1.0, 2.0])}
    results = []
    for parts in (1, 2):
        optimizer = optax.sgd(RATE)
        step = make_step(graph, optimizer, accumulate=parts)
        results.append(step(new_state(optimizer, params, buffers), batch))
    (whole, wholes), (parts, theirs) = results
    assert float(parts.params["slope"][0]) == pytest.approx(float(whole.params["slope"][0]))
    assert float(theirs["loss"]) == pytest.approx(float(wholes["loss"]))
    assert float(theirs["gradient_norm"]) == pytest.approx(float(wholes["gradient_norm"]))
    draws = [jax.random.uniform(jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 0), i)) for i in (0, 1)]
    assert float(theirs["drawn"]) == pytest.approx(float(np.mean(draws)))


def test_overflowing_update_is_skipped():
    graph, params, buffers = states.split(Line())
    optimizer = optax.sgd(3e38)
    state, metrics = make_step(graph, optimizer)(new_state(optimizer, params, buffers), BATCH)
    assert np.isfinite(float(metrics["gradient_norm"]))
    assert float(metrics["skipped"]) == 1.0
    assert float(state.params["slope"][0]) == float(state.ema["slope"][0]) == 2.0


# ---- the EMA and frozen modules in a loss


@pytest.mark.parametrize("parts", [1, 2])
def test_loss_gets_the_previous_ema_without_gradient(parts):
    """The gradient is 2 (slope - average) + 1, with the average as a constant."""

    def distance_to_ema(model, batch, key, others):
        average = others.ema()
        gap = model.slope[...] - average.slope[...] + 0.0 * batch["x"].sum()
        return jnp.sum(gap**2 + model.slope[...]), {"average": average.slope[...][0], "table": average.table[...][0]}

    graph, params, buffers = states.split(Line())
    optimizer = optax.sgd(RATE)
    step = make_step(graph, optimizer, distance_to_ema, accumulate=parts)
    state, slope, average = new_state(optimizer, params, buffers), 2.0, 2.0
    for i in range(4):
        state, metrics = step(state, BATCH)
        assert float(metrics["average"]) == pytest.approx(average)
        assert float(metrics["table"]) == 5.0
        slope -= RATE * (2 * (slope - average) + 1)
        decay = min(0.2, (1 + i) / (10 + i))
        average = decay * average + (1 - decay) * slope
        assert float(state.params["slope"][0]) == pytest.approx(slope)


class Teacher(nnx.Module):
    def __init__(self, size):
        self.kernel = nnx.Param(jax.random.normal(jax.random.key(1), (size, size)))


@pytest.mark.parametrize("parts", [1, 2])
def test_frozen_module_weights_are_program_arguments(parts):
    """Other weights therefore do not recompile, and the program text contains no 256 KB of constants."""

    def imitate(model, batch, key, others):
        return jnp.mean((model.slope[...] - others.frozen["teacher"].kernel[...].sum()) ** 2 + 0 * batch["x"]), {}

    graph, params, buffers = states.split(Line())
    optimizer, teacher = optax.sgd(RATE), Teacher(256)
    step = make_step(graph, optimizer, imitate, accumulate=parts, frozen_modules={"teacher": teacher})
    total = float(teacher.kernel[...].sum())
    state, metrics = step(new_state(optimizer, params, buffers), BATCH)
    assert float(metrics["loss"]) == pytest.approx((2.0 - total) ** 2, rel=1e-4)
    assert float(state.params["slope"][0]) == pytest.approx(2.0 - RATE * 2 * (2.0 - total), rel=1e-4)
    np.testing.assert_array_equal(teacher.kernel[...], Teacher(256).kernel[...])  # neither trained nor donated
    doubled = step._replace(others_state=jax.tree.map(lambda x: 2 * x, step.others_state))
    _, metrics = doubled(new_state(optimizer, params, buffers), BATCH)
    assert float(metrics["loss"]) == pytest.approx((2.0 - 2 * total) ** 2, rel=1e-4)
    assert step.jitted._cache_size() == 1
    assert len(step.lower(new_state(optimizer, params, buffers), BATCH).as_text()) < 50_000
