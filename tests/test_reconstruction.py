import numpy as np
import pytest

from spectrodiff.evaluation.reconstruction import (
    chroma_correlation,
    compare,
    embedding_distance,
    mean_scores,
    onset_correlation,
    tone_similarity,
)

TIME = np.arange(32000) / 16000


def tone(hz):
    return (0.3 * np.sin(2 * np.pi * hz * TIME)).astype(np.float32)


def clicks(*at):
    audio = np.zeros(32000, np.float32)
    for sample in at:
        audio[sample : sample + 200] = np.random.default_rng(sample).normal(size=200) * np.linspace(0.5, 0, 200)
    return audio


def test_identical_audio_gets_perfect_scores():
    scores = compare(tone(300) + clicks(8000), tone(300) + clicks(8000))
    assert scores == pytest.approx({"mel": 0, "roughness": 1, "msd": 0, "onset": 1, "tone": 1, "chroma": 1}, abs=1e-5)


def test_halved_amplitude_has_distance_log_2():
    noise = np.random.default_rng(0).normal(size=32000).astype(np.float32)
    scores = compare(0.5 * noise, noise)
    assert scores["mel"] == pytest.approx(np.log(2), rel=1e-3)
    assert scores["msd"] == pytest.approx(np.log(2), rel=1e-2)


def test_onset_correlation_depends_on_timing_not_level():
    assert onset_correlation(0.3 * clicks(8000, 20000), clicks(8000, 20000)) > 0.99
    assert onset_correlation(clicks(6000, 22000), clicks(8000, 20000)) < 0.1
    assert onset_correlation(np.zeros(32000, np.float32), clicks(8000)) == 0.0


def test_tone_similarity_detects_detuning_and_phase_jumps():
    assert tone_similarity(0.2 * tone(440), tone(440)) > 0.999
    assert tone_similarity(tone(440 * 2 ** (1 / 12)), tone(440)) < 0.1
    flipping = tone(440) * np.where(TIME * 25 % 2 < 1, 1, -1)
    assert tone_similarity(flipping.astype(np.float32), tone(440)) < 0.5


def test_chroma_ignores_octave_and_timbre_but_not_pitch_class():
    chord = tone(220) + tone(277.18) + tone(329.63)
    assert chroma_correlation(0.1 * chord, chord) > 0.999
    octave_up = tone(440) + tone(554.37) + tone(659.26)
    assert chroma_correlation(octave_up, chord) > 0.95
    rich_timbre = sum(np.float32(1 / k) * tone(hz * k) for hz in (220, 277.18, 329.63) for k in range(1, 5))
    assert chroma_correlation(rich_timbre, chord) > 0.8
    semitone_up = tone(233.08) + tone(293.66) + tone(349.23)
    assert chroma_correlation(semitone_up, chord) < 0
    assert tone_similarity(octave_up, chord) < 0.1


def test_embedding_distance_is_the_mean_over_shared_frames():
    reference = np.zeros((3, 4), np.float32)
    ours = np.array([[3, 4, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0], [9, 9, 9, 9]], np.float32)
    assert embedding_distance(ours, reference) == pytest.approx((5 + 1 + 0) / 3)
    assert embedding_distance(ours[:0], reference) is None


def test_compare_handles_silence_and_different_lengths():
    """Tonal scores are undefined (None) for a silent reference, and 0 for silence in place of music."""
    silence, music = np.zeros(32000, np.float32), tone(440) + clicks(8000)
    undefined = {"roughness": None, "onset": None, "tone": None, "chroma": None}
    assert compare(silence, silence[:20000]) == {"mel": 0.0, "msd": 0.0} | undefined
    assert {name: compare(music, silence)[name] for name in undefined} == undefined
    missed = compare(silence, music)
    assert {name: missed[name] for name in undefined} == {"roughness": 0.0, "onset": 0.0, "tone": 0.0, "chroma": 0.0}
    assert compare(silence[:0], music) == {"mel": None, "msd": None} | undefined


def test_mean_scores_skip_undefined_values():
    scores = [{"mel": 1.0, "tone": None}, {"mel": 3.0, "tone": 0.5}]
    assert mean_scores(scores) == {"mel": 2.0, "tone": 0.5}
    assert mean_scores(scores[:1]) == {"mel": 1.0, "tone": None}
    assert mean_scores([]) == {}
