"""What training carries from step to step."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Int

from spectrodiff.models.layers import Buffer


class TrainState(NamedTuple):
    """Everything a run needs to go on as if it had never stopped, but for the data iterator."""

    step: Int[Array, ""]
    params: nnx.State
    buffers: nnx.State  # fixed tables: stored, never trained
    average: nnx.State  # exponential moving average of params: what is evaluated and shipped
    optimizer: Any


def split(model: nnx.Module) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """A module as its structure, its trained parameters and its fixed tables."""
    return nnx.split(model, nnx.Param, Buffer)


def create(params: nnx.State, buffers: nnx.State, optimizer: optax.GradientTransformation) -> TrainState:
    # A copy, because the step donates its state and one buffer cannot be donated twice.
    return TrainState(jnp.int32(0), params, buffers, jax.tree.map(jnp.copy, params), optimizer.init(params))
