"""Distances between two sets of embeddings, Fréchet and kernel distances, with confidence intervals.

The statistics of a song are one small `Gaussian`; those of a corpus, of the songs of a process or of a resampled corpus
are merged from those of its songs. A distance that is undefined is None, never NaN.
"""

import dataclasses
import warnings
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Float64, Int
from scipy.spatial.distance import cdist, pdist

from spectrodiff.errors import InputError

Frames = Float[np.ndarray, "_ d"]
Weights = Int[np.ndarray, " songs"]  # the number of times that each song counts
Interval = tuple[float, float]

SMALLEST = 500  # the smallest number of frames in the extrapolation of Gui et al. (2024)
KERNEL_SCALE = 100.0  # only makes the numbers readable (Chung et al. 2025)
_MEDIAN_FRAMES = 2000  # at most, for the median distance of pairs: two million pairs
_KERNEL_FRAMES = 5000  # of a set, at most, in a kernel distance, whose time is quadratic in their number
_BLOCK = 1024  # rows of a kernel matrix at a time
_FENCE = 1.5  # interquartile ranges above the third quartile (Tukey 1977)


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """The statistics of `count` frames: their mean, and the sum of outer products of deviations from it, `scatter`.

    Merging statistics in this form gives, up to rounding, those of all frames, however they were divided (Chan et al.
    1983).
    """

    count: int
    mean: Float64[np.ndarray, " d"]
    scatter: Float64[np.ndarray, "d d"]

    @classmethod
    def empty(cls, dims: int) -> "Gaussian":
        """Returns the statistics of no frames of `dims` dimensions."""
        return cls(0, np.zeros(dims), np.zeros((dims, dims)))

    @classmethod
    def of(cls, frames: Frames) -> "Gaussian":
        """Computes the statistics of frames.

        Raises:
          InputError: the frames hold NaN or infinity, which would spoil all statistics that they are merged with.
        """
        if not np.isfinite(frames).all():
            raise InputError("embeddings hold values that are not numbers; check the audio that they were made from")
        if not len(frames):
            return cls.empty(frames.shape[1])
        mean = frames.mean(axis=0, dtype=np.float64)
        deviations = frames - mean
        return cls(len(frames), mean, deviations.T @ deviations)

    @property
    def covariance(self) -> Float64[np.ndarray, "d d"]:
        """The covariance with divisor count - 1, as is common; the published evaluation has the divisor count."""
        return self.scatter / (self.count - 1)


def pool(songs: Sequence[Gaussian], weights: Weights | None = None) -> Gaussian:
    """Returns the statistics of the frames of all songs together, those of each song counted `weights` times."""
    weights = np.ones(len(songs), int) if weights is None else weights
    drawn = [(int(weight), song) for weight, song in zip(weights, songs, strict=True) if weight * song.count]
    if not drawn:
        return Gaussian.empty(len(songs[0].mean))
    count = sum(weight * song.count for weight, song in drawn)
    mean = sum(weight * song.count / count * song.mean for weight, song in drawn)
    scatter = sum(weight * song.scatter for weight, song in drawn)
    shifts = np.stack([np.sqrt(weight * song.count) * (song.mean - mean) for weight, song in drawn])
    return Gaussian(count, mean, scatter + shifts.T @ shifts)


def frechet_distance(p: Gaussian, q: Gaussian) -> float | None:
    """Returns the Fréchet distance |mean_p - mean_q|^2 + tr(S_p + S_q - 2 (S_p S_q)^(1/2)) (Kilgour et al. 2019).

    `p` and `q` have the mean and covariance of the embeddings of two sets of audio, as `Gaussian.of` returns them for
    frames [frames, dimensions]. The distance is at least 0, and None if one of the sets has fewer than two frames. If
    one has no more frames than dimensions, its covariance lacks rank and the distance comes out too large; a warning
    says so.
    """
    frames, dims = min(p.count, q.count), len(p.mean)
    if frames < 2:
        return None
    if frames <= dims:
        warnings.warn(
            f"a Fréchet distance of {dims} dimensions from {frames} frames: their covariance has rank {frames - 1} "
            "at most, and the distance comes out too large; use more audio",
            stacklevel=2,
        )
    return _distance(p, q)


def _distance(p: Gaussian, q: Gaussian) -> float:
    """Computes the Fréchet distance by the singular values of F_p^T F_q, where S = F F^T on either side.

    Their sum is the trace of the matrix square root. It is always real, and accurate even if the matrices lack rank.
    The usual way, by the eigenvalues of S_p S_q, loses half of the digits, as these are the squares of the singular
    values.
    """
    shift = p.mean - q.mean
    shared = np.linalg.svd(_factor(p).T @ _factor(q), compute_uv=False).sum()
    return float(max(0.0, shift @ shift + np.trace(p.covariance) + np.trace(q.covariance) - 2.0 * shared))


def _factor(gaussian: Gaussian) -> Float64[np.ndarray, "d r"]:
    """Returns a matrix F with F F^T equal to the covariance."""
    values, vectors = np.linalg.eigh(gaussian.covariance)
    return vectors * np.sqrt(np.maximum(values, 0.0))


@dataclasses.dataclass(frozen=True)
class Extrapolation:
    """A line fitted to Fréchet distances as a function of 1 / frames.

    `distance`, its intercept, is the distance for infinitely many frames, and may be a little below 0. `r2` is the
    fraction of the variance that the line explains: the nearer to 1, the more reliable is the intercept.
    """

    distance: float
    r2: float


def frechet_infinity(
    reference: Gaussian, frames: Frames, *, sizes: int = 25, smallest: int | None = None, seed: int = 0
) -> Extrapolation | None:
    """Extrapolates the Fréchet distance to infinitely many frames, FAD-infinity (Gui et al. 2024).

    A Fréchet distance has a bias of about 1 / frames, which this removes for `frames`; the bias of `reference` stays.
    Distances are taken at `sizes` numbers of frames, equally spaced from `smallest` to all of them. By default
    `smallest` is SMALLEST as published, or twice the dimensions where that is more, below which the bias is not linear.
    Frames are drawn without replacement. The authors' code draws with replacement, which samples the given frames
    instead of the music, so that the intercept is the plain distance of these frames.

    Returns None if there are fewer than two frames of `reference`, or fewer of `frames` than twice `smallest`.
    """
    smallest = smallest or max(SMALLEST, 2 * frames.shape[1])
    if reference.count < 2 or len(frames) < 2 * smallest:
        return None
    rng = np.random.default_rng(seed)
    counts = np.unique(np.linspace(smallest, len(frames), sizes).astype(int))
    draws = (frames[rng.choice(len(frames), count, replace=False)] for count in counts)
    distances = np.array([_distance(reference, Gaussian.of(draw)) for draw in draws])
    slope, intercept = np.polyfit(1.0 / counts, distances, 1)
    unexplained = np.square(distances - (intercept + slope / counts)).sum()
    variance = np.square(distances - distances.mean()).sum()
    r2 = 1.0 - unexplained / variance if variance else 1.0
    return Extrapolation(float(intercept), float(r2))


def kernel_distance(reference: Frames, frames: Frames, *, bandwidth: float | None = None) -> float | None:
    """Computes the kernel audio distance (Chung et al. 2025): KERNEL_SCALE times the squared maximum mean discrepancy.

    The kernel is exp(-|x - y|^2 / (2 bandwidth^2)). The default bandwidth is the median distance between frames of
    `reference`, of at most 2000 of them. The distance does not assume Gaussians, and its estimate is unbiased for any
    number of frames, so that it can be negative for similar distributions. Of each set at most 5000 frames are used,
    evenly spaced over all.

    Returns None if a set has fewer than two frames, or if the default bandwidth is 0.
    """
    if min(len(reference), len(frames)) < 2:
        return None
    reference, frames = (_subsample(x, _KERNEL_FRAMES) for x in (reference, frames))
    if bandwidth is None:
        bandwidth = float(np.median(pdist(_subsample(reference, _MEDIAN_FRAMES).astype(np.float64))))
    if not bandwidth:
        return None
    # The kernel of a frame with itself, 1, is left out, so that the estimate is unbiased.
    within = sum((_kernel_sum(x, x, bandwidth) - len(x)) / (len(x) * (len(x) - 1)) for x in (reference, frames))
    across = _kernel_sum(reference, frames, bandwidth) / (len(reference) * len(frames))
    return KERNEL_SCALE * (within - 2.0 * across)


def _subsample(frames: Frames, most: int) -> Frames:
    """Returns `most` of the frames, evenly spaced, or all if there are fewer."""
    return frames[np.linspace(0, len(frames) - 1, min(len(frames), most)).astype(int)]


def _kernel_sum(x: Frames, y: Frames, bandwidth: float) -> float:
    blocks = (x[start : start + _BLOCK] for start in range(0, len(x), _BLOCK))
    return float(sum(np.exp(cdist(block, y, "sqeuclidean") / (-2.0 * bandwidth**2)).sum() for block in blocks))


def bootstrap_interval(
    statistic: Callable[[Weights], float | None],
    songs: int,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval | None:
    """Computes a bootstrap confidence interval of a figure over songs, which are resampled as a whole (Efron 1979).

    `statistic` computes the figure from the number of times that each song counts, which is 1 for the figure itself.
    The interval contains the central fraction `level` of the values of resamples, shifted so that their mean is the
    figure: a resample has fewer distinct songs, which biases a Fréchet distance upwards.

    Returns None if there are fewer than two songs, or if the figure is undefined.
    """
    figure = statistic(np.ones(songs, int)) if songs > 1 else None
    if figure is None:
        return None
    draws = np.random.default_rng(seed).multinomial(songs, np.full(songs, 1 / songs), size=resamples)
    values = np.array([value for value in map(statistic, draws) if value is not None])
    low, high = np.quantile(values - values.mean(), [(1 - level) / 2, (1 + level) / 2])
    return float(figure + low), float(figure + high)


def frechet_interval(reference: Gaussian | Sequence[Gaussian], songs: Sequence[Gaussian], **options) -> Interval | None:
    """Computes the `bootstrap_interval` of the Fréchet distance of all songs together, cut to numbers from 0 up.

    If `reference` is a sequence, it has the statistics of the true audio of the same songs, and is resampled with them.
    A single Gaussian is not resampled.
    """

    def statistic(weights: Weights) -> float | None:
        p = reference if isinstance(reference, Gaussian) else pool(reference, weights)
        q = pool(songs, weights)
        return _distance(p, q) if min(p.count, q.count) > 1 else None

    interval = bootstrap_interval(statistic, len(songs), **options)
    return interval and (max(0.0, interval[0]), interval[1])


def song_distances(reference: Gaussian, songs: Sequence[Gaussian]) -> list[float | None]:
    """Computes the Fréchet distance of each single song (Gui et al. 2024), which is biased upwards for short songs."""
    return [_distance(reference, song) if min(reference.count, song.count) > 1 else None for song in songs]


def outliers(distances: Sequence[float | None]) -> list[int]:
    """Returns the indices of songs whose distance exceeds Tukey's upper fence, the farthest first.

    They should be listened to, since the figures of all songs may be due to these alone.
    """
    known = [distance for distance in distances if distance is not None]
    if not known:
        return []
    lower, upper = np.quantile(known, [0.25, 0.75])
    fence = upper + _FENCE * (upper - lower)
    beyond = [index for index, distance in enumerate(distances) if distance is not None and distance > fence]
    return sorted(beyond, key=lambda index: -distances[index])
