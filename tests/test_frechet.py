import itertools
import warnings

import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings

from spectrodiff.audio.mel import log_mel_on_host
from spectrodiff.errors import InputError
from spectrodiff.evaluation.frechet import (
    Gaussian,
    bootstrap_interval,
    frechet_distance,
    frechet_infinity,
    frechet_interval,
    kernel_distance,
    outliers,
    pool,
    song_distances,
)

RNG = np.random.default_rng(0)


def gaussian(mean, covariance, count=1001):
    """A Gaussian with exactly this mean and covariance, and enough frames for its dimensions."""
    mean, covariance = np.asarray(mean, float), np.asarray(covariance, float)
    return Gaussian(count, mean, covariance * (count - 1))


def random_covariance(dims, rank=None):
    x = np.random.default_rng(dims).normal(size=(dims, rank or 2 * dims))
    return x @ x.T / x.shape[1]


def random_rotation(dims):
    return np.linalg.qr(np.random.default_rng(1).normal(size=(dims, dims)))[0]


def assert_gaussians_close(p, q):
    assert p.count == q.count
    np.testing.assert_allclose(p.mean, q.mean, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(p.scatter, q.scatter, rtol=1e-9, atol=1e-9 * max(1.0, np.abs(q.scatter).max()))


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, 60), max_size=3), st.sampled_from([0.0, 1e4]), st.sampled_from([np.float32, np.float64]))
def test_merged_parts_equal_the_whole(cuts, offset, dtype):
    """Includes float32 frames far from 0, where sums of squares would lose all precision."""
    frames = (np.random.default_rng(0).normal(size=(60, 5)) + offset).astype(dtype)
    whole = Gaussian.of(frames)
    np.testing.assert_allclose(whole.covariance, np.cov(frames.astype(np.float64), rowvar=False), rtol=1e-9, atol=1e-12)
    parts = np.split(frames, sorted(cuts))
    one_by_one = Gaussian.empty(5)
    for part in parts:
        one_by_one = pool([one_by_one, Gaussian.of(part)])
    assert_gaussians_close(one_by_one, whole)
    assert_gaussians_close(pool([Gaussian.of(part) for part in reversed(parts)]), whole)


def test_pool_weights_repeat_songs():
    songs = [RNG.normal(index, 1 + index, size=(10 + index, 3)) for index in range(3)]
    repeated = np.concatenate([songs[0], songs[2], songs[2]])
    assert_gaussians_close(pool([Gaussian.of(song) for song in songs], np.array([1, 0, 2])), Gaussian.of(repeated))
    assert pool([Gaussian.of(song) for song in songs], np.array([0, 0, 0])).count == 0


def test_distance_of_commuting_covariances_has_closed_form():
    """Squared differences of means and of standard deviations, summed; a rotation does not change the distance."""
    means, deviations = RNG.normal(size=(2, 6)), RNG.uniform(0.1, 3, size=(2, 6))
    expected = np.square(means[0] - means[1]).sum() + np.square(deviations[0] - deviations[1]).sum()
    turn = random_rotation(6)
    for axes in (np.eye(6), turn):
        p, q = (gaussian(axes @ m, axes @ np.diag(s**2) @ axes.T) for m, s in zip(means, deviations, strict=True))
        assert frechet_distance(p, q) == pytest.approx(expected, rel=1e-12)
        assert frechet_distance(q, p) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("rank", [None, 3])
def test_distance_of_a_shift_is_its_square_and_zero_for_equals(rank):
    """Up to rounding, for low rank too; eigenvalues of the product of covariances would give errors of 1e-7."""
    covariance, shift = random_covariance(8, rank), RNG.normal(size=8)
    here, there = gaussian(np.zeros(8), covariance), gaussian(shift, covariance)
    assert frechet_distance(here, there) == pytest.approx(shift @ shift, rel=1e-12)
    assert 0.0 <= frechet_distance(here, here) < 1e-12


def test_distance_equals_the_matrix_square_root_formula():
    p, q = (
        gaussian(RNG.normal(size=20), random_covariance(20)),
        gaussian(RNG.normal(size=20), random_covariance(20) ** 2),
    )
    root = scipy.linalg.sqrtm(p.covariance @ q.covariance)
    expected = np.square(p.mean - q.mean).sum() + np.trace(p.covariance + q.covariance - 2 * root.real)
    assert frechet_distance(p, q) == pytest.approx(expected, rel=1e-9)


def test_too_few_frames_warn_or_give_none():
    few, many = Gaussian.of(RNG.normal(size=(5, 8))), Gaussian.of(RNG.normal(size=(50, 8)))
    with pytest.warns(UserWarning, match=r"\b8 dimensions .*\b5 frames"):
        assert frechet_distance(few, many) > 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert frechet_distance(many, many) == pytest.approx(0, abs=1e-12)
        assert frechet_distance(Gaussian.of(RNG.normal(size=(1, 8))), many) is None
        assert frechet_distance(many, Gaussian.empty(8)) is None
    silence = Gaussian.of(np.ones((50, 8)))  # constant embeddings, as of silence
    assert frechet_distance(silence, many) == pytest.approx(
        np.square(1 - many.mean).sum() + np.trace(many.covariance), rel=1e-12
    )


def test_nan_frames_raise_input_error():
    with pytest.raises(InputError, match="embeddings"):
        Gaussian.of(np.array([[0.0, np.nan]]))


def test_distance_increases_with_noise():
    """The test of Kilgour et al. (2019): stronger distortions have larger distances."""
    time = np.arange(8000) / 16000
    sines = [np.sin(2 * np.pi * hz * time) for hz in np.geomspace(100, 4000, 12)]

    def mel_gaussian(noise):
        rng = np.random.default_rng(0)
        return Gaussian.of(np.concatenate([log_mel_on_host(x + noise * rng.normal(size=8000)) for x in sines]))

    clean = mel_gaussian(1e-3)
    distances = [frechet_distance(clean, mel_gaussian(noise)) for noise in (1e-3, 1e-2, 1e-1, 1.0)]
    assert distances[0] < 1e-9
    assert all(b > a + 1.0 for a, b in itertools.pairwise(distances))


def test_frechet_infinity_removes_the_bias():
    """The frames have the distribution of the reference, so the distance is 0, but its plain estimate is biased."""
    dims = 32
    reference, frames = gaussian(np.zeros(dims), np.eye(dims)), RNG.normal(size=(1500, dims))
    plain = frechet_distance(reference, Gaussian.of(frames))
    infinite = frechet_infinity(reference, frames, smallest=200)
    assert plain > 0.1
    assert abs(infinite.distance) < 0.15 * plain
    assert infinite.r2 > 0.95
    assert frechet_infinity(reference, frames[:999]) is None
    assert frechet_infinity(reference, frames) is not None


def test_kernel_distance_of_gaussians_has_closed_form():
    """For x ~ N(0, a^2), y ~ N(m, b^2): E k(x, y) = (h^2 / v)^(d/2) exp(-|m|^2 / 2v), v = a^2 + b^2 + h^2."""
    dims, h, mean = 4, 1.7, np.array([0.8, -0.4, 0.0, 0.3])

    def similarity(a, b, shift):
        v = a * a + b * b + h * h
        return (h * h / v) ** (dims / 2) * np.exp(-shift @ shift / (2 * v))

    expected = similarity(1, 1, 0 * mean) + similarity(1.5, 1.5, 0 * mean) - 2 * similarity(1, 1.5, mean)
    x, y = RNG.normal(size=(3000, dims)), mean + 1.5 * RNG.normal(size=(2500, dims))
    assert kernel_distance(x, y, bandwidth=h) == pytest.approx(100 * expected, rel=0.05)
    same = [kernel_distance(x[i : i + 50], x[i + 50 : i + 100]) for i in range(0, 3000, 100)]
    assert abs(np.mean(same)) < 0.2 * 100 * expected
    assert min(same) < 0 < max(same)


def test_kernel_distance_equals_hand_computed_value():
    """The points 0, 1 and 3 have distances 1, 2 and 3, so the bandwidth, their median, is 2."""
    reference, frames = np.array([[0.0], [1.0], [3.0]]), np.array([[0.0], [5.0]])
    k = lambda distance: np.exp(-(distance**2) / 8)  # noqa: E731
    expected = (k(1) + k(3) + k(2)) / 3 + k(5) - 2 * (1 + k(5) + k(1) + k(4) + k(3) + k(2)) / 6
    assert kernel_distance(reference, frames) == pytest.approx(100 * expected, rel=1e-12)
    assert kernel_distance(reference, frames[:1]) is None
    assert kernel_distance(np.ones((5, 1)), frames) is None


def test_kernel_distance_subsamples_large_sets():
    """All frames of a set have the same distribution, so the choice of a subset hardly matters."""
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(20000, 3)), rng.normal(0.5, 1.0, size=(20000, 3))
    assert kernel_distance(x, y) == pytest.approx(kernel_distance(x[:4000], y[:4000]), rel=0.15)


def test_bootstrap_interval_has_its_nominal_coverage():
    draws = np.random.default_rng(1).normal(size=(100, 30))
    covered = 0
    for songs in draws:
        low, high = bootstrap_interval(lambda w, songs=songs: float(np.average(songs, weights=w)), 30, resamples=200)
        covered += low < 0 < high
    assert 0.86 <= covered / 100 <= 0.99


def test_frechet_interval_narrows_with_more_songs():
    """Songs differ in their means, so more frames of the same song add little information."""
    rng = np.random.default_rng(2)

    def draw_songs(count, shift=0.0):
        return [Gaussian.of(rng.normal(rng.normal(shift, 1.0, size=4), 0.5, size=(40, 4))) for _ in range(count)]

    reference = pool(draw_songs(400))
    widths = []
    for count in (10, 160):
        ours = draw_songs(count, 0.7)
        low, high = frechet_interval(reference, ours, resamples=100)
        assert 0 <= low < frechet_distance(reference, pool(ours)) < high
        widths.append(high - low)
    assert widths[1] < 0.5 * widths[0]
    assert frechet_interval(reference, ours[:1]) is None
    assert frechet_interval([Gaussian.of(RNG.normal(size=(9, 4)))] * 5, [Gaussian.empty(4)] * 5) is None


def test_paired_songs_have_narrower_frechet_intervals():
    """The model shifts every song alike, so with pairs the distance does not depend on which songs are drawn."""
    rng = np.random.default_rng(3)
    frames = [rng.normal(rng.normal(0, 2.0, size=3), 0.5, size=(40, 3)) for _ in range(12)]
    true, ours = [Gaussian.of(song) for song in frames], [Gaussian.of(song + 0.5) for song in frames]
    assert frechet_distance(pool(true), pool(ours)) == pytest.approx(0.75, rel=1e-9)
    assert frechet_interval(true, ours, resamples=100) == pytest.approx((0.75, 0.75), rel=1e-6)
    low, high = frechet_interval(pool(true), ours, resamples=100)
    assert high - low > 0.5


def test_outlying_songs_are_found():
    songs = [Gaussian.of(RNG.normal(0.1 * index, 1, size=(60, 4))) for index in range(8)]
    songs += [
        Gaussian.empty(4),
        Gaussian.of(RNG.normal(5, 1, size=(60, 4))),
        Gaussian.of(RNG.normal(8, 1, size=(60, 4))),
    ]
    distances = song_distances(pool(songs[:8]), songs)
    assert distances[8] is None
    assert outliers(distances) == [10, 9]
    assert outliers([None]) == []
