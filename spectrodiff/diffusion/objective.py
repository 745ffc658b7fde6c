"""What a network may predict, how that becomes an estimate of the data, and the loss it is trained with."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from spectrodiff.diffusion.schedule import Rung

Mel = Float[Array, "b t m"]
Denoiser = Callable[[Mel, Float[Array, "..."]], Mel]  # (z, logsnr) -> x0


class Objective(NamedTuple):
    """A parameterisation of the denoiser and its training loss."""

    target: Callable[[Mel, Mel, Rung], Mel]  # (x0, eps, rung) -> what the network should output
    to_x0: Callable[[Mel, Mel, Rung], Mel]  # (output, z, rung) -> x0
    error: Callable[[Mel], Mel]  # of output - target, elementwise
    weight: Callable[[Float[Array, "..."]], Float[Array, "..."]]  # of log-SNR


def _even(logsnr):
    return jnp.ones_like(logsnr)


def _min_snr(logsnr, gamma=5.0):
    """min(SNR, gamma) on x0's squared error (Hang et al. 2023), written for v's, which is SNR + 1 times as large."""
    snr = jnp.exp(logsnr)
    return jnp.minimum(snr, gamma) / (snr + 1.0)


EPS = Objective(  # the paper's
    target=lambda x0, eps, rung: eps,
    to_x0=lambda output, z, rung: (z - rung.sigma * output) / rung.alpha,
    error=jnp.abs,
    weight=_even,
)
V = Objective(  # Salimans & Ho 2022
    target=lambda x0, eps, rung: rung.alpha * eps - rung.sigma * x0,
    to_x0=lambda output, z, rung: rung.alpha * z - rung.sigma * output,
    error=jnp.square,
    weight=_min_snr,
)
X0 = Objective(  # what small networks can learn: those hardly wider than the mel cannot pass its noise through
    target=lambda x0, eps, rung: x0,
    to_x0=lambda output, z, rung: output,
    error=jnp.abs,
    weight=_even,
)
OBJECTIVES = {"eps": EPS, "v": V, "x0": X0}


def diffusion_loss(
    network: Denoiser,
    objective: Objective,
    x0: Mel,
    frame_mask: Bool[Array, "b t"],
    logsnr: Float[Array, " b"],
    key: jax.Array,
) -> Float[Array, " b"]:
    """Each example's weighted mean error over its real frames, at noise level `logsnr`.

    `network` maps (z, logsnr) to whatever `objective` has it predict.
    """
    rung = Rung(logsnr[:, None, None])
    eps = jax.random.normal(key, x0.shape, x0.dtype)
    output = network(rung.alpha * x0 + rung.sigma * eps, logsnr)
    error = objective.error(output - objective.target(x0, eps, rung)).mean(-1)
    frames = jnp.maximum(frame_mask.sum(-1), 1)
    return objective.weight(logsnr) * jnp.where(frame_mask, error, 0.0).sum(-1) / frames


def as_denoiser(network: Denoiser, objective: Objective) -> Denoiser:
    """Turns a network's output into x0."""
    return lambda z, logsnr: objective.to_x0(network(z, logsnr), z, Rung(logsnr))


def clipped(denoise: Denoiser, low: float, high: float) -> Denoiser:
    """Keeps x0 in the data's range, as the published sampler does at every step."""
    return lambda z, logsnr: jnp.clip(denoise(z, logsnr), low, high)
