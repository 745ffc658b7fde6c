import numpy as np
import pytest

from spectrodiff.audio.mel import HOP
from spectrodiff.evaluation.steady_tones import AMPLITUDE, FREQUENCIES, energy_shares, steady_tone, tone_leaks


class Fixed:
    """A vocoder whose audio for a mel of tone number i is `audio(frequency of i)`."""

    def __init__(self, audio):
        self.tones, self.audio = iter(FREQUENCIES), audio

    def __call__(self, mel):
        made = self.audio(next(self.tones))
        assert len(made) == len(mel) * HOP
        return made


def test_a_sinusoid_has_no_leak_and_silence_has_nothing_else():
    assert energy_shares(steady_tone(225), 225) == pytest.approx({"tone leak": 0, "frame rate leak": 0}, abs=1e-4)
    assert energy_shares(np.zeros(48000, np.float32), 225) is None
    assert tone_leaks(Fixed(steady_tone)) == pytest.approx({"tone leak": 0, "frame rate leak": 0}, abs=1e-4)
    assert tone_leaks(Fixed(lambda hz: 0 * steady_tone(hz))) == {"tone leak": 1.0, "frame rate leak": 1.0}


def test_energy_counts_where_it_is():
    """Of a sinusoid and two more of half its amplitude, one at a multiple of 50 Hz and one beside the next tone."""
    audio = steady_tone(475) + 0.5 * steady_tone(600) + 0.5 * steady_tone(1030)
    assert energy_shares(audio, 475) == pytest.approx({"tone leak": 1 / 3, "frame rate leak": 1 / 6}, rel=1e-3)
    off = 10 * AMPLITUDE + steady_tone(475)  # an offset is not at the tone, but no product of frames either
    assert energy_shares(off, 475)["frame rate leak"] == pytest.approx(0.0, abs=1e-3)
    assert energy_shares(off, 475)["tone leak"] > 0.9


def test_repeated_frames_leak_to_the_frame_rate():
    def repeat(hz):
        return np.tile(steady_tone(hz)[:HOP], 150)

    assert tone_leaks(Fixed(repeat)) == pytest.approx({"tone leak": 1.0, "frame rate leak": 1.0}, abs=0.02)
