import numpy as np
import pytest

from spectrodiff.audio.mel import HOP
from spectrodiff.evaluation.steady_tones import AMPLITUDE, FREQUENCIES, energy_shares, steady_tone, tone_leaks


class ToneVocoder:
    """A vocoder whose audio for a mel of tone number i is `audio(frequency of i)`."""

    def __init__(self, audio):
        self.tones, self.audio = iter(FREQUENCIES), audio

    def __call__(self, mel):
        made = self.audio(next(self.tones))
        assert len(made) == len(mel) * HOP
        return made


def test_leaks_of_sinusoids_and_silence():
    assert energy_shares(steady_tone(225), 225) == pytest.approx({"tone leak": 0, "frame rate leak": 0}, abs=1e-4)
    assert energy_shares(np.zeros(48000, np.float32), 225) is None
    assert tone_leaks(ToneVocoder(steady_tone)) == pytest.approx({"tone leak": 0, "frame rate leak": 0}, abs=1e-4)
    assert tone_leaks(ToneVocoder(lambda hz: 0 * steady_tone(hz))) == {"tone leak": 1.0, "frame rate leak": 1.0}


def test_energy_shares_of_known_components():
    """A sinusoid and two of half its amplitude, one at a multiple of 50 Hz and one elsewhere."""
    audio = steady_tone(475) + 0.5 * steady_tone(600) + 0.5 * steady_tone(1030)
    assert energy_shares(audio, 475) == pytest.approx({"tone leak": 1 / 3, "frame rate leak": 1 / 6}, rel=1e-3)
    off = 10 * AMPLITUDE + steady_tone(475)  # a DC offset is no frame-rate artefact
    assert energy_shares(off, 475)["frame rate leak"] == pytest.approx(0.0, abs=1e-3)
    assert energy_shares(off, 475)["tone leak"] > 0.9


def test_repeated_frames_have_maximal_frame_rate_leak():
    def repeat(hz):
        return np.tile(steady_tone(hz)[:HOP], 150)

    assert tone_leaks(ToneVocoder(repeat)) == pytest.approx({"tone leak": 1.0, "frame rate leak": 1.0}, abs=0.02)
