"""The one jitted function that samples windows, for synthesis, evaluation and training alike."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float

from spectrodiff.config import WINDOW_FRAMES


@functools.cache
def window_sampler(graph: nnx.GraphDef) -> Callable[..., Float[Array, "b t m"]]:
    """The jitted function (weights, tokens, context, context_mask, keys, options) -> scaled log-mel of windows.

    `graph` is a `SpectrogramModel`'s, and `weights` a sequence of the states that were split off it; tokens int32
    [b, n], context [b, c, m] scaled and its mask [b, c] are those of `SpectrogramModel.encode`; `keys` [b] make each
    row's noise its own; `options` are those of `DecoderConfig.options`. A program is compiled once for each shape and
    each structure of `options`, whatever the numbers in them.
    """

    @jax.jit
    def sample_windows(weights, tokens, context, context_mask, keys, options: Any):
        model = nnx.merge(graph, *weights)
        conditioning = model.encode(tokens, context, context_mask, WINDOW_FRAMES)
        return model.decoder.sample(conditioning, WINDOW_FRAMES, keys, options)

    return sample_windows
