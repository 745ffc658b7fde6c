"""The diffusion decoder, the paper's main model: a transformer that denoises the log-mel of a window."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import gin
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from spectrodiff.audio.mel import MEL_BINS
from spectrodiff.config import WINDOW_FRAMES, ModelConfig, check_choice, check_whole, is_fraction
from spectrodiff.diffusion.guidance import guide, within
from spectrodiff.diffusion.objective import Denoiser, clipped
from spectrodiff.diffusion.process import Process
from spectrodiff.diffusion.samplers import STEPS, Keys, sample, standard_normal
from spectrodiff.diffusion.schedule import LOGSNR_BOUND, NoiseLevel, Schedule, time_at
from spectrodiff.errors import InputError
from spectrodiff.models.decoder import Conditioning, DecoderConfig, KVCache, Metrics, SongSampling
from spectrodiff.models.layers import MLP, Attention, Dense, KeyValue, Positions, dropout, remat, rms_norm, sinusoids

_NOISE_PERIOD = 2e4  # times in [0, 1) are scaled to [0, 2e4), the longest period of the embedding (released code)
_MAX_STEPS = 1000
_MAX_GUIDANCE = 20.0


@gin.register
@dataclasses.dataclass(frozen=True)
class SamplingConfig(SongSampling):
    """The sampling options of a diffusion decoder. With a guidance weight of 1, there is no guidance.

    Guidance applies at log-SNRs within `guidance_interval`; steps outside it take one evaluation instead of two.
    """

    sampler: str = "dpmpp"  # ddpm | ddim | dpmpp
    steps: int = 20
    guidance: float = 2.0
    guidance_interval: Sequence[float] = (-LOGSNR_BOUND, LOGSNR_BOUND)

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "guidance_interval", tuple(self.guidance_interval))  # a list if read from JSON
        check_choice(self, "sampler", STEPS)
        check_whole(self, 1, _MAX_STEPS, "steps")
        if not 0.0 <= self.guidance <= _MAX_GUIDANCE:
            raise InputError(f"guidance is {self.guidance}; choose 0 to {_MAX_GUIDANCE:g} (1 is none)")
        if len(self.guidance_interval) != 2 or not self.guidance_interval[0] < self.guidance_interval[1]:
            raise InputError(f"guidance_interval is {self.guidance_interval}; choose two log-SNRs, the lower first")


class SamplingOptions(NamedTuple):
    """The sampling options as a pytree.

    They are the update rule of the sampler, the log-SNR of each step, the guidance weight (None if it is 1), and the
    interval of log-SNRs where guidance applies (None if it applies everywhere, or there is no guidance).
    """

    step: jax.tree_util.Partial
    logsnrs: Float[Array, " steps"]
    guidance: Float[Array, ""] | None
    interval: Float[Array, "2"] | None


@gin.register
@dataclasses.dataclass(frozen=True)
class DiffusionConfig(DecoderConfig):
    """The config of a diffusion decoder; the defaults are the paper's."""

    kind = "diffusion"
    process: Process = Process()
    condition_drop: float = 0.1  # fraction of training examples without notes and context, for guidance
    sampling: SamplingConfig = SamplingConfig()

    def __post_init__(self):
        super().__post_init__()
        if not is_fraction(self.condition_drop):
            raise InputError(f"condition_drop is {self.condition_drop!r}; choose a number from 0 to below 1")

    @property
    def title(self) -> str:
        return f"{self.kind}, predicts {self.process.objective.kind}"

    def build(self, model: ModelConfig, *, rngs: nnx.Rngs) -> "DiffusionDecoder":
        return DiffusionDecoder(self, model, rngs=rngs)

    def options(self) -> SamplingOptions:
        guidance = None if self.sampling.guidance == 1.0 else jnp.float32(self.sampling.guidance)
        low, high = self.sampling.guidance_interval
        always = guidance is None or (low <= -LOGSNR_BOUND and high >= LOGSNR_BOUND)
        step = jax.tree_util.Partial(STEPS[self.sampling.sampler])
        levels = _levels(self.process.schedule, self.sampling.steps)
        return SamplingOptions(step, levels, guidance, None if always else jnp.float32([low, high]))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _levels(schedule: Schedule, steps: int) -> Float[Array, "{steps}"]:
    """Returns the log-SNRs of a schedule, computed in one program.

    Operations that are compiled one by one round to other values, which the tangent of the cosine schedule amplifies
    near its pole.
    """
    return schedule(steps)


class FiLM(nnx.Module):
    """Feature-wise linear modulation by the embedded noise level (Perez et al. 2018)."""

    def __init__(self, cfg: ModelConfig, *, rngs: nnx.Rngs):
        self.project = Dense(4 * cfg.width, 2 * cfg.width, rngs=rngs)

    def __call__(self, x: Float[Array, "b t d"], noise: Float[Array, "#b e"]) -> Float[Array, "b t d"]:
        scale, shift = jnp.split(self.project(noise)[:, None, :], 2, -1)
        return x * (1.0 + scale) + shift


def _add_to_first(x: Float[Array, "b t d"], y: Float[Array, "n t d"]) -> Float[Array, "b t d"]:
    """Returns x with y added to its first rows."""
    return x + y if len(x) == len(y) else jnp.concatenate([x[: len(y)] + y, x[len(y) :]])


class DecoderBlock(nnx.Module):
    """A transformer decoder block: self-attention over frames, cross-attention to the encoders, and an MLP.

    FiLM conditions self-attention and MLP on the noise level.
    """

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
        keys_values: KeyValue,
        mask: Bool[Array, "rows n"],
        noise: Float[Array, "#b e"],
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b t d"]:
        h = self.film_attention(self.norm_attention(x), noise)
        x += dropout(self.self_attention(h, self.self_attention.keys_values(h), None, rngs), self.rate, rngs)
        conditional = self.norm_memory(x[: len(mask)])
        x = _add_to_first(x, dropout(self.cross_attention(conditional, keys_values, mask, rngs), self.rate, rngs))
        h = self.film_mlp(self.norm_mlp(x), noise)
        return x + dropout(self.mlp(h, rngs), self.rate, rngs)


class DiffusionDecoder(nnx.Module):
    """The denoising transformer, with the loss and the sampler of its diffusion process."""

    def __init__(self, config: DiffusionConfig, model: ModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.width, self.dtype = model.width, model.dtype
        self.rate, self.remat = model.dropout, model.remat
        self.noise_in = Dense(model.width, 4 * model.width, rngs=rngs)
        self.noise_out = Dense(4 * model.width, 4 * model.width, rngs=rngs)
        self.project = Dense(MEL_BINS, model.width, rngs=rngs)
        if model.note_roll:
            self.project_sketch = Dense(MEL_BINS, model.width, rngs=rngs)
        self.positions = Positions(WINDOW_FRAMES, model.width, rngs=rngs)
        self.blocks = nnx.List(DecoderBlock(model, rngs=rngs) for _ in range(model.decoder_layers))
        self.norm = rms_norm(model.width, rngs=rngs)
        self.out = Dense(model.width, MEL_BINS, rngs=rngs)

    def cache(self, conditioning: Conditioning) -> KVCache:
        """Computes the keys and values of cross-attention, which are the same in all sampling steps."""
        return KVCache.of(self.blocks, conditioning)

    def __call__(
        self,
        cache: KVCache,
        z: Float[Array, "b t m"],
        logsnr: Float[Array, "b"] | Float[Array, ""],
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b t m"]:
        """Returns the network's output for z: the quantity that the objective predicts (in the paper: eps).

        `logsnr` has one value per row, or one for all. If z has more rows than `cache`, as in classifier-free guidance,
        the first rows are conditioned on it; the others are unconditional, and skip cross-attention.
        """
        noise = sinusoids(_NOISE_PERIOD * jnp.atleast_1d(time_at(logsnr)), self.width, _NOISE_PERIOD)
        noise = nnx.swish(self.noise_out(nnx.swish(self.noise_in(noise.astype(self.dtype)))))
        x = self.project(z.astype(self.dtype)) + self.positions(z.shape[1]).astype(self.dtype)
        if cache.sketch is not None:
            x = _add_to_first(x, self.project_sketch(cache.sketch.astype(self.dtype)))
        x = dropout(x, self.rate, rngs)
        for block, keys_values in zip(self.blocks, cache.layers, strict=True):
            args = x, keys_values, cache.mask, noise, rngs
            x = remat(block, *args) if self.remat else block(*args)
        return self.out(dropout(self.norm(x), self.rate, rngs).astype(jnp.float32))

    def loss(
        self,
        conditioning: Conditioning,
        target: Float[Array, "b t m"],
        frame_mask: Bool[Array, "b t"],
        key: jax.Array,
        rngs: nnx.Rngs | None = None,
    ) -> tuple[Float[Array, " b"], Metrics]:
        """See `Decoder.loss`. `key` draws noise levels, noise, and the examples whose conditioning is dropped."""
        level_key, drop_key, noise_key = jax.random.split(key, 3)
        size = (len(target),)
        logsnr = self.config.process.levels.logsnr(jax.random.uniform(level_key, size))
        conditioning = conditioning.keep(jax.random.bernoulli(drop_key, 1.0 - self.config.condition_drop, size))
        return self.loss_at(conditioning, target, frame_mask, logsnr, noise_key, rngs), {}

    def loss_at(
        self,
        conditioning: Conditioning,
        target: Float[Array, "b t m"],
        frame_mask: Bool[Array, "b t"],
        logsnr: Float[Array, " b"],
        key: jax.Array,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, " b"]:
        """Returns each example's loss at its noise level `logsnr`. `key` draws the noise."""
        network, x0 = self._network(conditioning, rngs), self.config.normalise(target)
        return self.config.process.loss(network, x0, frame_mask, logsnr, key, conditioning.prior)

    def _network(self, conditioning: Conditioning, rngs: nnx.Rngs | None = None) -> Denoiser:
        """Returns the network as a function (z, logsnr) -> output, for the methods of `Process`."""
        cache = self.cache(conditioning)
        return lambda z, logsnr: self(cache, z, logsnr, rngs)

    def sample(
        self, conditioning: Conditioning, frames: int, keys: Keys, options: SamplingOptions
    ) -> Float[Array, "b {frames} m"]:
        """See `Decoder.sample`. With guidance, the network is evaluated on two rows for each window."""
        process, network, prior = self.config.process, self._network(conditioning), conditioning.prior
        denoise = process.denoiser(network, prior)
        if options.guidance is not None:  # [conditional; unconditional] along the batch, the latter without a prior
            pair_prior = prior if conditioning.sketch is None else jnp.concatenate([prior, jnp.zeros_like(prior)])
            guided = guide(process.denoiser(network, pair_prior), options.guidance)
            denoise = guided if options.interval is None else within(options.interval, guided, denoise)
        denoise = clipped(denoise, *self.config.bounds)
        noise_keys, step_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
        noise = standard_normal(noise_keys, jnp.zeros((len(keys), frames, MEL_BINS)))
        start = process.objective.start(noise, NoiseLevel(options.logsnrs[0]), prior)
        return self.config.unnormalise(sample(denoise, options.step, options.logsnrs, start, step_keys))
