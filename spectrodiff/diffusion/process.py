"""The diffusion process: a training objective, a distribution of noise levels for training, and a sampling schedule."""

import dataclasses
from collections.abc import Callable

import gin
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from spectrodiff.diffusion.objective import Denoiser, Eps, Mel, Objective
from spectrodiff.diffusion.schedule import EvenTime, NoiseDistribution, NoiseLevel, Schedule, UniformTime


def masked_mean(error: Float[Array, "b t"], frame_mask: Bool[Array, "b t"]) -> Float[Array, " b"]:
    """Returns the mean of each example's `error` over the frames where `frame_mask` is true, or 0 if there are none."""
    return jnp.where(frame_mask, error, 0.0).sum(-1) / jnp.maximum(frame_mask.sum(-1), 1)


@gin.register
@dataclasses.dataclass(frozen=True)
class Process:
    """The design choices of a diffusion model that Karras et al. (2022) separate; the defaults are the paper's.

    It is part of the config that is stored with the weights. In all methods `network` maps (z, logsnr) to the quantity
    that `objective` makes it predict, and `prior` is an estimate of x0 known beforehand, or 0; see `Objective`.
    """

    objective: Objective = Eps()
    levels: NoiseDistribution = UniformTime()
    schedule: Schedule = EvenTime()

    def loss(
        self,
        network: Denoiser,
        x0: Mel,
        frame_mask: Bool[Array, "b t"],
        logsnr: Float[Array, " b"],
        key: jax.Array,
        prior: Mel | float = 0.0,
        teacher: Callable[[Mel], Mel] | None = None,
    ) -> Float[Array, " b"]:
        """Returns each example's weighted loss at its noise level `logsnr`, averaged over its valid frames.

        `x0` and its noised versions are [b, t, m], and `key` draws the noise. The loss of an example without valid
        frames is 0. In distillation, `teacher` maps z to the estimate of x0 that replaces the true x0 as the target.
        """
        level = NoiseLevel(logsnr[:, None, None])
        eps = jax.random.normal(key, x0.shape, x0.dtype)
        z = level.alpha * x0 + level.sigma * eps
        if teacher is not None:
            x0 = jax.lax.stop_gradient(teacher(z))
            eps = (z - level.alpha * x0) / level.sigma
        output = network(self.objective.inputs(z, level, prior), logsnr)
        error = self.objective.error(output - self.objective.target(x0, eps, level, prior)).mean(-1)
        return self.objective.weight(logsnr) * masked_mean(error, frame_mask)

    def denoiser(self, network: Denoiser, prior: Mel | float = 0.0) -> Denoiser:
        """Returns a function that estimates x0 from z and a log-SNR by evaluating `network`."""

        def denoise(z: Mel, logsnr: Float[Array, "..."]) -> Mel:
            level = NoiseLevel(logsnr)
            output = network(self.objective.inputs(z, level, prior), logsnr)
            return self.objective.to_x0(output, z, level, prior)

        return denoise
