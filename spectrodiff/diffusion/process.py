"""A diffusion process: what the network predicts, at which noise levels it learns, and at which it samples."""

import dataclasses

import gin
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from spectrodiff.diffusion.objective import Denoiser, Eps, Mel, Objective
from spectrodiff.diffusion.schedule import EvenTime, NoiseDistribution, NoiseLevel, Schedule, UniformTime


def masked_mean(error: Float[Array, "b t"], frame_mask: Bool[Array, "b t"]) -> Float[Array, " b"]:
    """Each example's mean over its real frames, and 0 where it has none."""
    return jnp.where(frame_mask, error, 0.0).sum(-1) / jnp.maximum(frame_mask.sum(-1), 1)


@gin.register
@dataclasses.dataclass(frozen=True)
class Process:
    """The choices of Karras et al. (2022) in one object, which is saved with the weights; the defaults are the paper's.

    In all methods `network` maps (z, logsnr) to whatever `objective` has it predict, and `prior` is a first estimate of
    x0, or 0.
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
    ) -> Float[Array, " b"]:
        """Each example's weighted mean error over its real frames, at its noise level `logsnr`; 0 where it has none."""
        level = NoiseLevel(logsnr[:, None, None])
        eps = jax.random.normal(key, x0.shape, x0.dtype)
        z = level.alpha * x0 + level.sigma * eps
        output = network(self.objective.inputs(z, level, prior), logsnr)
        error = self.objective.error(output - self.objective.target(x0, eps, level, prior)).mean(-1)
        return self.objective.weight(logsnr) * masked_mean(error, frame_mask)

    def denoiser(self, network: Denoiser, prior: Mel | float = 0.0) -> Denoiser:
        """The network as an estimate of x0."""

        def denoise(z: Mel, logsnr: Float[Array, "..."]) -> Mel:
            level = NoiseLevel(logsnr)
            output = network(self.objective.inputs(z, level, prior), logsnr)
            return self.objective.to_x0(output, z, level, prior)

        return denoise
