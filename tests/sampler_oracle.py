"""The published sampler, from its formulas, in float64 numpy and one step at a time (Hawthorne et al. 2022).

It shares no code with the package, is given its noise, and speaks of time t in (0, 1] where the package has log-SNR.
"""

from collections.abc import Callable, Sequence

import numpy as np

Network = Callable[[np.ndarray, float], np.ndarray]  # (z, t) -> eps


def log_snr(t: float) -> float:
    """L(t) = -2 ln tan(a t + b), from 20 at t = 0 to -20 at t = 1."""
    b = np.arctan(np.exp(-10.0))
    a = np.arctan(np.exp(10.0)) - b
    return -2.0 * np.log(np.tan(a * t + b))


def signal(log_snr: float) -> float:
    """The variance of x0 in z; that of the noise is its complement."""
    return 1.0 / (1.0 + np.exp(-log_snr))


def published_sample(
    conditional: Network, unconditional: Network, weight: float, first: np.ndarray, drawn: Sequence[np.ndarray]
) -> np.ndarray:
    """x0 from z(1) = `first` in as many ancestral steps as there are `drawn` noises, and a last look.

    From t to s: eps is guided, x0 = (z - sigma eps) / alpha clipped to [-1, 1], and z(s) is normal around the mean of
    q(z(s) | z(t), x0), with the larger variance (1 - SNR(t) / SNR(s)) sigma(t)^2. The step to s = 0 gives x0 itself.
    """
    z = np.asarray(first, np.float64)
    steps = len(drawn) + 1
    for i in range(steps - 1, -1, -1):
        t, s = (i + 1) / steps, i / steps
        eps = weight * conditional(z, t) + (1.0 - weight) * unconditional(z, t)
        alpha2, sigma2 = signal(log_snr(t)), signal(-log_snr(t))
        x0 = np.clip((z - np.sqrt(sigma2) * eps) / np.sqrt(alpha2), -1.0, 1.0)
        if i == 0:
            return x0
        ratio = np.exp(log_snr(t) - log_snr(s))
        next_alpha2 = signal(log_snr(s))
        mean = np.sqrt(next_alpha2 / alpha2) * ratio * z + np.sqrt(next_alpha2) * (1.0 - ratio) * x0
        z = mean + np.sqrt((1.0 - ratio) * sigma2) * np.asarray(drawn[steps - 1 - i], np.float64)
