"""One update: gradients, optimiser, moving average."""

import functools
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from spectrodiff.training.state import TrainState

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


@runtime_checkable
class Loss(Protocol):
    def __call__(self, model: nnx.Module, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]: ...


def make_train_step(
    graph: nnx.GraphDef,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    average_decay: float,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The jitted step. Its randomness is `fold_in(key, step)`: restarts repeat nothing and skip nothing."""

    @functools.partial(jax.jit, donate_argnums=0)
    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        step_key = jax.random.fold_in(key, state.step)

        def loss_of(params):
            return loss(nnx.merge(graph, params, state.buffers), batch, step_key)

        (value, metrics), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(gradients, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        # Early on the average would be all initial values; a shorter memory until then.
        decay = jnp.minimum(average_decay, (1.0 + state.step) / (10.0 + state.step))
        average = optax.incremental_update(params, state.average, 1.0 - decay)
        metrics = {"loss": value, "gradient_norm": optax.global_norm(gradients), **metrics}
        return TrainState(state.step + 1, params, state.buffers, average, opt_state), metrics

    return train_step
