"""The optimisers that configs choose from."""

import gin
import jax
import optax
from optax import contrib


def warmup_cosine(peak: float, warmup: int, steps: int | None) -> optax.Schedule:
    """Linear from 0 over `warmup` steps, then constant, or with `steps` a half cosine down to 0 at that step."""
    after = optax.constant_schedule(peak) if steps is None else optax.cosine_decay_schedule(peak, steps - warmup)
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup]) if warmup else after


@gin.configurable
def adafactor(learning_rate: float = 1e-3) -> optax.GradientTransformation:
    """The paper's: constant rate, decay 0.8 (Shazeer & Stern 2018)."""
    return optax.adafactor(learning_rate, decay_rate=0.8)


@gin.configurable
def adamw(
    learning_rate: float = 1e-3, warmup: int = 0, steps: int | None = None, weight_decay: float = 0.0, clip: float = 1.0
) -> optax.GradientTransformation:
    """AdamW on gradients clipped to global norm `clip`."""
    schedule = warmup_cosine(learning_rate, warmup, steps)
    return optax.chain(optax.clip_by_global_norm(clip), optax.adamw(schedule, weight_decay=weight_decay))


def _muon_dimensions(params):
    """The matrices of attention and MLPs; embeddings, inputs and outputs stay with Adam, as does FiLM, for speed."""

    def dimensions(path, leaf):
        inner = any(name in str(part) for part in path for name in ("attention", "mlp")) and "film" not in str(path)
        return contrib.MuonDimensionNumbers((0,), (1,)) if inner and leaf.ndim == 2 else None

    return jax.tree_util.tree_map_with_path(dimensions, params)


@gin.configurable
def muon(
    learning_rate: float = 1e-2, warmup: int = 0, steps: int | None = None, adam_rate: float = 1e-3
) -> optax.GradientTransformation:
    """Orthogonalised momentum for matrices (Jordan et al. 2024), Adam at `adam_rate` for the rest."""
    return contrib.muon(
        warmup_cosine(learning_rate, warmup, steps),
        adam_learning_rate=warmup_cosine(adam_rate, warmup, steps),
        muon_weight_dimension_numbers=_muon_dimensions,
    )
