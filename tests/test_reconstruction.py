import numpy as np
import pytest

from spectrodiff.evaluation.reconstruction import compare, onset_correlation, tone_similarity

TIME = np.arange(32000) / 16000


def tone(hz):
    return (0.3 * np.sin(2 * np.pi * hz * TIME)).astype(np.float32)


def clicks(*at):
    audio = np.zeros(32000, np.float32)
    for sample in at:
        audio[sample : sample + 200] = np.random.default_rng(sample).normal(size=200) * np.linspace(0.5, 0, 200)
    return audio


def test_audio_against_itself_is_perfect():
    scores = compare(tone(300) + clicks(8000), tone(300) + clicks(8000))
    assert scores == pytest.approx({"mel": 0, "msd": 0, "onset": 1, "tone": 1}, abs=1e-5)


def test_a_known_change_of_level_is_a_known_distance():
    noise = np.random.default_rng(0).normal(size=32000).astype(np.float32)
    scores = compare(0.5 * noise, noise)
    assert scores["mel"] == pytest.approx(np.log(2), rel=1e-3)
    assert scores["msd"] == pytest.approx(np.log(2), rel=1e-2)


def test_onsets_hear_when_not_how_loud():
    assert onset_correlation(0.3 * clicks(8000, 20000), clicks(8000, 20000)) > 0.99
    assert onset_correlation(clicks(6000, 22000), clicks(8000, 20000)) < 0.1
    assert onset_correlation(np.zeros(32000, np.float32), clicks(8000)) == 0.0


def test_tones_hear_a_tenth_of_a_semitone_and_broken_phase():
    assert tone_similarity(0.2 * tone(440), tone(440)) > 0.999
    assert tone_similarity(tone(440 * 2 ** (1 / 12)), tone(440)) < 0.1
    flipping = tone(440) * np.where(TIME * 25 % 2 < 1, 1, -1)
    assert tone_similarity(flipping.astype(np.float32), tone(440)) < 0.5


def test_the_longer_is_cut_and_silence_is_no_error():
    silence = np.zeros(32000, np.float32)
    assert compare(silence, silence[:20000]) == {"mel": 0.0, "msd": 0.0, "onset": 0.0, "tone": 0.0}
