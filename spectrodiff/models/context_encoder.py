"""The previous window's spectrogram to a memory of context."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from spectrodiff.audio.mel import MEL_BINS
from spectrodiff.config import WINDOW_FRAMES, ModelConfig
from spectrodiff.models.layers import Dense, Encoder, Positions


class ContextEncoder(nnx.Module):
    """Frames of the previous window, placed by their distance from its end, attend to one another."""

    def __init__(self, cfg: ModelConfig, *, rngs: nnx.Rngs):
        self.dtype = cfg.dtype
        self.project = Dense(MEL_BINS, cfg.width, rngs=rngs)
        self.positions = Positions(WINDOW_FRAMES, cfg.width, rngs=rngs)
        self.encoder = Encoder(cfg, cfg.context_layers, rngs=rngs)

    def __call__(
        self, context: Float[Array, "b c m"], mask: Bool[Array, "b c"], rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b c d"]:
        """`context` is scaled log-mel, its real frames first; `mask` is true for them."""
        table = self.positions(context.shape[1]).astype(self.dtype)
        # Rolled so that the last real frame has the table's last position, however short the context.
        positions = jax.vmap(lambda length: jnp.roll(table, length, axis=0))(mask.sum(-1))
        return self.encoder(self.project(context.astype(self.dtype)) + positions, mask, rngs)
