"""The jitted function that samples windows, which synthesis, evaluation and training share."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float

from spectrodiff.config import WINDOW_FRAMES


@functools.cache
def window_sampler(graph: nnx.GraphDef) -> Callable[..., Float[Array, "b t m"]]:
    """Returns a jitted function (weights, tokens, context, context_mask, keys, options) -> scaled log-mels [b, t, m].

    `graph` and `weights`, a sequence of states, come from `nnx.split` of a `SpectrogramModel`. `tokens` int32 [b, n],
    `context` [b, c, m] and `context_mask` [b, c] are the inputs of `SpectrogramModel.encode`, `keys` [b] one random key
    per row, and `options` the result of `DecoderConfig.options`. The function is compiled once for each combination of
    shapes and structure of `options`; their numeric values are not part of the program.
    """

    @jax.jit
    def sample_windows(weights, tokens, context, context_mask, keys, options: Any):
        model = nnx.merge(graph, *weights)
        conditioning = model.encode(tokens, context, context_mask, WINDOW_FRAMES)
        return model.decoder.sample(conditioning, WINDOW_FRAMES, keys, options)

    return sample_windows
