"""What a network predicts, how that becomes an estimate of the data, and the error it is trained with."""

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
Denoiser = Callable[[Mel, Float[Array, "..."]], Mel]  # (z, logsnr) -> x0


class Objective(Choice, abc.ABC):
    """A parameterisation of the denoiser and its training loss.

    `about` is a first estimate of x0, such as the note roll's sketch, and zero where there is none. An objective may
    predict the rest alone; the paper's takes no notice of it.
    """

    @abc.abstractmethod
    def target(self, x0: Mel, eps: Mel, level: NoiseLevel, about: Mel | float) -> Mel:
        """What the network should put out."""

    @abc.abstractmethod
    def to_x0(self, output: Mel, z: Mel, level: NoiseLevel, about: Mel | float) -> Mel:
        """The estimate of x0 that an output means."""

    def inputs(self, z: Mel, level: NoiseLevel, about: Mel | float) -> Mel:
        """What the network is shown of z."""
        return z

    def start(self, noise: Mel, level: NoiseLevel, about: Mel | float) -> Mel:
        """The z that sampling begins with at its first level, made of standard normal noise."""
        return noise

    def error(self, difference: Mel) -> Mel:
        """The loss of each element, of output less target."""
        return jnp.abs(difference)

    def weight(self, logsnr: Float[Array, "..."]) -> Float[Array, "..."]:
        """How much an example at this log-SNR counts in the loss."""
        return jnp.ones_like(logsnr)


@gin.register
@dataclasses.dataclass(frozen=True)
class Eps(Objective):
    """The network predicts the noise, with L1: the paper's objective (Hawthorne et al. 2022)."""

    kind = "eps"

    def target(self, x0, eps, level, about):
        return eps

    def to_x0(self, output, z, level, about):
        return (z - level.sigma * output) / level.alpha


@gin.register
@dataclasses.dataclass(frozen=True)
class V(Objective):
    """The network predicts alpha * eps - sigma * x0 (Salimans & Ho 2022), by squared error.

    Its weight, that of Hang et al. (2023), is min(SNR, gamma) on the squared error of x0; v's squared error is SNR + 1
    times as large.
    """

    kind = "v"
    gamma: float = 5.0

    def __post_init__(self):
        if not 0.0 < self.gamma < math.inf:
            raise InputError(f"V.gamma is {self.gamma!r}; choose a number above 0")

    def target(self, x0, eps, level, about):
        return level.alpha * eps - level.sigma * x0

    def to_x0(self, output, z, level, about):
        return level.alpha * z - level.sigma * output

    def error(self, difference):
        return jnp.square(difference)

    def weight(self, logsnr):
        snr = jnp.exp(logsnr)
        return jnp.minimum(snr, self.gamma) / (snr + 1.0)


@gin.register
@dataclasses.dataclass(frozen=True)
class X0(Objective):
    """The network predicts x0 less the first estimate, with L1.

    Small networks can learn this: those hardly wider than the mel cannot pass its noise through.
    """

    kind = "x0"

    def target(self, x0, eps, level, about):
        return x0 - about

    def to_x0(self, output, z, level, about):
        return about + output


@gin.register
@dataclasses.dataclass(frozen=True)
class Preconditioned(Objective):
    """EDM's preconditioning (Karras et al. 2022), for data of standard deviation `std` about the first estimate.

    With residual r = x0 - about, the network sees c_in * (alpha * r + sigma * eps) and its output F means
    r = c_skip * (alpha * r + sigma * eps) + c_out * F; at every level inputs and targets have unit variance.
    """

    kind = "preconditioned"
    std: float = 0.5

    def __post_init__(self):
        if not 0.0 < self.std < math.inf:
            raise InputError(f"Preconditioned.std is {self.std!r}; choose a number above 0")

    def _total(self, level):
        """The variance of alpha * r + sigma * eps."""
        return (level.alpha * self.std) ** 2 + level.sigma**2

    def _residual(self, z, level, about):
        return z - level.alpha * about

    def _skip(self, level):
        return level.alpha * self.std**2 / self._total(level)

    def _out(self, level):
        return level.sigma * self.std / jnp.sqrt(self._total(level))

    def inputs(self, z, level, about):
        return self._residual(z, level, about) / jnp.sqrt(self._total(level))

    def start(self, noise, level, about):
        return level.alpha * about + jnp.sqrt(self._total(level)) * noise

    def target(self, x0, eps, level, about):
        # (r - c_skip (alpha r + sigma eps)) / c_out, without the difference of large numbers where noise is small.
        return (level.sigma * (x0 - about) / self.std - level.alpha * self.std * eps) / jnp.sqrt(self._total(level))

    def to_x0(self, output, z, level, about):
        return about + self._skip(level) * self._residual(z, level, about) + self._out(level) * output

    def error(self, difference):
        return jnp.square(difference)


def clipped(denoise: Denoiser, low: float, high: float) -> Denoiser:
    """A denoiser whose x0 stays in the data's range, as the published sampler has it at every step."""
    return lambda z, logsnr: jnp.clip(denoise(z, logsnr), low, high)
