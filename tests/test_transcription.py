import sys

import numpy as np
import pytest

from spectrodiff.errors import InputError
from spectrodiff.evaluation.transcription import (
    DRUMS,
    Matches,
    add_scores,
    attack_times,
    family_of,
    relative_to_true,
    score_audio,
    score_drums,
    score_notes,
)
from spectrodiff.notes.sequence import Notes

mir_eval = pytest.importorskip("mir_eval")
DRUM = -1


def notes(*rows):
    """Notes from rows of (start, end, pitch, program or DRUM)."""
    start, end, pitch, program = np.array(rows, float).reshape(-1, 4).T
    return Notes(
        start=start,
        end=end,
        pitch=pitch.astype(np.int32),
        velocity=np.full(len(rows), 90, np.int32),
        program=np.maximum(program, 0).astype(np.int32),
        is_drum=program == DRUM,
        total_time=float(end.max(initial=0.0)),
    )


def random_notes(seed, count=150):
    rng = np.random.default_rng(seed)
    start = rng.uniform(0, 8, size=count)
    columns = (start, start + rng.exponential(0.3, size=count) + 0.02, rng.integers(60, 66, size=count))
    return notes(*zip(*columns, rng.choice([0, 3, 40], size=count), strict=True))


def clicks(*times, seconds=3.0):
    audio = 1e-4 * np.random.default_rng(0).normal(size=int(16000 * seconds))
    for time in times:
        at = round(16000 * time)
        audio[at : at + 800] += np.random.default_rng(at).normal(size=800) * np.exp(-np.arange(800) / 100)
    return audio.astype(np.float32)


class FixedTranscriber:
    """A transcriber that returns the same notes for any audio."""

    name = "fixed"

    def __init__(self, transcribed, instruments=False):
        self.transcribed, self.instruments = transcribed, instruments

    def __call__(self, audio):
        return self.transcribed


@pytest.mark.parametrize("seed", range(5))
def test_scores_match_mir_eval(seed):
    """Notes are dense enough that scores depend on the assignment."""
    ours, theirs = random_notes(seed), random_notes(seed + 100, count=120)
    arrays = []
    for played in (theirs, ours):
        arrays += [np.stack([played.start, played.end], axis=1), mir_eval.util.midi_to_hz(played.pitch)]
    scores = score_notes(ours, theirs)
    for name, ratio in (("onset", None), ("offset", 0.2)):
        precision, recall, f1, _ = mir_eval.transcription.precision_recall_f1_overlap(*arrays, offset_ratio=ratio)
        got = scores[name]
        assert (got.precision, got.recall, got.f1) == pytest.approx((precision, recall, f1))
    assert 0 < scores["offset"].matched < scores["onset"].matched


def test_onset_and_offset_tolerances():
    written = notes((1.0, 2.0, 60, 0), (1.0, 1.1, 64, 0))
    found = {
        name: match.matched
        for name, match in score_notes(notes((1.049, 2.19, 60, 0), (0.951, 1.149, 64, 0)), written).items()
    }
    assert found == {"onset": 2, "offset": 2}
    scores = score_notes(notes((1.049, 2.21, 60, 0), (0.951, 1.151, 64, 0), (1.0, 2.0, 61, 0)), written)
    assert scores["onset"] == Matches(2, 3, 2)
    assert scores["offset"] == Matches(0, 3, 2)
    assert score_notes(notes((1.06, 2.0, 60, 0)), written)["onset"].matched == 0


def test_program_maps_limit_which_notes_match():
    written, transcribed = (
        notes((0, 1, 60, 0), (1, 2, 60, 41), (2, 3, 60, 41)),
        notes((0, 1, 60, 5), (1, 2, 60, 41), (2, 3, 60, 8)),
    )
    found = {
        programs: score_notes(transcribed, written, programs)["onset"].matched
        for programs in ("flat", "midi_class", "full")
    }
    assert found == {"flat": 3, "midi_class": 2, "full": 1}
    with pytest.raises(InputError, match=r"\bflat\b.*\bmidi_class\b.*\bfull\b.*'all'"):
        score_notes(transcribed, written, "all")


def test_transcriber_with_instruments_gets_instrument_scores():
    written, transcribed = notes((0, 1, 60, 0), (1, 2, 60, 41)), notes((0, 1, 60, 5), (1, 2, 60, 41))
    scores = score_audio(FixedTranscriber(transcribed, instruments=True), clicks(0.5), written)
    found = {kind: matches.matched for kind, matches in scores.items() if kind.startswith("onset")}
    assert found == {"onset": 2, "onset/midi_class": 2, "onset/full": 1}
    assert score_audio(FixedTranscriber(transcribed), clicks(0.5), written).keys() == {"onset", "offset", DRUMS}


def test_undefined_scores_are_none():
    nothing, some = notes(), notes((0, 1, 60, 0))
    silent = score_notes(nothing, some)["onset"]
    assert (silent.precision, silent.recall, silent.f1) == (None, 0.0, 0.0)
    assert score_notes(some, nothing)["onset"] == Matches()
    assert Matches().f1 is None
    ours = {"precision": 0.5, "recall": 0.25, "f1": pytest.approx(1 / 3), "true_f1": 1.0, "ratio": pytest.approx(1 / 3)}
    assert relative_to_true(Matches(1, 2, 4), Matches(2, 2, 2)) == ours
    assert relative_to_true(silent, silent) == {
        "precision": None,
        "recall": 0.0,
        "f1": 0.0,
        "true_f1": 0.0,
        "ratio": None,
    }
    assert set(relative_to_true(Matches(), Matches()).values()) == {None}


def test_attack_times_are_detected():
    times = [0.0, 0.5, 0.62, 1.1, 2.0, 2.4]
    assert attack_times(clicks(*times)) == pytest.approx(times, abs=0.01)
    assert len(attack_times(np.zeros(16000, np.float32))) == 0
    assert len(attack_times(np.zeros(0, np.float32))) == 0
    steady = 0.3 * np.sin(2 * np.pi * 440 * np.arange(48000) / 16000).astype(np.float32)
    assert attack_times(steady) == pytest.approx([0.0], abs=0.01)


def test_drum_scores_merge_simultaneous_hits():
    hits = notes((0.5, 0.6, 36, DRUM), (0.51, 0.6, 42, DRUM), (1.5, 1.6, 38, DRUM), (2.0, 2.5, 60, 0))
    assert score_drums(clicks(0.5, 1.5), hits) == Matches(2, 2, 2)
    assert score_drums(clicks(0.5, 1.6, 2.2), hits) == Matches(1, 3, 2)
    silent = score_drums(np.zeros(48000, np.float32), hits)
    assert (silent.f1, silent.precision) == (0.0, None)
    assert score_drums(clicks(0.5), notes((0, 1, 60, 0))) == Matches()


def test_add_scores_and_family_of():
    piano, organ, violin = notes((0, 1, 60, 0)), notes((0, 1, 60, 17), (1, 2, 60, 20)), notes((0, 1, 60, 40))
    drums, both = notes((0.5, 1, 38, DRUM)), notes((0, 1, 60, 0), (0, 1, 60, 40))
    families = [family_of(played) for played in (piano, organ, violin, drums, both, notes())]
    assert families == ["piano", "organ", "strings", DRUMS, None, None]
    songs = [score_audio(FixedTranscriber(played), clicks(0.5), played) for played in (piano, drums)]
    assert add_scores(songs) == {"onset": Matches(1, 1, 1), "offset": Matches(1, 1, 1), DRUMS: Matches(1, 1, 1)}


def test_missing_mir_eval_raises_input_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "mir_eval", None)
    monkeypatch.setitem(sys.modules, "mir_eval.transcription", None)
    with pytest.raises(InputError, match=r"spectrodiff\[eval\]"):
        score_notes(notes((0, 1, 60, 0)), notes((0, 1, 60, 0)))
