"""Noise levels, given by their log-SNR: distributions of them for training and schedules of them for sampling."""

import abc
import dataclasses
import math
from typing import NamedTuple

import gin
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from spectrodiff.config import Choice
from spectrodiff.errors import InputError

LOGSNR_BOUND = 20.0  # log-SNR goes from +20 at t = 0 to -20 at t = 1 (Hawthorne et al. 2022)
# The angle of the cosine schedule is _A * t + _B at time t: alpha and sigma are its cosine and sine.
_B = math.atan(math.exp(-LOGSNR_BOUND / 2))
_A = math.atan(math.exp(LOGSNR_BOUND / 2)) - _B


class NoiseLevel(NamedTuple):
    """A noise level of the variance-preserving process z = alpha * x0 + sigma * eps, alpha^2 + sigma^2 = 1."""

    logsnr: Float[Array, "*shape"]

    @property
    def alpha(self) -> Float[Array, "*shape"]:
        return jnp.sqrt(jax.nn.sigmoid(self.logsnr))

    @property
    def sigma(self) -> Float[Array, "*shape"]:
        return jnp.sqrt(jax.nn.sigmoid(-self.logsnr))


def logsnr_at(time: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Returns the log-SNR at a time in [0, 1] by the cosine schedule (Nichol & Dhariwal 2021), truncated to +-20."""
    return -2.0 * jnp.log(jnp.tan(_A * time + _B))


def time_at(logsnr: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Returns the time in [0, 1] of a log-SNR, the inverse of `logsnr_at`. Networks embed the noise level by it."""
    return (jnp.arctan(jnp.exp(-0.5 * logsnr)) - _B) / _A


class NoiseDistribution(Choice, abc.ABC):
    """The distribution of the noise levels of training examples, defined by its quantile function."""

    @abc.abstractmethod
    def logsnr(self, quantile: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Returns the log-SNR at a quantile in [0, 1). Uniform random quantiles give samples of the distribution."""


@gin.register
@dataclasses.dataclass(frozen=True)
class UniformTime(NoiseDistribution):
    """Noise levels at times u**power on the cosine schedule, with u uniform in [0, 1).

    The paper's power is 1. A power below 1 makes high noise levels more frequent.
    """

    kind = "uniform_time"
    power: float = 1.0

    def __post_init__(self):
        if not 0.0 < self.power < math.inf:
            raise InputError(f"UniformTime.power is {self.power!r}; choose a number above 0")

    def logsnr(self, quantile):
        return logsnr_at(quantile**self.power)


@gin.register
@dataclasses.dataclass(frozen=True)
class LogNormal(NoiseDistribution):
    """Normally distributed log-SNR.

    The defaults are those of EDM (Karras et al. 2022), where ln(sigma / alpha) has mean -1.2 and std 1.2.
    """

    kind = "log_normal"
    mean: float = 2.4
    std: float = 2.4

    def __post_init__(self):
        if not 0.0 < self.std < math.inf or not math.isfinite(self.mean):
            raise InputError(f"LogNormal has mean {self.mean!r} and std {self.std!r}; choose a std above 0")

    def logsnr(self, quantile):
        normal = jax.scipy.special.ndtri(jnp.clip(quantile, 1e-6, 1.0 - 1e-6))
        return jnp.clip(self.mean + self.std * normal, -LOGSNR_BOUND, LOGSNR_BOUND)


class Schedule(Choice, abc.ABC):
    """The noise levels at which sampling evaluates the network."""

    @abc.abstractmethod
    def __call__(self, steps: int) -> Float[Array, "{steps}"]:
        """Returns the log-SNR of each step, in increasing order. The estimate of x0 at the last one is the sample."""


@gin.register
@dataclasses.dataclass(frozen=True)
class EvenTime(Schedule):
    """Noise levels evenly spaced in time on the cosine schedule, starting at time 1: the paper's schedule."""

    kind = "even_time"

    def __call__(self, steps):
        return logsnr_at(jnp.arange(steps, 0, -1) / steps)


@dataclasses.dataclass(frozen=True)
class _Bounded(Schedule):
    """A schedule whose first and last noise levels are the log-SNRs `low` and `high`."""

    low: float = -8.0
    high: float = 8.0

    def __post_init__(self):
        if not -LOGSNR_BOUND <= self.low < self.high <= LOGSNR_BOUND:
            raise InputError(
                f"a schedule runs from log-SNR {self.low!r} to {self.high!r}; choose -20 to 20, the lower one first"
            )


@gin.register
@dataclasses.dataclass(frozen=True)
class EvenLogSNR(_Bounded):
    """Noise levels evenly spaced in log-SNR from `low` to `high`."""

    kind = "even_logsnr"

    def __call__(self, steps):
        return jnp.linspace(self.low, self.high, steps)


@gin.register
@dataclasses.dataclass(frozen=True)
class Karras(_Bounded):
    """Noise levels evenly spaced in (sigma / alpha)^(1 / rho), from log-SNR `low` to `high` (Karras et al. 2022)."""

    kind = "karras"
    rho: float = 7.0

    def __post_init__(self):
        super().__post_init__()
        if not 0.0 < self.rho < math.inf:
            raise InputError(f"Karras.rho is {self.rho!r}; choose a number above 0")

    def __call__(self, steps):
        first, last = (math.exp(-0.5 * logsnr / self.rho) for logsnr in (self.low, self.high))
        return -2.0 * self.rho * jnp.log(jnp.linspace(first, last, steps))
