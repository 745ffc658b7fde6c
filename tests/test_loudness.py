import math

import numpy as np
import pyloudnorm
import pytest

from spectrodiff.audio.loudness import (
    LOUDNESS,
    TRUE_PEAK,
    integrated_loudness,
    loudness_gain,
    true_peak,
)
from spectrodiff.audio.mel import SAMPLE_RATE

RNG = np.random.default_rng(0)


def sine(frequency, seconds, phase=0.0):
    return np.sin(2 * np.pi * frequency * np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE + phase)


def varying_noise(samples):
    """Noise whose level changes by tens of dB, so that both gates exclude some blocks."""
    level = 10 ** (RNG.uniform(-4, -0.5, samples // 8000 + 1))
    return (RNG.standard_normal(samples) * np.repeat(level, 8000)[:samples]).astype(np.float32)


@pytest.mark.parametrize("samples", [6400, 7000, 7200, 7300, 16_000, 123_456, 480_000])
@pytest.mark.parametrize("block", [100, 999, 1600, 10**6])
def test_blockwise_loudness_equals_pyloudnorm(samples, block):
    audio = varying_noise(samples)
    expected = pyloudnorm.Meter(SAMPLE_RATE).integrated_loudness(audio.astype(np.float64))
    blocks = (audio[start : start + block] for start in range(0, samples, block))
    assert integrated_loudness(blocks) == pytest.approx(expected, abs=1e-3)


def test_full_scale_sine_has_the_itu_reference_loudness():
    """ITU-R BS.1770-4: a sine of 997 Hz at full scale in one channel measures -3.01 LKFS."""
    assert integrated_loudness([sine(997, 5.0)]) == pytest.approx(-3.01, abs=0.1)


@pytest.mark.parametrize("audio", [[], [np.zeros(0)], [np.zeros(100)], [np.zeros(50_000)], [1e-5 * sine(997, 5.0)]])
def test_silence_has_infinite_negative_loudness_and_unit_gain(audio):
    assert integrated_loudness(audio) == -math.inf
    assert loudness_gain(-math.inf, true_peak(audio)) == 1.0


def test_short_audio_is_padded_to_a_gating_block():
    tone = sine(997, 0.1)
    padded = np.concatenate([tone, np.zeros(6400 - len(tone))])
    assert integrated_loudness([tone]) == pytest.approx(
        pyloudnorm.Meter(SAMPLE_RATE).integrated_loudness(padded), abs=0.1
    )


@pytest.mark.parametrize("block", [7, 1000, 80_000])
def test_true_peak_includes_peaks_between_samples(block):
    """The sine has a quarter of the sample rate, and its samples are 45 degrees from its peaks."""
    audio = sine(SAMPLE_RATE / 4, 1.0, phase=np.pi / 4) * np.hanning(SAMPLE_RATE)
    assert np.abs(audio).max() == pytest.approx(math.sqrt(0.5), abs=1e-3)
    blocks = (audio[start : start + block] for start in range(0, len(audio), block))
    assert true_peak(blocks) == pytest.approx(1.0, abs=0.02)


def test_true_peak_of_blocks_equals_the_whole():
    audio = np.full(1000, 0.5) * np.hanning(1000)
    assert true_peak(np.split(audio, 10)) == pytest.approx(true_peak([audio]), rel=1e-6)


@pytest.mark.parametrize("loudness", [-50.0, -16.0, -3.0])
def test_gain_reaches_the_loudness_within_the_peak_limit(loudness):
    assert loudness + 20 * math.log10(loudness_gain(loudness, 1e-3)) == pytest.approx(LOUDNESS)
    assert loudness_gain(-50.0, 0.5) * 0.5 == pytest.approx(TRUE_PEAK)
