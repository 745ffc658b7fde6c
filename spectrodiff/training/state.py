"""The state of a training run."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Int

from spectrodiff.models.layers import Buffer


class TrainState(NamedTuple):
    """The state that each training step updates. With the number of examples seen, it suffices to resume a run."""

    step: Int[Array, ""]
    params: Any  # trainable parameters: all of them, or those that `train.adaptation` selects or adds
    frozen: nnx.State  # parameters that are not trained, and buffers
    ema: Any  # exponential moving average of params, which is evaluated and exported
    optimizer: Any


def split(model: nnx.Module) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """Splits a module into its graph, its parameters and its buffers."""
    return nnx.split(model, nnx.Param, Buffer)


def create(params: Any, frozen: nnx.State, optimizer: optax.GradientTransformation) -> TrainState:
    """Returns the state at step 0, with the EMA equal to `params`."""
    # The EMA is a copy, because the step donates its state and one buffer cannot be donated twice.
    return TrainState(jnp.int32(0), params, frozen, jax.tree.map(jnp.copy, params), optimizer.init(params))
