"""A model and a sampler put together: encoded conditioning in, log-mel out."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from spectrodiff.audio.mel import MEL_BINS
from spectrodiff.config import DiffusionConfig
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
