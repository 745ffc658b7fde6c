"""The synthetic instrument of examples/new_instrument.py: its partials, its damping and its files."""

import pathlib
import runpy
import sys

import numpy as np
import pytest
import scipy.ndimage

from spectrodiff.audio.files import read_audio
from spectrodiff.audio.mel import SAMPLE_RATE
from spectrodiff.data.builders.folder import Folder, find_problems
from spectrodiff.notes.midi import read_midi

SCRIPT = pathlib.Path(__file__).parent.parent / "examples" / "new_instrument.py"
EXAMPLE = runpy.run_path(str(SCRIPT))


def peaks(audio, count):
    """The frequencies of the strongest partials that stand 15 Hz apart."""
    size = 2**17
    spectrum = np.abs(np.fft.rfft(audio * np.hanning(len(audio)), size))
    width = round(15 * size / SAMPLE_RATE)
    tops = np.flatnonzero(spectrum == scipy.ndimage.maximum_filter1d(spectrum, 2 * width + 1))
    return sorted(tops[np.argsort(-spectrum[tops])][:count] * SAMPLE_RATE / size)


def test_partials_match_a_vibrating_plate():
    """Ratios of a free round plate with Poisson's ratio 0.33, as Leissa (1969) tabulates its squared wave numbers."""
    note = EXAMPLE["strike"](57, 100, 4.0, seed=0)  # 220 Hz
    table = np.array([5.253, 9.084, 12.23, 20.52, 21.6, 33.1, 35.25, 38.55]) / 5.253
    found = np.array(peaks(note, 14)) / 220.0
    assert all(np.abs(found / ratio - 1).min() < 0.01 for ratio in table if ratio < 7)
    assert not np.any(np.abs(found - 2.0) < 0.1)  # and not those of a string


def test_higher_velocity_is_louder_and_brighter():
    soft, hard = (EXAMPLE["strike"](67, velocity, 1.0, seed=0) for velocity in (40, 120))
    assert 8 < np.abs(hard).max() / np.abs(soft).max() < 30

    def centre(audio):
        power = np.abs(np.fft.rfft(audio)) ** 2
        return (np.fft.rfftfreq(len(audio), 1 / SAMPLE_RATE) * power).sum() / power.sum()

    assert centre(hard) > 1.1 * centre(soft)


def test_note_decays_quickly_after_its_end():
    note = EXAMPLE["strike"](57, 100, 1.0, seed=0)
    level = lambda t: np.sqrt(np.mean(note[int(t * SAMPLE_RATE) : int((t + 0.05) * SAMPLE_RATE)] ** 2))  # noqa: E731
    assert level(0.9) > 0.2 * level(0.2)
    assert level(1.4) < 0.01 * level(0.9)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("made"))


def write_corpus(folder, seed=0):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["new_instrument.py", "--out", str(folder), "--minutes", "0.5", "--seed", str(seed)])
        EXAMPLE["main"]()
    return folder


def test_files_form_a_valid_corpus(folder):
    """Both splits exist, no pair has problems, and no two notes of one pitch overlap."""
    entries = Folder(name="glass").entries(folder)
    assert {entry.split for entry in entries} == {"train", "validation"}
    assert [find_problems(entry) for entry in entries] == [[]] * len(entries)
    for entry in entries:
        notes = read_midi(entry.source.midi)
        assert set(notes.program.tolist()) == {EXAMPLE["PROGRAM"]}
        for pitch in np.unique(notes.pitch):
            same = notes.select(notes.pitch == pitch)
            assert np.all(same.start[1:] >= same.end[:-1])


def test_peak_level_is_fixed_and_seed_determines_files(folder, tmp_path):
    loudest = max(np.abs(read_audio(path)).max() for path in folder.glob("*.wav"))
    assert loudest == pytest.approx(0.5, abs=1e-3)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert {path.name: path.read_bytes() for path in write_corpus(tmp_path / "again").iterdir()} == files
    assert (write_corpus(tmp_path / "other", seed=1) / "piece_00.wav").read_bytes() != files["piece_00.wav"]
