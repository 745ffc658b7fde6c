"""The autoregressive decoder, the paper's baseline: a causal transformer that generates a log-mel frame by frame."""

import dataclasses
import math
from typing import NamedTuple

import gin
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from spectrodiff.audio.mel import MEL_BINS
from spectrodiff.config import WINDOW_FRAMES, ModelConfig, check_whole
from spectrodiff.diffusion.process import masked_mean
from spectrodiff.diffusion.samplers import Keys
from spectrodiff.errors import InputError
from spectrodiff.models.decoder import Conditioning, DecoderConfig, KVCache, Metrics, SongSampling
from spectrodiff.models.layers import MLP, Attention, Dense, KeyValue, Positions, dropout, remat, rms_norm

_MAX_COMPONENTS = 1024
_MIN_STD, _STD_RANGE = 0.1, 0.9  # standard deviations of a mixture are in [0.1, 1] (released code of the paper)


@gin.register
@dataclasses.dataclass(frozen=True)
class AutoregressiveSamplingConfig(SongSampling):
    """The sampling options of an autoregressive decoder.

    `dither` is the standard deviation of Gaussian noise that is added to each frame before the next one is generated,
    in units of the normalised mel.
    """

    dither: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        if not 0.0 <= self.dither < math.inf:
            raise InputError(f"dither is {self.dither!r}; choose 0 or more")


class AutoregressiveOptions(NamedTuple):
    """The sampling options as a pytree; `dither` is None if it is 0."""

    dither: Float[Array, ""] | None


@gin.register
@dataclasses.dataclass(frozen=True)
class AutoregressiveConfig(DecoderConfig):
    """The config of an autoregressive decoder. The defaults are the paper's, where `ModelConfig.with_context` is false.

    If `components` is 0, the network predicts the next frame and is trained with a squared error. Otherwise it predicts
    a mixture of that many diagonal Gaussians, is trained with the negative log-likelihood, and frames are sampled from
    the mixture.
    """

    kind = "autoregressive"
    components: int = 0
    sampling: AutoregressiveSamplingConfig = AutoregressiveSamplingConfig()

    def __post_init__(self):
        super().__post_init__()
        check_whole(self, 0, _MAX_COMPONENTS, "components")

    def build(self, model: ModelConfig, *, rngs: nnx.Rngs) -> "AutoregressiveDecoder":
        return AutoregressiveDecoder(self, model, rngs=rngs)

    def options(self) -> AutoregressiveOptions:
        dither = self.sampling.dither
        return AutoregressiveOptions(jnp.float32(dither) if dither else None)


class Mixture(NamedTuple):
    """A mixture of k diagonal Gaussians over each frame."""

    logits: Float[Array, "*b k"]
    mean: Float[Array, "*b k m"]
    std: Float[Array, "*b k m"]

    def log_likelihood(self, frames: Float[Array, "*b m"]) -> Float[Array, "*b"]:
        """Returns the log-likelihood of each frame in nats."""
        deviation = (frames[..., None, :] - self.mean) / self.std
        log_densities = -(0.5 * jnp.square(deviation) + jnp.log(self.std) + 0.5 * math.log(2 * math.pi)).sum(-1)
        return jax.nn.logsumexp(jax.nn.log_softmax(self.logits) + log_densities, -1)


class CausalBlock(nnx.Module):
    """A transformer decoder block: causal self-attention over frames, cross-attention to the encoders, and an MLP."""

    def __init__(self, cfg: ModelConfig, *, rngs: nnx.Rngs):
        self.rate = cfg.dropout
        self.norm_attention = rms_norm(cfg.width, rngs=rngs)
        self.self_attention = Attention(cfg, rngs=rngs)
        self.norm_memory = rms_norm(cfg.width, rngs=rngs)
        self.cross_attention = Attention(cfg, rngs=rngs)
        self.norm_mlp = rms_norm(cfg.width, rngs=rngs)
        self.mlp = MLP(cfg, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "b t d"],
        keys_values: KeyValue,
        mask: Bool[Array, "b n"],
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b t d"]:
        h = self.norm_attention(x)
        causal = jnp.tril(jnp.ones((1, x.shape[1], x.shape[1]), bool))
        x += dropout(self.self_attention(h, self.self_attention.keys_values(h), causal, rngs), self.rate, rngs)
        return self._cross_attend(x, keys_values, mask, rngs)

    def step(
        self,
        x: Float[Array, "b 1 d"],
        cache: KeyValue,
        index: Int[Array, ""],
        keys_values: KeyValue,
        mask: Bool[Array, "b n"],
    ) -> tuple[Float[Array, "b 1 d"], KeyValue]:
        """Computes the output of frame `index` from its input `x`, and returns it with the updated `cache`.

        `cache` has the self-attention's keys and values of all frames of the window, of which those before `index` have
        been written. `keys_values` are those of the cross-attention.
        """

        def write(cached, new):
            return jax.lax.dynamic_update_slice_in_dim(cached, new, index, 1)

        h = self.norm_attention(x)
        cache = jax.tree.map(write, cache, self.self_attention.keys_values(h))
        causal = jnp.arange(cache.key.shape[1])[None, None] <= index
        return self._cross_attend(x + self.self_attention(h, cache, causal), keys_values, mask, None), cache

    def _cross_attend(self, x, keys_values, mask, rngs):
        """Applies the cross-attention and the MLP, which treat each frame on its own."""
        x += dropout(self.cross_attention(self.norm_memory(x), keys_values, mask, rngs), self.rate, rngs)
        return x + dropout(self.mlp(self.norm_mlp(x), rngs), self.rate, rngs)


class AutoregressiveDecoder(nnx.Module):
    """A causal transformer over the frames of a window.

    With a note roll, the sketch of the current frame is added to the input, and the network predicts the difference
    from the sketch.
    """

    def __init__(self, config: AutoregressiveConfig, model: ModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.dtype, self.rate, self.remat = model.dtype, model.dropout, model.remat
        self.project = Dense(MEL_BINS, model.width, rngs=rngs)
        if model.note_roll:
            self.project_sketch = Dense(MEL_BINS, model.width, rngs=rngs)
        self.positions = Positions(WINDOW_FRAMES, model.width, rngs=rngs)
        self.blocks = nnx.List(CausalBlock(model, rngs=rngs) for _ in range(model.decoder_layers))
        self.norm = rms_norm(model.width, rngs=rngs)
        k = config.components
        self.out = Dense(model.width, MEL_BINS if k == 0 else k * (1 + 2 * MEL_BINS), rngs=rngs)

    def cache(self, conditioning: Conditioning) -> KVCache:
        """Computes the keys and values of cross-attention, which are the same for all frames."""
        return KVCache.of(self.blocks, conditioning)

    def __call__(
        self, cache: KVCache, frames: Float[Array, "b t m"], rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b t o"]:
        """Returns the network's output for each of `frames`, computed from the frames before it (teacher forcing)."""
        shifted = jnp.pad(frames, ((0, 0), (1, 0), (0, 0)))[:, :-1]
        x = dropout(self._embed(shifted, self.positions(frames.shape[1]), cache.sketch), self.rate, rngs)
        for block, keys_values in zip(self.blocks, cache.layers, strict=True):
            args = x, keys_values, cache.mask, rngs
            x = remat(block, *args) if self.remat else block(*args)
        return self._project_out(x, rngs)

    def _embed(self, frames, positions, sketch):
        """Returns the blocks' input for each frame, from the frames before them, their positions and their sketch."""
        x = self.project(frames.astype(self.dtype)) + positions.astype(self.dtype)
        return x if sketch is None else x + self.project_sketch(sketch.astype(self.dtype))

    def _project_out(self, x, rngs=None):
        """Returns the network's output, in float32, from that of the last block."""
        return self.out(dropout(self.norm(x), self.rate, rngs).astype(jnp.float32))

    def _mixture(self, output: Float[Array, "*b o"], prior: Float[Array, "*b m"] | float) -> Mixture:
        """Returns the mixture that the network's output describes, with means relative to `prior`."""
        k = self.config.components
        logits, mean, std = jnp.split(output, (k, k + k * MEL_BINS), -1)
        mean, std = (x.reshape(*x.shape[:-1], k, MEL_BINS) for x in (mean, std))
        prior = prior if isinstance(prior, float) else prior[..., None, :]
        return Mixture(logits, prior + mean, _MIN_STD + _STD_RANGE * jax.nn.sigmoid(std))

    def loss(
        self,
        conditioning: Conditioning,
        target: Float[Array, "b t m"],
        frame_mask: Bool[Array, "b t"],
        key: jax.Array,
        rngs: nnx.Rngs | None = None,
    ) -> tuple[Float[Array, " b"], Metrics]:
        """See `Decoder.loss`. The loss is the squared error or negative log-likelihood, averaged over mel bins."""
        frames, prior = self.config.normalise(target), conditioning.prior
        output = self(self.cache(conditioning), frames, rngs)
        if self.config.components:
            error = -self._mixture(output, prior).log_likelihood(frames) / MEL_BINS
        else:
            error = jnp.square(prior + output - frames).mean(-1)
        return masked_mean(error, frame_mask), {}

    def sample(
        self, conditioning: Conditioning, frames: int, keys: Keys, options: AutoregressiveOptions
    ) -> Float[Array, "b {frames} m"]:
        """See `Decoder.sample`. The frames are generated by one scan with a KV cache."""
        cross, batch = self.cache(conditioning), len(keys)
        zeros = jnp.zeros((batch, frames, self.positions.table.shape[1]), self.dtype)
        empty = tuple(jax.tree.map(jnp.zeros_like, block.self_attention.keys_values(zeros)) for block in self.blocks)

        def body(carry, inputs):
            previous, caches = carry
            index, position, sketch = inputs
            x = self._embed(previous[:, None], position, None if sketch is None else sketch[:, None])
            updated = []
            for block, cache, keys_values in zip(self.blocks, caches, cross.layers, strict=True):
                x, cache = block.step(x, cache, index, keys_values, cross.mask)
                updated.append(cache)
            frame_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, index)
            frame = jax.vmap(self._draw, (0, 0, 0, None))(self._project_out(x)[:, 0], sketch, frame_keys, options)
            frame = jnp.clip(frame, *self.config.bounds)
            return (frame, tuple(updated)), frame

        sketch = None if cross.sketch is None else cross.sketch.swapaxes(0, 1)
        inputs = jnp.arange(frames), self.positions(frames), sketch
        _, sampled = jax.lax.scan(body, (jnp.zeros((batch, MEL_BINS)), empty), inputs)
        return self.config.unnormalise(sampled.swapaxes(0, 1))

    def _draw(self, output: Float[Array, " o"], sketch: Float[Array, " m"] | None, key, options) -> Float[Array, " m"]:
        """Samples a frame, given the network's output for it."""
        component_key, frame_key, dither_key = jax.random.split(key, 3)
        prior = 0.0 if sketch is None else sketch
        if self.config.components:
            logits, mean, std = self._mixture(output, prior)
            component = jax.random.categorical(component_key, logits)
            frame = mean[component] + std[component] * jax.random.normal(frame_key, (MEL_BINS,))
        else:
            frame = prior + output
        if options.dither is not None:
            frame += options.dither * jax.random.normal(dither_key, (MEL_BINS,))
        return frame
