"""The context encoder, which encodes the spectrogram before the window."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from spectrodiff.audio.mel import MEL_BINS
from spectrodiff.config import WINDOW_FRAMES, ModelConfig
from spectrodiff.models.layers import Dense, Encoder, Positions


class ContextEncoder(nnx.Module):
    """A transformer encoder of the frames before the window, whose positions count back from the last of them."""

    def __init__(self, cfg: ModelConfig, *, rngs: nnx.Rngs):
        self.dtype = cfg.dtype
        self.project = Dense(MEL_BINS, cfg.width, rngs=rngs)
        self.positions = Positions(WINDOW_FRAMES, cfg.width, rngs=rngs)
        self.encoder = Encoder(cfg, cfg.context_layers, rngs=rngs)

    def __call__(
        self, context: Float[Array, "b c m"], mask: Bool[Array, "b c"], rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b c d"]:
        """Returns the encodings of `context`, a scaled log-mel, for cross-attention.

        The valid frames come first and are those where `mask` is true; the encodings of others are to be ignored.
        """
        table = self.positions(context.shape[1]).astype(self.dtype)
        # Rolled so that the last valid frame has the last position of the table, however short the context is.
        positions = jax.vmap(lambda length: jnp.roll(table, length, axis=0))(mask.sum(-1))
        return self.encoder(self.project(context.astype(self.dtype)) + positions, mask, rngs)
