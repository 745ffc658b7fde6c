"""Our Basic Pitch against the package itself, with its resampler replaced, as no test needs it."""

import dataclasses
import importlib
import importlib.util
import logging
import pathlib
import sys
import types

import numpy as np
import pytest
import scipy.ndimage
import soundfile
from optional import needs_synth

from spectrodiff.data.soundfont import play
from spectrodiff.errors import InputError
from spectrodiff.evaluation.basic_pitch import BasicPitch, decode, frame_times
from spectrodiff.evaluation.transcription import Transcriber, score_audio
from spectrodiff.notes.midi import read_midi

needs_model = pytest.mark.skipif(importlib.util.find_spec("basic_pitch") is None, reason="basic-pitch is optional")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def package():
    """The module basic_pitch.inference, without the warnings of its import."""
    patch = pytest.MonkeyPatch()
    patch.setitem(sys.modules, "resampy", types.ModuleType("resampy"))
    patch.setattr(logging, "warning", lambda *_, **__: None)
    yield importlib.import_module("basic_pitch.inference")
    patch.undo()


@pytest.fixture(scope="module")
def transcriber():
    return BasicPitch()


def tones(seconds, rate, *notes):
    """Decaying harmonic tones, each given as (start, end, MIDI pitch)."""
    time, audio = np.arange(int(seconds * rate)) / rate, np.zeros(int(seconds * rate), np.float32)
    for start, end, pitch in notes:
        sounding = (time >= start) & (time < end)
        since, hz = time[sounding] - start, 440 * 2 ** ((pitch - 69) / 12)
        audio[sounding] += np.exp(-2 * since) * sum(0.1 / k * np.sin(2 * np.pi * hz * k * since) for k in range(1, 6))
    return audio


@needs_model
@pytest.mark.parametrize("seed", range(4))
def test_decoding_equals_the_package(package, seed):
    """Random activations, blurred over time and neighbouring keys to different degrees, with strong or weak onsets."""
    rng = np.random.default_rng(seed)
    sounding = scipy.ndimage.gaussian_filter(rng.normal(size=(400, 88)), (1 + 4 * seed, 0.4 * (seed % 3)))
    sounding = np.clip(0.25 + 0.4 * sounding / sounding.std(), 0, 1).astype(np.float32)
    onsets = (rng.random((400, 88)) ** (3 + 2 * seed)).astype(np.float32)
    if seed == 3:
        onsets *= 0.4  # no onset reaches the threshold, so all notes come from the remaining frame activations
    theirs = package.infer.output_to_notes_polyphonic(
        sounding.copy(), onsets.copy(), 0.5, 0.3, 11, infer_onsets=True, max_freq=None, min_freq=None
    )
    ours = decode(sounding, onsets)
    assert len(ours) > 30
    assert [note[:3] for note in ours] == [tuple(int(x) for x in note[:3]) for note in theirs]
    np.testing.assert_allclose([note[3] for note in ours], [note[3] for note in theirs], rtol=1e-5)


@needs_model
def test_activations_equal_the_package(package, transcriber, tmp_path):
    """The audio spans three windows; the package cuts off the last frames."""
    audio = tones(4.0, 22050, (0.5, 1.5, 60), (1.2, 2.5, 67), (2.0, 3.9, 45))
    soundfile.write(tmp_path / "tones.wav", audio, 22050, subtype="FLOAT")
    theirs = package.run_inference(tmp_path / "tones.wav", package.Model(package.ICASSP_2022_MODEL_PATH))
    sounding, onsets = transcriber._activations(audio)
    assert len(theirs["note"]) <= len(sounding) <= 1.01 * len(theirs["note"]) + 1
    np.testing.assert_allclose(sounding[: len(theirs["note"])], theirs["note"], atol=1e-5)
    np.testing.assert_allclose(onsets[: len(theirs["onset"])], theirs["onset"], atol=1e-5)


@needs_model
def test_onset_times_do_not_drift(transcriber):
    """The same three notes are found at the beginning and after half a minute."""
    chord = [(0.5, 1.5, 60), (0.9, 1.5, 67), (1.2, 2.0, 72)]
    late = [(start + 30, end + 30, pitch) for start, end, pitch in chord]
    assert isinstance(transcriber, Transcriber)
    notes = transcriber(tones(33.0, 16000, *chord, *late))
    for start, _, pitch in chord + late:
        found = notes.start[(notes.pitch == pitch) & (np.abs(notes.start - start) < 0.2)]
        assert len(found) == 1
        assert abs(found[0] - start) < 0.02
    assert np.all(notes.end > notes.start)
    assert notes.total_time >= 33.0


@needs_model
@needs_synth
def test_only_the_true_notes_score_high(transcriber):
    piece = read_midi(pathlib.Path(__file__).parent.parent / "examples" / "bach_prelude.mid")
    piece = piece.select(piece.start < 4)
    piece = dataclasses.replace(piece, end=np.minimum(piece.end, 4.0), total_time=4.0)
    true, audio = play(piece, tail=0.0), play(dataclasses.replace(piece, pitch=piece.pitch + 1), tail=0.0)
    noise = 0.1 * np.random.default_rng(0).normal(size=len(true)).astype(np.float32)
    scores = [score_audio(transcriber, x, piece)["onset"].f1 for x in (true, audio, noise)]
    assert scores[0] > 0.75
    assert max(scores[1:]) < 0.2


@needs_model
@pytest.mark.parametrize("samples", [0, 100, 16000])
def test_silence_has_no_notes(transcriber, samples):
    notes = transcriber(np.zeros(samples, np.float32))
    assert len(notes) == 0
    assert notes.pitch.dtype == np.int32


def test_decoding_zero_activations_gives_no_notes():
    for frames in (0, 1, 2, 50):
        assert decode(np.zeros((frames, 88), np.float32), np.zeros((frames, 88), np.float32)) == []


def test_frame_times_follow_the_overlapping_windows():
    """Windows are 36164 samples apart, and each keeps 142 frames of 256 samples."""
    times = frame_times(300) * 22050
    assert times[[0, 1, 141, 142, 143, 284]] == pytest.approx([0, 256, 141 * 256, 36164, 36420, 72328])


def test_missing_package_or_model_file_raises_input_error(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install --no-deps basic-pitch"):
        BasicPitch()
    with pytest.raises(InputError, match=r"nmp\.onnx"):
        BasicPitch(tmp_path / "nmp.onnx")
