"""The texture decoder: a transformer predicts the mean of the log-mel, and a small U-Net samples the residual.

A transformer whose width is hardly larger than the number of mel bins can predict a mel, but cannot reproduce noise in
every bin, so that its samples are too smooth. The residual, here called texture, is small given the notes; it is
sampled by a diffusion model of its own, a two-dimensional network over frames and mel bins.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import gin
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from spectrodiff.config import MAX_SIZE, WINDOW_FRAMES, ModelConfig, check_choice, check_whole, is_whole
from spectrodiff.diffusion.objective import Preconditioned, clipped
from spectrodiff.diffusion.process import Process, masked_mean
from spectrodiff.diffusion.samplers import STEPS, Keys, one_step_target, sample, standard_normal
from spectrodiff.diffusion.schedule import LOGSNR_BOUND, EvenLogSNR, LogNormal, NoiseLevel
from spectrodiff.errors import InputError
from spectrodiff.models.decoder import Conditioning, DecoderConfig, Metrics
from spectrodiff.models.diffusion_decoder import DiffusionConfig, DiffusionDecoder
from spectrodiff.models.unet import UNet

_BEFORE = 16  # frames before the window that the U-Net has as context
_AT_BORDER = 0.25  # share of training crops that begin where the window does; by chance alone one in 193 would


@gin.register
@dataclasses.dataclass(frozen=True)
class TextureSamplingConfig:
    """The sampling options of a texture decoder. With 0 steps, the sample is the mean."""

    sampler: str = "dpmpp"
    steps: int = 8

    def __post_init__(self):
        check_choice(self, "sampler", STEPS)
        check_whole(self, 0, 1000, "steps")


class TextureOptions(NamedTuple):
    """The sampling options as a pytree; both are None if the sample is the mean."""

    step: jax.tree_util.Partial | None
    logsnrs: Float[Array, " steps"] | None


@gin.register
@dataclasses.dataclass(frozen=True)
class TextureConfig(DecoderConfig):
    """The config of a texture decoder.

    The mean is the estimate of x0 by one evaluation of the diffusion decoder `mean_decoder` at the lowest log-SNR.
    `process` is the diffusion process of the texture; its objective is `Preconditioned`, whose `std` is that of the
    texture. The U-Net has `channels` at each scale, the first of which has one position for each `patch` x `patch`
    square of the mel; it is trained on crops of `crop_frames` frames. The loss is the weighted sum of the losses of
    mean and texture.
    """

    kind = "texture"
    mean_decoder: DiffusionConfig = DiffusionConfig()
    process: Process = Process(Preconditioned(0.2), LogNormal(3.2, 2.4), EvenLogSNR(-2.8, 9.2))
    channels: Sequence[int] = (24, 48, 96)
    patch: int = 1
    crop_frames: int = 64
    mean_weight: float = 1.0
    texture_weight: float = 1.0
    sampling: TextureSamplingConfig = TextureSamplingConfig()

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "channels", tuple(self.channels))  # a list if read from JSON
        if not self.channels or not all(is_whole(width) for width in self.channels):
            raise InputError(f"channels is {self.channels}; choose whole numbers from 1 to {MAX_SIZE}")
        if not isinstance(self.process.objective, Preconditioned):
            raise InputError(f"a texture's objective is {self.process.objective.kind}; choose Preconditioned")
        check_whole(self, 1, _BEFORE, "patch")
        multiple = self.patch * 2 ** (len(self.channels) - 1)
        if not is_whole(self.crop_frames, 1, WINDOW_FRAMES) or self.crop_frames % multiple or _BEFORE % multiple:
            raise InputError(
                f"crop_frames is {self.crop_frames}; choose a multiple of {multiple} up to {WINDOW_FRAMES}"
            )

    @property
    def title(self) -> str:
        return f"mean and texture, predicts {self.process.objective.kind}"

    def build(self, model: ModelConfig, *, rngs: nnx.Rngs) -> "TextureDecoder":
        return TextureDecoder(self, model, rngs=rngs)

    def options(self) -> TextureOptions:
        if self.sampling.steps == 0:
            return TextureOptions(None, None)
        step = jax.tree_util.Partial(STEPS[self.sampling.sampler])
        return TextureOptions(step, self.process.schedule(self.sampling.steps))


class TextureCache(NamedTuple):
    """What the U-Net sees besides z and the noise level, the same in all sampling steps; all mels are normalised.

    The frames `before` the window are prepended to the window's as further context; `known` is 1 where they are valid.
    """

    mean: Float[Array, "b t m"]
    sketch: Float[Array, "b t m"]
    before: Float[Array, "b k m"]
    known: Float[Array, "b k m"]


class TextureDecoder(nnx.Module):
    """A diffusion decoder that predicts the mean, and a U-Net that samples the texture; see `TextureConfig`."""

    def __init__(self, config: TextureConfig, model: ModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.mean_decoder = DiffusionDecoder(config.mean_decoder, model, rngs=rngs)
        self.texture = UNet(5, config.channels, config.patch, rngs=rngs)

    def mean(
        self, conditioning: Conditioning, frames: int, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b {frames} m"]:
        """Returns the diffusion decoder's estimate of x0 at the lowest log-SNR, with z = 0."""
        nothing = jnp.zeros((len(conditioning.mask), frames, conditioning.context.shape[-1]))
        cache, process = self.mean_decoder.cache(conditioning), self.config.mean_decoder.process
        denoise = process.denoiser(lambda z, logsnr: self.mean_decoder(cache, z, logsnr, rngs), conditioning.prior)
        return denoise(nothing, jnp.float32(-LOGSNR_BOUND))

    def cache(self, conditioning: Conditioning) -> TextureCache:
        """Computes the mean of a window, of as many frames as the sketch or else of 256, and what else is fixed."""
        frames = WINDOW_FRAMES if conditioning.sketch is None else conditioning.sketch.shape[1]
        mean = self.mean(conditioning, frames)
        return TextureCache(mean, conditioning.prior + jnp.zeros_like(mean), *self._before(conditioning))

    def __call__(
        self,
        cache: TextureCache,
        z: Float[Array, "b t m"],
        logsnr: Float[Array, "b"] | Float[Array, ""],
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b t m"]:
        """Returns the output of the U-Net for its preconditioned input z: the target of `Preconditioned`.

        `logsnr` has one value per row, or one for all. There is no dropout, so that `rngs` is not used.
        """
        mean, before = cache.mean, cache.before
        slope = jnp.diff(mean, axis=1, prepend=mean[:, :1]) / self.config.process.objective.std
        ahead = jnp.stack([0.0 * before, before, 0.0 * before, before, cache.known], -1)
        planes = jnp.stack([z, mean, slope, cache.sketch, jnp.zeros_like(mean)], -1)
        return self.texture(jnp.concatenate([ahead, planes], 1), jnp.atleast_1d(logsnr))[:, before.shape[1] :]

    def loss(
        self,
        conditioning: Conditioning,
        target: Float[Array, "b t m"],
        frame_mask: Bool[Array, "b t"],
        key: jax.Array,
        rngs: nnx.Rngs | None = None,
    ) -> tuple[Float[Array, " b"], Metrics]:
        """See `Decoder.loss`. The loss of the texture has no gradient with respect to the mean."""
        *crop_keys, level_key, noise_key = jax.random.split(key, 4)
        config = self.config
        x0 = (target - config.mean) / config.std
        mean = self.mean(conditioning, target.shape[1], rngs)
        mean_loss = masked_mean(jnp.abs(mean - x0).mean(-1), frame_mask)
        if not config.texture_weight:
            return config.mean_weight * mean_loss, {"mean_loss": mean_loss.mean()}
        cache, x0, frame_mask = self._crop(conditioning, mean, x0, frame_mask, *crop_keys)
        logsnr = config.process.levels.logsnr(jax.random.uniform(level_key, (len(x0),)))
        texture_loss = config.process.loss(
            functools.partial(self, cache), x0, frame_mask, logsnr, noise_key, cache.mean
        )
        losses = config.mean_weight * mean_loss + config.texture_weight * texture_loss
        return losses, {"mean_loss": mean_loss.mean(), "texture_loss": texture_loss.mean()}

    def distillation_loss(
        self,
        teacher: "TextureDecoder",
        substeps: int,
        conditioning: Conditioning,
        target: Float[Array, "b t m"],
        frame_mask: Bool[Array, "b t"],
        key: jax.Array,
    ) -> tuple[Float[Array, " b"], Metrics]:
        """Returns the loss of progressive distillation, averaged over the sampling steps, and that of each step.

        At each step of its own sampling schedule, the U-Net learns to reach by DDIM what the `teacher` reaches in
        `substeps` evaluations by its own sampler, about the same mean; see `one_step_target`. The last step leads to
        the end of the teacher's schedule. All steps are trained on one crop of each example, which share its mean. See
        `loss` for the other arguments.
        """
        *crop_keys, noise_key = jax.random.split(key, 3)
        x0, mean = (target - self.config.mean) / self.config.std, self.mean(conditioning, target.shape[1])
        cache, x0, frame_mask = self._crop(conditioning, mean, x0, frame_mask, *crop_keys)
        process, theirs = self.config.process, teacher.config
        denoise = clipped(theirs.process.denoiser(functools.partial(teacher, cache), cache.mean), *self._range())
        levels, (rule, their_levels) = self.config.options().logsnrs, theirs.options()
        unused = jax.random.split(noise_key, len(x0))  # dpmpp and ddim draw nothing

        def reached(index, z):
            now = levels[index]
            if index + 1 < len(levels):
                return one_step_target(denoise, rule, z, now, levels[index + 1], substeps, unused)
            return sample(denoise, rule, jnp.linspace(now, their_levels[-1], substeps), z, unused)

        losses = {}
        for index, step_key in enumerate(jax.random.split(noise_key, len(levels))):
            losses[f"step_{index + 1}_loss"] = process.loss(
                *(functools.partial(self, cache), x0, frame_mask, jnp.full(len(x0), levels[index]), step_key),
                prior=cache.mean,
                teacher=functools.partial(reached, index),
            )
        return sum(losses.values()) / len(losses), {name: loss.mean() for name, loss in losses.items()}

    def _crop(
        self,
        conditioning: Conditioning,
        mean: Float[Array, "b t m"],
        x0: Float[Array, "b t m"],
        frame_mask: Bool[Array, "b t"],
        crop_key: jax.Array,
        border_key: jax.Array,
    ) -> tuple[TextureCache, Float[Array, "b c m"], Bool[Array, "b c"]]:
        """Returns random crops: what the U-Net sees besides z, without gradient, and `x0` and `frame_mask`."""
        config, frames = self.config, x0.shape[1]
        mean, sketch = jax.lax.stop_gradient((mean, conditioning.prior + jnp.zeros_like(mean)))
        # A crop is preceded by the end of the context, or by frames of the window itself.
        ahead, known = self._before(conditioning)
        ahead, known = jnp.concatenate([ahead, x0], 1), jnp.concatenate([known, jnp.ones_like(x0)], 1)
        start = jax.random.randint(crop_key, (len(x0),), 0, frames - config.crop_frames + 1)
        start = jnp.where(jax.random.bernoulli(border_key, _AT_BORDER, start.shape), 0, start)

        def cut(length, *arrays):
            slices = jax.vmap(lambda array, at: jax.lax.dynamic_slice_in_dim(array, at, length))
            return (slices(array, start) for array in arrays)

        x0, mean, sketch, frame_mask = cut(config.crop_frames, x0, mean, sketch, frame_mask)
        return TextureCache(mean, sketch, *cut(_BEFORE, ahead, known)), x0, frame_mask

    def _range(self) -> tuple[float, float]:
        """Returns the bounds of normalised mels."""
        return (-1.0 - self.config.mean) / self.config.std, (1.0 - self.config.mean) / self.config.std

    def _before(self, conditioning: Conditioning) -> tuple[Array, Array]:
        """Returns the last frames of the context, normalised, and 1 for those that are valid, else 0."""
        length = conditioning.context_mask.sum(-1)
        take = jax.vmap(lambda row, count: jnp.roll(row, -count, axis=0)[-_BEFORE:])
        frames = take((conditioning.context - self.config.mean) / self.config.std, length)
        known = take(conditioning.context_mask, length)[..., None]
        return jnp.where(known, frames, 0.0), jnp.broadcast_to(known, frames.shape).astype(frames.dtype)

    def sample(
        self, conditioning: Conditioning, frames: int, keys: Keys, options: TextureOptions
    ) -> Float[Array, "b {frames} m"]:
        """See `Decoder.sample`. The mean is computed once, the U-Net evaluated once per step."""
        mean, std = self.config.mean, self.config.std
        if options.step is None:
            return mean + std * jnp.clip(self.mean(conditioning, frames), *self._range())
        process, cache = self.config.process, self.cache(conditioning)
        denoise = clipped(process.denoiser(functools.partial(self, cache), cache.mean), *self._range())
        noise_keys, step_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
        noise = standard_normal(noise_keys, cache.mean)
        start = process.objective.start(noise, NoiseLevel(options.logsnrs[0]), cache.mean)
        return mean + std * sample(denoise, options.step, options.logsnrs, start, step_keys)
