"""What training carries from step to step."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Int

from spectrodiff.models.layers import Buffer


class TrainState(NamedTuple):
    """Everything a run needs to go on as if it had never stopped, but for its place in the data."""

    step: Int[Array, ""]
    params: Any  # what the optimiser sees: all parameters, or those that `train.adaptation` chose or added
    frozen: nnx.State  # fixed tables, and parameters that are not trained
    ema: Any  # exponential moving average of params, which is evaluated and exported
    optimizer: Any


def split(model: nnx.Module) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """A module as its structure, its parameters and its fixed tables."""
    return nnx.split(model, nnx.Param, Buffer)


def create(params: Any, frozen: nnx.State, optimizer: optax.GradientTransformation) -> TrainState:
    # A copy, because the step donates its state and one buffer cannot be donated twice.
    return TrainState(jnp.int32(0), params, frozen, jax.tree.map(jnp.copy, params), optimizer.init(params))
