"""The training step: gradients, the optimiser's update, and the exponential moving average (EMA) of parameters."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from spectrodiff.training.sharding import replicated_over_data
from spectrodiff.training.state import TrainState

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


class TrainStep(NamedTuple):
    """The jitted training step (state, batch) -> (state, metrics), which donates its state.

    `loss` is the function (state, batch) -> (loss, metrics) alone, whose operations `step_flops` counts.
    """

    jitted: Any
    others_state: Any
    loss: Callable[[TrainState, Batch], tuple[jax.Array, Metrics]]

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        return self.jitted(state, batch, self.others_state)

    def lower(self, state: Any, batch: Any) -> jax.stages.Lowered:
        """Traces and lowers the step for arguments of these shapes, as `jax.jit(...).lower` does."""
        return self.jitted.lower(state, batch, jax.eval_shape(lambda: self.others_state))


class Others(NamedTuple):
    """The networks that a loss may use besides the one that is trained. They receive no gradients."""

    ema: Callable[[], nnx.Module]  # builds the network with the EMA of its parameters
    frozen: Mapping[str, nnx.Module]  # the modules of `Task.frozen_modules`, such as a teacher


@runtime_checkable
class Loss(Protocol):
    """A function that returns the scalar loss of a batch and scalar metrics for the log; `key` draws random numbers."""

    def __call__(
        self, model: nnx.Module, batch: Batch, key: jax.Array, others: Others
    ) -> tuple[jax.Array, Metrics]: ...


def make_train_step(
    merge: Callable[[Any, nnx.State], nnx.Module],
    loss: Loss,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    *,
    ema_decay: float = 0.999,
    accumulate: int = 1,
    shardings: TrainState | None = None,
    frozen_modules: Mapping[str, nnx.Module] | None = None,
) -> TrainStep:
    """Returns the training step.

    `merge` builds the module from trainable and frozen parameters. Random numbers are drawn by `fold_in(key, step)`, so
    that a resumed run draws the same ones. Gradients are accumulated over `accumulate` microbatches, which takes the
    memory of one. If the loss, the gradients or the updated parameters are not finite, the state is not changed except
    for its step, and the metric `skipped` is 1. `shardings` are the shardings of the state. The loss receives
    `frozen_modules` as `Others.frozen`.
    """
    graphs, others_state = {}, {}
    for name, module in (frozen_modules or {}).items():
        graphs[name], others_state[name] = nnx.split(module)

    def gather(parts):
        """Replicates parameters over the axis `data` of the mesh."""
        if shardings is None:
            return parts
        where = jax.tree.map(replicated_over_data, (shardings.params, shardings.frozen))
        return jax.lax.with_sharding_constraint(parts, where)

    def gradients_of(state: TrainState, others_state: Any, batch: Batch, step_key: jax.Array):
        others = Others(
            ema=lambda: merge(*gather((jax.lax.stop_gradient(state.ema), state.frozen))),
            frozen={name: nnx.merge(graph, others_state[name]) for name, graph in graphs.items()},
        )

        def loss_of(params):
            # Parameters are all-gathered over `data` before use. Otherwise XLA would communicate activations instead.
            params, frozen = gather((params, state.frozen))
            value, metrics = loss(merge(params, frozen), batch, step_key, others)
            return value, {"loss": value, **metrics}

        return jax.grad(loss_of, has_aux=True)(state.params)

    def accumulated(state: TrainState, others_state: Any, batch: Batch, step_key: jax.Array):
        # A microbatch is every k-th example, so that each device has an equal part of each microbatch.
        parts = jax.tree.map(lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), batch)

        def add(total, indexed_part):
            index, part = indexed_part
            gradients_and_metrics = gradients_of(state, others_state, part, jax.random.fold_in(step_key, index))
            return jax.tree.map(jnp.add, total, gradients_and_metrics), None

        first_part = jax.tree.map(lambda x: x[0], parts)
        shapes = jax.eval_shape(gradients_of, state, others_state, first_part, step_key)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        total, _ = jax.lax.scan(add, zeros, (jnp.arange(accumulate), parts))
        return jax.tree.map(lambda x: x / accumulate, total)

    @functools.partial(jax.jit, donate_argnums=0, out_shardings=None if shardings is None else (shardings, None))
    def train_step(state: TrainState, batch: Batch, others_state: Any) -> tuple[TrainState, Metrics]:
        step_key = jax.random.fold_in(key, state.step)
        compute = gradients_of if accumulate == 1 else accumulated
        gradients, metrics = compute(state, others_state, batch, step_key)
        norm = optax.global_norm(gradients)
        updates, opt_state = optimizer.update(gradients, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        # The decay is lower in early steps, when the EMA would be dominated by the initial parameters.
        decay = jnp.minimum(ema_decay, (1.0 + state.step) / (10.0 + state.step))
        ema = optax.incremental_update(params, state.ema, 1.0 - decay)
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm) & jnp.isfinite(optax.global_norm(params))
        params, ema, opt_state = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            (params, ema, opt_state),
            (state.params, state.ema, state.optimizer),
        )
        state = TrainState(state.step + 1, params, state.frozen, ema, opt_state)
        return state, {**metrics, "gradient_norm": norm, "skipped": 1.0 - finite}

    def loss_alone(state: TrainState, batch: Batch) -> tuple[jax.Array, Metrics]:
        others = Others(lambda: merge(state.ema, state.frozen), frozen_modules or {})
        return loss(merge(state.params, state.frozen), batch, key, others)

    # Passed as an argument, because a captured array would be copied into the program as a constant.
    return TrainStep(train_step, others_state, loss_alone)
