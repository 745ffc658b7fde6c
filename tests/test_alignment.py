import dataclasses

import pytest
from inputs import make_recording

from spectrodiff.data.builders.alignment import align

RECORDING = make_recording(8, seconds=20.0)


def shifted(notes, seconds):
    return dataclasses.replace(
        notes, start=notes.start + seconds, end=notes.end + seconds, total_time=notes.total_time + max(seconds, 0)
    )


@pytest.mark.parametrize("lag", [-0.5, -0.1, 0.0, 0.06, 0.48])
def test_align_finds_the_lag_of_shifted_notes(lag):
    found = align(RECORDING.audio, shifted(RECORDING.notes.select(RECORDING.notes.start > 0.6), -lag))
    assert found.lag == pytest.approx(lag, abs=0.021)
    assert found.best >= found.correlation
    assert (found.best == found.correlation) == (found.lag == 0)


def test_correlation_ignores_loudness_and_is_low_for_other_notes():
    own = align(RECORDING.audio, RECORDING.notes)
    quiet = align(RECORDING.audio / 8, RECORDING.notes)
    assert quiet.correlation == pytest.approx(own.correlation, abs=0.05)
    assert own.correlation > 0.4 > 0.2 > align(RECORDING.audio, make_recording(9, seconds=20.0).notes).correlation


def test_chunked_alignment_equals_the_whole(monkeypatch):
    whole = align(RECORDING.audio, RECORDING.notes)
    monkeypatch.setattr("spectrodiff.data.builders.alignment._CHUNK", 101)
    assert align(RECORDING.audio, RECORDING.notes) == whole


@pytest.mark.parametrize("samples", [1, 320, 16000, 40000])
def test_very_short_audio_has_no_lag(samples):
    found = align(RECORDING.audio[:samples], RECORDING.notes)
    assert (found.best == found.lag == 0) if samples <= 16000 else (found.best > 0)


def test_silence_has_zero_correlation():
    assert align(0 * RECORDING.audio, RECORDING.notes).best == 0
