"""A noisy spectrogram, its noise level and the memories of notes and context to what the objective asks for."""

from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from spectrodiff.audio.mel import MEL_BINS
from spectrodiff.config import WINDOW_FRAMES, ModelConfig
from spectrodiff.diffusion.schedule import time_at
from spectrodiff.models.layers import MLP, Attention, Dense, KeyValue, Positions, dropout, remat, rms_norm, sinusoids

_NOISE_PERIOD = 2e4  # time [0, 1) is stretched to [0, 2e4), the longest period (Hawthorne et al. 2022, released code)


class Memory(NamedTuple):
    """All that the decoder needs to know of a window, computed once however many sampling steps follow."""

    layers: tuple[KeyValue, ...]  # each decoder layer's keys and values of [notes; context]
    mask: Bool[Array, "b n"]
    sketch: Float[Array, "b t m"] | None  # the note roll's: what the decoder refines


class FiLM(nnx.Module):
    """Scales and shifts features by the noise level (Perez et al. 2018)."""

    def __init__(self, cfg: ModelConfig, *, rngs: nnx.Rngs):
        self.project = Dense(4 * cfg.width, 2 * cfg.width, rngs=rngs)

    def __call__(self, x: Float[Array, "b t d"], noise: Float[Array, "#b e"]) -> Float[Array, "b t d"]:
        scale, shift = jnp.split(self.project(noise)[:, None, :], 2, -1)
        return x * (1.0 + scale) + shift


class DecoderBlock(nnx.Module):
    """Frames attend to frames, then to the memory of notes and context, then an MLP."""

    def __init__(self, cfg: ModelConfig, *, rngs: nnx.Rngs):
        self.rate = cfg.dropout
        self.norm_attention = rms_norm(cfg.width, rngs=rngs)
        self.film_attention = FiLM(cfg, rngs=rngs)
        self.self_attention = Attention(cfg, rngs=rngs)
        self.norm_memory = rms_norm(cfg.width, rngs=rngs)
        self.cross_attention = Attention(cfg, rngs=rngs)
        self.norm_mlp = rms_norm(cfg.width, rngs=rngs)
        self.film_mlp = FiLM(cfg, rngs=rngs)
        self.mlp = MLP(cfg, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "b t d"],
        memory: KeyValue,
        mask: Bool[Array, "b n"],
        noise: Float[Array, "#b e"],
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b t d"]:
        h = self.film_attention(self.norm_attention(x), noise)
        x += dropout(self.self_attention(h, self.self_attention.remember(h), None, rngs), self.rate, rngs)
        x += dropout(self.cross_attention(self.norm_memory(x), memory, mask, rngs), self.rate, rngs)
        h = self.film_mlp(self.norm_mlp(x), noise)
        return x + dropout(self.mlp(h, rngs), self.rate, rngs)


class DiffusionDecoder(nnx.Module):
    """The denoising network."""

    def __init__(self, cfg: ModelConfig, *, rngs: nnx.Rngs):
        self.width, self.dtype = cfg.width, cfg.dtype
        self.rate, self.remat = cfg.dropout, cfg.remat
        self.noise_in = Dense(cfg.width, 4 * cfg.width, rngs=rngs)
        self.noise_out = Dense(4 * cfg.width, 4 * cfg.width, rngs=rngs)
        self.project = Dense(MEL_BINS, cfg.width, rngs=rngs)
        if cfg.note_roll:
            self.project_sketch = Dense(MEL_BINS, cfg.width, rngs=rngs)
        self.positions = Positions(WINDOW_FRAMES, cfg.width, rngs=rngs)
        self.blocks = nnx.List(DecoderBlock(cfg, rngs=rngs) for _ in range(cfg.decoder_layers))
        self.norm = rms_norm(cfg.width, rngs=rngs)
        self.out = Dense(cfg.width, MEL_BINS, rngs=rngs)

    def remember(
        self, memory: Float[Array, "b n d"], mask: Bool[Array, "b n"], sketch: Float[Array, "b t m"] | None
    ) -> Memory:
        return Memory(tuple(block.cross_attention.remember(memory) for block in self.blocks), mask, sketch)

    def __call__(
        self,
        z: Float[Array, "b t m"],
        logsnr: Float[Array, "b"] | Float[Array, ""],
        memory: Memory,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b t m"]:
        """`logsnr` is one level for the batch, or one for each example."""
        noise = sinusoids(_NOISE_PERIOD * jnp.atleast_1d(time_at(logsnr)), self.width, _NOISE_PERIOD)
        noise = nnx.swish(self.noise_out(nnx.swish(self.noise_in(noise.astype(self.dtype)))))
        x = self.project(z.astype(self.dtype)) + self.positions(z.shape[1]).astype(self.dtype)
        if memory.sketch is not None:
            x += self.project_sketch(memory.sketch.astype(self.dtype))
        x = dropout(x, self.rate, rngs)
        for block, keys_values in zip(self.blocks, memory.layers, strict=True):
            args = x, keys_values, memory.mask, noise, rngs
            x = remat(block, *args) if self.remat else block(*args)
        output = self.out(dropout(self.norm(x), self.rate, rngs).astype(jnp.float32))
        return output if memory.sketch is None else memory.sketch + output
