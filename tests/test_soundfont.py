import itertools
import sys

import numpy as np
import pytest
from optional import needs_synth

from spectrodiff.audio.mel import SAMPLE_RATE
from spectrodiff.data.soundfont import SOUNDFONT, TAIL, play, require_fluidsynth
from spectrodiff.errors import InputError
from spectrodiff.notes.midi import Notes

ORGAN, DRUM, WOODBLOCK = 16, -1, 76


def notes(*rows):
    """Notes from rows of (start, end, pitch, velocity, program or DRUM)."""
    start, end, pitch, velocity, program = (np.array(column) for column in zip(*rows, strict=True))
    return Notes(
        start=start.astype(float),
        end=end.astype(float),
        pitch=pitch.astype(np.int32),
        velocity=velocity.astype(np.int32),
        program=np.maximum(program, 0).astype(np.int32),
        is_drum=program == DRUM,
        total_time=float(end.max()),
    )


def rms(audio):
    return float(np.sqrt(np.mean(audio**2)))


@needs_synth
@pytest.mark.parametrize("time", [0.1, 0.7123, 1.99])
def test_note_starts_on_time(time):
    audio = np.abs(play(notes((time, time + 0.1, WOODBLOCK, 127, DRUM))))
    onset = np.argmax(audio > 0.05 * audio.max()) / SAMPLE_RATE
    assert time - 0.001 < onset < time + 0.003


@needs_synth
def test_note_has_its_pitch_and_duration():
    audio = play(notes((0.5, 1.5, 69, 100, ORGAN)))
    assert len(audio) == round((1.5 + TAIL) * SAMPLE_RATE)
    tone = audio[8000 + 1600 : 8000 + 16000]
    spectrum = np.abs(np.fft.rfft(tone * np.hanning(len(tone)), 65536))
    harmonic = np.argmax(spectrum) * SAMPLE_RATE / 65536 / 440
    assert harmonic in (pytest.approx(0.5, abs=0.01), pytest.approx(1, abs=0.01), pytest.approx(2, abs=0.01))
    assert rms(audio[:7900]) == 0
    assert rms(audio[-1600:]) < 0.01 * rms(tone)


@needs_synth
def test_loudness_increases_with_velocity():
    levels = [rms(play(notes((0, 1, 60, velocity, 0)))) for velocity in (20, 50, 80, 127)]
    assert all(quiet < 0.7 * loud for quiet, loud in itertools.pairwise(levels))


@needs_synth
def test_mix_is_the_sum_of_its_notes():
    """Twenty programs and drums sound at once without shared channels, voice stealing, clipping or effects."""
    rows = [(0.05 * p, 1.0, 48 + p, 100, 6 * p) for p in range(20)] + [(0.2, 0.3, 38, 127, DRUM)]
    parts = [play(notes(row), tail=3.0 - row[1]) for row in rows]
    mix = play(notes(*rows), tail=2.0)
    assert rms(mix - np.sum(parts, axis=0)) < 0.01 * rms(mix)


@needs_synth
def test_pieces_do_not_affect_later_pieces():
    held, other = notes((0, 5, 40, 127, 88), (0, 5, 52, 127, 48)), notes((0, 0.4, 60, 90, 0))
    alone = play(other)
    play(held, tail=0.0)  # stops while the notes sound
    assert rms(play(other) - alone) < 0.005 * rms(alone)
    assert rms(play(other)[-1600:]) < 1e-3


@needs_synth
def test_repeated_note_is_struck_again():
    audio = play(notes((0, 1, 60, 100, 0), (1, 2, 60, 100, 0)))
    assert rms(audio[16000:17600]) > 2 * rms(audio[14400:16000])


@needs_synth
def test_missing_or_invalid_soundfont_raises_input_error(tmp_path):
    with pytest.raises(InputError, match=r"none\.sf2: apt-get install"):
        play(notes((0, 1, 60, 100, 0)), tmp_path / "none.sf2")
    (tmp_path / "bad.sf2").write_bytes(b"no font")
    with pytest.raises(InputError, match=r"bad\.sf2"):
        play(notes((0, 1, 60, 100, 0)), tmp_path / "bad.sf2")


def test_missing_binding_and_library_raise_different_errors(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "fluidsynth", None)
    with pytest.raises(InputError, match=r"pip install --no-deps pyfluidsynth$"):
        require_fluidsynth(SOUNDFONT)
    (tmp_path / "fluidsynth.py").write_text('raise ImportError("Couldn\'t find the FluidSynth library.")\n')
    monkeypatch.delitem(sys.modules, "fluidsynth")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=r"apt-get install libfluidsynth3, .*brew install"):
        require_fluidsynth(SOUNDFONT)
