"""The texture decoder: a transformer predicts the mean of the log-mel, and a small U-Net samples the residual.

A transformer whose width is hardly larger than the number of mel bins can predict a mel, but cannot reproduce noise in
every bin, so that its samples are too smooth. Here the transformer only predicts the mean. The residual, which is
called the texture, has a small variance given the notes. A second diffusion model samples it; its network is
two-dimensional, over frames and mel bins, and small.
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

from spectrodiff.audio.mel import mel_frequencies
from spectrodiff.config import MAX_SIZE, WINDOW_FRAMES, ModelConfig, check_choice, check_whole, is_whole
from spectrodiff.diffusion.objective import Preconditioned, clipped
from spectrodiff.diffusion.process import Process, masked_mean
from spectrodiff.diffusion.samplers import STEPS, Keys, one_step_target, sample, standard_normal
from spectrodiff.diffusion.schedule import LOGSNR_BOUND, EvenLogSNR, LogNormal, NoiseLevel
from spectrodiff.errors import InputError
from spectrodiff.models.decoder import Conditioning, DecoderConfig, Metrics, SongSampling
from spectrodiff.models.diffusion_decoder import DiffusionConfig, DiffusionDecoder
from spectrodiff.models.unet import UNet

CONTEXT_FRAMES = 16  # frames before the window that the U-Net has as context
# The fraction of training crops that begin where the window does, after the context. Of uniformly random crops of 64
# frames, only one in 193 would.
FRACTION_AT_START = 0.25
_TONES_BELOW = 1500.0  # Hz


@gin.register
@dataclasses.dataclass(frozen=True)
class TextureSamplingConfig(SongSampling):
    """The sampling options of a texture decoder: an update rule and its number of steps, where 0 samples the mean.

    The sampled texture is multiplied by `tone_temperature` in mel bins below 1.5 kHz, where most tones lie. Below 1,
    tones have less noise, but also less of the beating that real tones have.
    """

    sampler: str = "dpmpp"
    steps: int = 8
    tone_temperature: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        check_choice(self, "sampler", STEPS)
        check_whole(self, 0, 1000, "steps")
        if not 0.0 <= self.tone_temperature <= 1.0:
            raise InputError(f"tone_temperature is {self.tone_temperature}; choose 0 to 1")


class TextureOptions(NamedTuple):
    """The sampling options as a pytree.

    They are the update rule, the log-SNR of each step, and the factor of the texture in each mel bin; all are None if
    the sample is the mean.
    """

    step: jax.tree_util.Partial | None
    logsnrs: Float[Array, " steps"] | None
    factors: Float[Array, " m"] | None


@gin.register
@dataclasses.dataclass(frozen=True)
class TextureConfig(DecoderConfig):
    """The config of a texture decoder.

    The mean is the estimate of x0 by one evaluation of the diffusion decoder `mean_decoder` at the lowest log-SNR. Of
    its settings, only the objective of its process has an effect, the others must be the default ones.
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
        mean = self.mean_decoder
        unused = dataclasses.replace(mean, process=dataclasses.replace(mean.process, objective=Process().objective))
        if unused != DiffusionConfig():
            raise InputError(f"of the texture's mean_decoder, only process.objective has an effect, but it is {mean}")
        if not isinstance(self.process.objective, Preconditioned):
            raise InputError(f"a texture's objective is {self.process.objective.kind}; choose Preconditioned")
        check_whole(self, 1, CONTEXT_FRAMES, "patch")
        multiple = self.patch * 2 ** (len(self.channels) - 1)
        if CONTEXT_FRAMES % multiple:
            raise InputError(
                f"patch is {self.patch} and channels has {len(self.channels)} scales, which divide frames by "
                f"{multiple}, but the context has {CONTEXT_FRAMES}; choose fewer scales or a smaller patch"
            )
        if not is_whole(self.crop_frames, 1, WINDOW_FRAMES) or self.crop_frames % multiple:
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
            return TextureOptions(None, None, None)
        step = jax.tree_util.Partial(STEPS[self.sampling.sampler])
        factors = jnp.where(mel_frequencies() < _TONES_BELOW, self.sampling.tone_temperature, 1.0)
        return TextureOptions(step, self.process.schedule(self.sampling.steps), factors)


class TextureCache(NamedTuple):
    """The inputs of the U-Net besides z and the noise level, which are the same in all sampling steps.

    All mels are normalised. `before` are the frames before the window, which are prepended to it as context; `known` is
    1 where they are valid, else 0.
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
        zeros = jnp.zeros((len(conditioning.mask), frames, conditioning.context.shape[-1]))
        cache, process = self.mean_decoder.cache(conditioning), self.config.mean_decoder.process
        denoise = process.denoiser(lambda z, logsnr: self.mean_decoder(cache, z, logsnr, rngs), conditioning.prior)
        return denoise(zeros, jnp.float32(-LOGSNR_BOUND))

    def cache(self, conditioning: Conditioning) -> TextureCache:
        """Computes the inputs of the U-Net that are the same in all sampling steps.

        The window has as many frames as the sketch or, without a note roll, 256.
        """
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
        """Returns the output of the U-Net, an estimate of the target of `Preconditioned`.

        `z` is preconditioned by `Preconditioned.inputs`. `logsnr` has one value per row, or one for all. There is no
        dropout; `rngs` is accepted because the other decoders do, and not used.
        """
        mean, before = cache.mean, cache.before
        slope = jnp.diff(mean, axis=1, prepend=mean[:, :1]) / self.config.process.objective.std
        # The context's own frames take the place of its mean and sketch. The last channel marks its valid frames.
        context = jnp.stack([0.0 * before, before, 0.0 * before, before, cache.known], -1)
        window = jnp.stack([z, mean, slope, cache.sketch, jnp.zeros_like(mean)], -1)
        return self.texture(jnp.concatenate([context, window], 1), jnp.atleast_1d(logsnr))[:, before.shape[1] :]

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
        x0, mean = config.normalise(target), self.mean(conditioning, target.shape[1], rngs)
        error = config.mean_decoder.process.objective.error(mean - x0)
        mean_loss = masked_mean(error.mean(-1), frame_mask)
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
        """Returns the loss of progressive distillation (Salimans & Ho 2022), and its value at each step as a metric.

        At each step of its own sampling schedule, the U-Net learns to reach with one DDIM step what the `teacher`
        reaches in `substeps` evaluations with its own sampler; see `one_step_target`. The last step leads to the end of
        the teacher's schedule. The mean is the student's, for the teacher too. The loss [b] is averaged over the steps,
        which all have the same crop of each example. See `loss` for the other arguments.
        """
        *crop_keys, noise_key = jax.random.split(key, 3)
        x0, mean = self.config.normalise(target), self.mean(conditioning, target.shape[1])
        cache, x0, frame_mask = self._crop(conditioning, mean, x0, frame_mask, *crop_keys)
        network, process = functools.partial(self, cache), self.config.process
        teacher_network, teacher_process = functools.partial(teacher, cache), teacher.config.process
        denoise = clipped(teacher_process.denoiser(teacher_network, cache.mean), *self.config.bounds)
        logsnrs, (step, teacher_logsnrs, _) = self.config.options().logsnrs, teacher.config.options()
        unused_keys = jax.random.split(noise_key, len(x0))  # ddim and dpmpp are deterministic

        def target_at(index, z):
            now = logsnrs[index]
            if index + 1 < len(logsnrs):
                return one_step_target(denoise, step, z, now, logsnrs[index + 1], substeps, unused_keys)
            return sample(denoise, step, jnp.linspace(now, teacher_logsnrs[-1], substeps), z, unused_keys)

        losses = {}
        for index, step_key in enumerate(jax.random.split(noise_key, len(logsnrs))):
            logsnr, x0_at = jnp.full(len(x0), logsnrs[index]), functools.partial(target_at, index)
            losses[f"step_{index + 1}_loss"] = process.loss(
                network, x0, frame_mask, logsnr, step_key, prior=cache.mean, teacher=x0_at
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
        """Returns a random crop of each example: the U-Net's inputs (without gradients), `x0` and `frame_mask`."""
        config, frames = self.config, x0.shape[1]
        mean, sketch = jax.lax.stop_gradient((mean, conditioning.prior + jnp.zeros_like(mean)))
        # A crop is preceded by the end of the context, or by frames of the window itself.
        before, known = self._before(conditioning)
        before, known = jnp.concatenate([before, x0], 1), jnp.concatenate([known, jnp.ones_like(x0)], 1)
        start = jax.random.randint(crop_key, (len(x0),), 0, frames - config.crop_frames + 1)
        start = jnp.where(jax.random.bernoulli(border_key, FRACTION_AT_START, start.shape), 0, start)

        def crop(array, length):
            return jax.vmap(lambda row, at: jax.lax.dynamic_slice_in_dim(row, at, length))(array, start)

        x0, mean, sketch, frame_mask = (crop(array, config.crop_frames) for array in (x0, mean, sketch, frame_mask))
        before, known = (crop(array, CONTEXT_FRAMES) for array in (before, known))
        return TextureCache(mean, sketch, before, known), x0, frame_mask

    def _before(self, conditioning: Conditioning) -> tuple[Float[Array, "b k m"], Float[Array, "b k m"]]:
        """Returns the last frames of the context, normalised, and 1 for those that are valid, else 0."""
        length = conditioning.context_mask.sum(-1)
        last = jax.vmap(lambda row, count: jnp.roll(row, -count, axis=0)[-CONTEXT_FRAMES:])
        frames = last(self.config.normalise(conditioning.context), length)
        known = last(conditioning.context_mask, length)[..., None]
        return jnp.where(known, frames, 0.0), jnp.broadcast_to(known, frames.shape).astype(frames.dtype)

    def sample(
        self, conditioning: Conditioning, frames: int, keys: Keys, options: TextureOptions
    ) -> Float[Array, "b {frames} m"]:
        """See `Decoder.sample`. The mean is computed once, and the U-Net is evaluated once per step."""
        if options.step is None:
            return self.config.unnormalise(jnp.clip(self.mean(conditioning, frames), *self.config.bounds))
        process, cache = self.config.process, self.cache(conditioning)
        denoise = clipped(process.denoiser(functools.partial(self, cache), cache.mean), *self.config.bounds)
        noise_keys, step_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
        noise = standard_normal(noise_keys, cache.mean)
        start = process.objective.start(noise, NoiseLevel(options.logsnrs[0]), cache.mean)
        sampled = sample(denoise, options.step, options.logsnrs, start, step_keys)
        texture = sampled - jnp.clip(cache.mean, *self.config.bounds)
        return self.config.unnormalise(sampled + (options.factors - 1.0) * texture)
