"""Training objectives: what the network predicts, its conversion to an estimate of x0, and the training loss."""

import abc
import dataclasses
import math
from collections.abc import Callable

import gin
import jax.numpy as jnp
from jaxtyping import Array, Float

from spectrodiff.config import Choice
from spectrodiff.diffusion.schedule import NoiseLevel
from spectrodiff.errors import InputError

Mel = Float[Array, "b t m"]
Denoiser = Callable[[Mel, Float[Array, "..."]], Mel]  # (z, logsnr) -> x0; logsnr is a scalar or [b]


class Objective(Choice, abc.ABC):
    """A parameterisation of the denoiser, with its training loss.

    In all methods, mels are [b, t, m], `level` is the noise level of z = alpha * x0 + sigma * eps, and `prior` is an
    estimate of x0 that is known before any diffusion step, such as the note roll's sketch (compare the data-dependent
    prior of Lee et al. 2022, PriorGrad), or 0. An objective may predict the difference of x0 from the prior; the
    paper's objective ignores it.
    """

    @abc.abstractmethod
    def target(self, x0: Mel, eps: Mel, level: NoiseLevel, prior: Mel | float) -> Mel:
        """Returns the target of the network's output."""

    @abc.abstractmethod
    def to_x0(self, output: Mel, z: Mel, level: NoiseLevel, prior: Mel | float) -> Mel:
        """Returns the estimate of x0 that corresponds to the network's `output` at z."""

    def inputs(self, z: Mel, level: NoiseLevel, prior: Mel | float) -> Mel:
        """Returns the network's input for z, by default z itself."""
        return z

    def start(self, noise: Mel, level: NoiseLevel, prior: Mel | float) -> Mel:
        """Returns the initial z of sampling, at the first noise level, from standard normal `noise`.

        The default is the noise itself, which is right for schedules that begin near pure noise. From a higher log-SNR
        on it is a poor approximation, since z lacks alpha * x0: at log-SNR -4, alpha is 0.13.
        """
        return noise

    def error(self, difference: Mel) -> Mel:
        """Returns the elementwise loss, where `difference` is the network's output minus its target."""
        return jnp.abs(difference)

    def weight(self, logsnr: Float[Array, "..."]) -> Float[Array, "..."]:
        """Returns the weight of an example's loss at this log-SNR."""
        return jnp.ones_like(logsnr)


@gin.register
@dataclasses.dataclass(frozen=True)
class Eps(Objective):
    """Prediction of the noise with an L1 loss, the paper's objective (Hawthorne et al. 2022)."""

    kind = "eps"

    def target(self, x0, eps, level, prior):
        return eps

    def to_x0(self, output, z, level, prior):
        return (z - level.sigma * output) / level.alpha


@gin.register
@dataclasses.dataclass(frozen=True)
class V(Objective):
    """Prediction of v = alpha * eps - sigma * x0 (Salimans & Ho 2022) with a squared error.

    The weight is the min-SNR weight of Hang et al. (2023): min(SNR, gamma) on the squared error of x0. The squared
    error of v is SNR + 1 times that of x0, hence the denominator.
    """

    kind = "v"
    gamma: float = 5.0

    def __post_init__(self):
        if not 0.0 < self.gamma < math.inf:
            raise InputError(f"V.gamma is {self.gamma!r}; choose a number above 0")

    def target(self, x0, eps, level, prior):
        return level.alpha * eps - level.sigma * x0

    def to_x0(self, output, z, level, prior):
        return level.alpha * z - level.sigma * output

    def error(self, difference):
        return jnp.square(difference)

    def weight(self, logsnr):
        snr = jnp.exp(logsnr)
        return jnp.minimum(snr, self.gamma) / (snr + 1.0)


@gin.register
@dataclasses.dataclass(frozen=True)
class X0(Objective):
    """Prediction of x0 minus the prior, with an L1 loss.

    It suits small networks: to predict eps or v, a network has to reproduce the noise of every mel bin, which one that
    is hardly wider than the mel cannot.
    """

    kind = "x0"

    def target(self, x0, eps, level, prior):
        return x0 - prior

    def to_x0(self, output, z, level, prior):
        return prior + output


@gin.register
@dataclasses.dataclass(frozen=True)
class Preconditioned(Objective):
    """The preconditioning of EDM (Karras et al. 2022), for data whose deviation from the prior has the given `std`.

    With the residual r = x0 - prior, the network's input is c_in * (alpha * r + sigma * eps), and its output F gives
    the estimate r = c_skip * (alpha * r + sigma * eps) + c_out * F. The coefficients are such that inputs and targets
    have unit variance at every noise level. They are those of EDM, written for the variance-preserving process.
    """

    kind = "preconditioned"
    std: float = 0.5

    def __post_init__(self):
        if not 0.0 < self.std < math.inf:
            raise InputError(f"Preconditioned.std is {self.std!r}; choose a number above 0")

    def _variance(self, level):
        """Returns the variance of alpha * r + sigma * eps."""
        return (level.alpha * self.std) ** 2 + level.sigma**2

    def _noisy_residual(self, z, level, prior):
        """Returns alpha * r + sigma * eps."""
        return z - level.alpha * prior

    def _c_skip(self, level):
        return level.alpha * self.std**2 / self._variance(level)

    def _c_out(self, level):
        return level.sigma * self.std / jnp.sqrt(self._variance(level))

    def inputs(self, z, level, prior):
        return self._noisy_residual(z, level, prior) / jnp.sqrt(self._variance(level))

    def start(self, noise, level, prior):
        return level.alpha * prior + jnp.sqrt(self._variance(level)) * noise

    def target(self, x0, eps, level, prior):
        # Equals (r - c_skip (alpha r + sigma eps)) / c_out, without cancellation where sigma is small.
        scaled = level.sigma * (x0 - prior) / self.std - level.alpha * self.std * eps
        return scaled / jnp.sqrt(self._variance(level))

    def to_x0(self, output, z, level, prior):
        return prior + self._c_skip(level) * self._noisy_residual(z, level, prior) + self._c_out(level) * output

    def error(self, difference):
        return jnp.square(difference)


def clipped(denoise: Denoiser, low: float, high: float) -> Denoiser:
    """Returns a denoiser whose estimate of x0 is clipped to [low, high], as in the published sampler."""
    return lambda z, logsnr: jnp.clip(denoise(z, logsnr), low, high)
