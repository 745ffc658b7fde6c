"""A model and a sampler put together: encoded conditioning in, log-mel out."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from spectrodiff.audio.mel import MEL_BINS
from spectrodiff.config import WINDOW_FRAMES, DiffusionConfig
from spectrodiff.diffusion.guidance import guide
from spectrodiff.diffusion.objective import OBJECTIVES, as_denoiser, clipped
from spectrodiff.diffusion.samplers import Step, sample
from spectrodiff.diffusion.schedule import ladder
from spectrodiff.models.spectrogram_model import Conditioning, SpectrogramModel


def sample_mel(
    model: SpectrogramModel,
    cfg: DiffusionConfig,
    conditioning: Conditioning,
    frames: int,
    key: jax.Array,
    *,
    step: Step,
    steps: int,
    guidance: float | Float[Array, ""] | None,
) -> Float[Array, "b t m"]:
    """Scaled log-mel in [-1, 1] of one window of `frames` frames, for each example of `conditioning`.

    `guidance` None evaluates the network once a step, any weight twice (as one batch of two).
    """
    batch = conditioning.mask.shape[0]
    guided = guidance is not None
    memory = model.remember(conditioning.with_unconditional() if guided else conditioning)
    denoise = as_denoiser(lambda z, logsnr: model.decoder(z, logsnr, memory), OBJECTIVES[cfg.prediction])
    if guided:
        denoise = guide(denoise, guidance)
    denoise = clipped(denoise, (-1.0 - cfg.mean) / cfg.std, (1.0 - cfg.mean) / cfg.std)
    noise_key, step_key = jax.random.split(key)
    noise = jax.random.normal(noise_key, (batch, frames, MEL_BINS), jnp.float32)
    return cfg.mean + cfg.std * sample(denoise, step, ladder(steps), noise, step_key)


@functools.cache
def window_sampler(graph: nnx.GraphDef, cfg: DiffusionConfig) -> Callable[..., Float[Array, "b t m"]]:
    """The jitted function from `graph`'s states, tokens and context to scaled log-mel of a window.

    It is compiled once for each shape and each `step`, `steps` and whether `guidance` is other than 1.
    """

    @functools.partial(jax.jit, static_argnames=("step", "steps", "guided"))
    def compiled(weights, tokens, context, context_mask, key, guidance, *, step, steps, guided):
        model = nnx.merge(graph, *weights)
        conditioning = model.encode(tokens, context, context_mask, WINDOW_FRAMES)
        weight = guidance if guided else None
        return sample_mel(model, cfg, conditioning, WINDOW_FRAMES, key, step=step, steps=steps, guidance=weight)

    def sample_window(weights, tokens, context, context_mask, key, *, step, steps, guidance):
        options = {"step": step, "steps": steps, "guided": guidance != 1.0}
        return compiled(weights, tokens, context, context_mask, key, guidance, **options)

    return sample_window
