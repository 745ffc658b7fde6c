"""How docs/examples.py prepares notes and audio."""

import importlib.util
import pathlib

import numpy as np
import pyloudnorm
import pytest
from inputs import random_notes

from spectrodiff.audio.loudness import TRUE_PEAK, true_peak
from spectrodiff.audio.mel import SAMPLE_RATE

SCRIPT = pathlib.Path(__file__).parent.parent / "docs" / "examples.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("docs_examples", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_signals_get_equal_loudness_within_the_peak_limit(script):
    rng = np.random.default_rng(0)
    smooth = np.sin(2 * np.pi * 440 * np.arange(3 * SAMPLE_RATE) / SAMPLE_RATE).astype(np.float32)
    spiky = (0.01 * rng.standard_normal(3 * SAMPLE_RATE)).astype(np.float32)
    spiky[::2000] = 1.0
    signals = script.equally_loud(smooth, spiky)
    first, second = (pyloudnorm.Meter(SAMPLE_RATE).integrated_loudness(signal) for signal in signals)
    assert first == pytest.approx(second, abs=0.01)
    assert first < -17  # LUFS; -16 would exceed the true peak limit
    assert max(true_peak([signal]) for signal in signals) == pytest.approx(TRUE_PEAK, rel=1e-5)


def test_beginning_cuts_notes_at_its_end(script):
    notes = random_notes(0, seconds=2 * script.SECONDS)
    first = script.beginning(notes)
    assert len(first) == np.sum(notes.start < script.SECONDS)
    assert first.end.max() == script.SECONDS == first.total_time
    early = notes.end < script.SECONDS
    assert np.array_equal(first.end[first.end < script.SECONDS], notes.end[early])
