import csv
import json

import numpy as np
import pytest
import soundfile
from test_render import needs_synth

from spectrodiff.data.builders import rendered
from spectrodiff.data.sources import split_of
from spectrodiff.errors import InputError
from spectrodiff.notes.midi import read_midi

# Etudes need no other program than FluidSynth. Cut to six seconds they render in a moment.
RECIPE = rendered.Recipe(weights={"etude": 1.0}, min_seconds=6.0, max_seconds=6.0, tail=0.5)
HOURS = 30 / 3600


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    out = tmp_path_factory.mktemp("corpus")
    summary = rendered.prepare(out, HOURS, RECIPE)
    return out, summary


def contents(out):
    """Every file but the recordings, to the byte."""
    return {p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file() and p.suffix != ".flac"}


def assert_same(one, other):
    assert contents(one) == contents(other)
    assert sorted(p.name for p in (one / "audio").iterdir()) == sorted(p.name for p in (other / "audio").iterdir())
    for path in (one / "audio").iterdir():
        ours, theirs = soundfile.read(path)[0], soundfile.read(other / "audio" / path.name)[0]
        assert np.std(ours - theirs) < 0.01 * np.std(ours)


def rows(out):
    with (out / "splits.csv").open() as file:
        return list(csv.DictReader(file))


@needs_synth
def test_a_corpus_is_a_plain_folder_of_recordings_and_scores(corpus):
    out, summary = corpus
    assert sum(float(row["seconds"]) for row in rows(out)) >= 30 > sum(float(row["seconds"]) for row in rows(out)[:-1])
    for row in rows(out):
        info = soundfile.info(out / "audio" / f"{row['name']}.flac")
        notes = read_midi(out / "midi" / f"{row['name']}.mid")
        assert (info.samplerate, info.channels, info.subtype) == (16000, 1, "PCM_16")
        assert info.duration == pytest.approx(float(row["seconds"]), abs=1e-3)
        assert info.duration == pytest.approx(notes.total_time + 0.5, abs=1e-3)
        assert len(notes) == int(row["notes"])
        assert row["split"] == split_of(row["source"])
    assert len(list((out / "audio").iterdir())) == len(list((out / "midi").iterdir())) == len(rows(out))
    assert summary["pieces"] == len(rows(out))
    assert sum(summary["splits"].values()) == pytest.approx(summary["hours"], abs=0.02)
    record = json.loads((out / "recipe.json").read_text())
    assert record["recipe"]["seed"] == 0
    assert len(record["soundfont_sha256"]) == 64
    assert "etude" in record["licences"]


@needs_synth
def test_sound_begins_where_the_score_says(corpus):
    out, _ = corpus
    for row in rows(out):
        audio, rate = soundfile.read(out / "audio" / f"{row['name']}.flac")
        first = read_midi(out / "midi" / f"{row['name']}.mid").start.min()
        heard = np.argmax(np.abs(audio) > 1e-4) / rate
        assert first - 0.001 < heard < first + 0.08  # soft attacks take a while


@needs_synth
def test_a_killed_run_goes_on_as_if_it_had_not_been(corpus, tmp_path, monkeypatch):
    whole, _ = corpus
    make = rendered._Maker.__call__

    def killed(self, index):
        if index == 2:
            raise KeyboardInterrupt
        return make(self, index)

    monkeypatch.setattr(rendered._Maker, "__call__", killed)
    with pytest.raises(KeyboardInterrupt):
        rendered.prepare(tmp_path, HOURS, RECIPE)
    monkeypatch.undo()
    assert len(rows(tmp_path)) == len(list((tmp_path / "audio").iterdir())) == 2
    (tmp_path / "midi" / f"{rows(tmp_path)[1]['name']}.mid").unlink()  # and someone lost a file
    rendered.prepare(tmp_path, HOURS, RECIPE)
    assert_same(tmp_path, whole)


@needs_synth
@pytest.mark.slow
def test_the_number_of_workers_changes_nothing(corpus, tmp_path):
    whole, _ = corpus
    rendered.prepare(tmp_path, HOURS, RECIPE, workers=2)
    assert_same(tmp_path, whole)


@needs_synth
def test_another_recipe_needs_another_folder(corpus, capsys):
    out, _ = corpus
    before = contents(out)
    with pytest.raises(InputError, match=r"rendered with tail 0\.5, not 1\.5"):
        rendered.prepare_rendered(out, hours=1.0, weights={"etude": 1.0}, min_seconds=6.0, max_seconds=6.0)
    assert contents(out) == before


@needs_synth
def test_a_mix_that_would_clip_is_refused(tmp_path):
    loud = rendered.Recipe(weights={"etude": 1.0}, min_seconds=6.0, max_seconds=6.0, gain=10.0)
    with pytest.raises(InputError, match="lower"):
        rendered.prepare(tmp_path, HOURS, loud)
    assert not list((tmp_path / "audio").iterdir())


@pytest.mark.parametrize(
    ("hours", "programs"), [(0.0, "family"), (-1.0, "family"), (float("nan"), "family"), (1.0, "all")]
)
def test_nonsense_is_refused(tmp_path, hours, programs):
    with pytest.raises(InputError, match="must be"):
        rendered.prepare(tmp_path, hours, rendered.Recipe(programs=programs))
    assert not list(tmp_path.iterdir())
