"""The optimisers that configs can refer to, each a function that returns an optax transformation."""

import gin
import jax
import optax
from optax import contrib

from spectrodiff.errors import InputError


def warmup_cosine(peak: float, warmup: int, steps: int | None) -> optax.Schedule:
    """Returns a learning rate schedule with linear warmup from 0 to `peak`, and then a constant rate.

    If `steps` is given, the warmup is followed by a cosine decay to 0 at that step.

    Raises:
      InputError: `steps` is not greater than `warmup`.
    """
    if steps is not None and steps <= warmup:
        raise InputError(f"an optimiser's steps are {steps}; choose more than its warmup, {warmup}")
    after = optax.constant_schedule(peak) if steps is None else optax.cosine_decay_schedule(peak, steps - warmup)
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup]) if warmup else after


def _clipped(clip: float | None, optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """Returns `optimizer` preceded by clipping of gradients to the global norm `clip`, if that is not None."""
    return optimizer if clip is None else optax.chain(optax.clip_by_global_norm(clip), optimizer)


@gin.configurable
def adafactor(
    learning_rate: float = 1e-3, warmup: int = 0, steps: int | None = None, clip: float | None = None
) -> optax.GradientTransformation:
    """Adafactor (Shazeer & Stern 2018) with decay rate 0.8.

    The defaults are the paper's: a constant learning rate of 1e-3, without clipping by global norm.
    """
    return _clipped(clip, optax.adafactor(warmup_cosine(learning_rate, warmup, steps), decay_rate=0.8))


@gin.configurable
def adamw(
    learning_rate: float = 1e-3,
    warmup: int = 0,
    steps: int | None = None,
    weight_decay: float = 0.0,
    clip: float | None = 1.0,
) -> optax.GradientTransformation:
    """AdamW (Loshchilov & Hutter 2019), with gradients clipped to the global norm `clip`."""
    return _clipped(clip, optax.adamw(warmup_cosine(learning_rate, warmup, steps), weight_decay=weight_decay))


def _muon_dimensions(params):
    """Selects the matrices of attention and MLPs for Muon, by their dimension numbers; None selects Adam.

    Embeddings, input and output layers use Adam, as is usual, and so does FiLM, for speed.
    """

    def dimensions(path, leaf):
        inner = any(name in str(part) for part in path for name in ("attention", "mlp")) and "film" not in str(path)
        return contrib.MuonDimensionNumbers((0,), (1,)) if inner and leaf.ndim == 2 else None

    return jax.tree_util.tree_map_with_path(dimensions, params)


@gin.configurable
def muon(
    learning_rate: float = 1e-2,
    warmup: int = 0,
    steps: int | None = None,
    adam_rate: float = 1e-3,
    clip: float | None = None,
) -> optax.GradientTransformation:
    """Muon (Jordan et al. 2024) for the matrices of attention and MLPs, and Adam at `adam_rate` for the rest."""
    optimizer = contrib.muon(
        warmup_cosine(learning_rate, warmup, steps),
        adam_learning_rate=warmup_cosine(adam_rate, warmup, steps),
        muon_weight_dimension_numbers=_muon_dimensions,
    )
    return _clipped(clip, optimizer)


@gin.configurable
def adversarial(
    generator_rate: float = 2e-4,
    discriminator_rate: float = 2e-4,
    warmup: int = 0,
    steps: int | None = None,
    b1: float = 0.8,
    b2: float = 0.99,
    clip: float | None = 10.0,
) -> optax.GradientTransformation:
    """Adam for `Adversaries`, with separate learning rates and clipping for generator and discriminators.

    The betas are those of Kong et al. (2020, HiFi-GAN).
    """

    def side(path, _):
        return "discriminators" if "discriminators" in str(path[0]) else "generator"

    def adam(rate):
        return _clipped(clip, optax.adam(warmup_cosine(rate, warmup, steps), b1, b2))

    rates = {"generator": adam(generator_rate), "discriminators": adam(discriminator_rate)}
    return optax.partition(rates, lambda params: jax.tree_util.tree_map_with_path(side, params))
