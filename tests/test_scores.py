"""Packing and rendering of corpora by recipes/scores.py."""

import pathlib
import re
import runpy

import numpy as np
import pytest
from inputs import make_recording, write_dataset
from optional import needs_synth

from spectrodiff.data.builders.rendered.corpus import prepare_rendered
from spectrodiff.data.dataset import open_dataset
from spectrodiff.data.recordings import decode

SCRIPT = runpy.run_path(str(pathlib.Path(__file__).parent.parent / "recipes" / "scores.py"))


def run(*arguments):
    SCRIPT["main"]([*map(str, arguments)])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The data_dir of a corpus of half a minute, that of the corpus rendered from its scores, and the scores file."""
    first, second = (tmp_path_factory.mktemp(name) for name in ("first", "second"))
    options = {"weights": {"etude": 1.0}, "min_seconds": 6.0, "max_seconds": 6.0, "tail": 0.5, "gain": 0.25}
    prepare_rendered(first, hours=30 / 3600, workers=1, **options)
    run("pack", "--data_dir", first, "--out", first / "scores")
    run("render", "--scores", first / "scores", "--data_dir", second)
    return first, second, first / "scores"


@needs_synth
def test_rendered_scores_reproduce_the_corpus(folders):
    """Splits and notes are identical; audio agrees up to the variation between FluidSynth runs."""
    ours, theirs = (open_dataset(folder, "rendered") for folder in folders[:2])
    assert ours.splits == theirs.splits
    for split in ours.splits:
        assert len(ours[split]) == len(theirs[split])
        for one, other in zip(ours[split], theirs[split], strict=True):
            assert (one["name"], one["notes"]) == (other["name"], other["notes"])
            one, other = (decode(record).audio for record in (one, other))
            assert len(one) == len(other)
            assert np.std(one - other) < 0.01 * np.std(one)


@needs_synth
def test_scores_are_small_and_not_rendered_twice(folders, monkeypatch):
    first, second, scores = folders
    audio = sum(len(record["audio"]) for split in ("train",) for record in open_dataset(first, "rendered")[split])
    assert scores.stat().st_size < audio / 20

    def fail(*_, **__):
        raise AssertionError("rendered again")

    monkeypatch.setitem(SCRIPT["Scores"].read.__globals__, "play", fail)
    run("render", "--scores", scores, "--data_dir", second)


@needs_synth
def test_scores_of_another_dataset_are_rendered(tmp_path):
    write_dataset(tmp_path, "own", {"train": [make_recording(1, 2.0)], "test": [make_recording(2, 2.0)]})
    run("pack", "--data_dir", tmp_path, "--dataset", "own", "--out", tmp_path / "own.npz")
    run("render", "--scores", tmp_path / "own.npz", "--data_dir", tmp_path / "new")
    made = open_dataset(tmp_path / "new", "own")
    assert made.splits == ["train", "test"]
    (record,) = made["test"]
    assert record["notes"] == open_dataset(tmp_path, "own")["test"][0]["notes"]
    assert len(decode(record).audio) == round(decode(record).notes.total_time * 16000)


@needs_synth
@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 half a file"])
def test_invalid_scores_file_prints_one_error_line(tmp_path, content, capsys):
    path = tmp_path / "scores.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SystemExit) as error:
        run("render", "--scores", path, "--data_dir", tmp_path / "new")
    assert error.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(rf"scores\.py: {path} .*`pack`", line)
    assert not (tmp_path / "new").exists()


def test_packing_a_missing_dataset_prints_one_error_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as error:
        run("pack", "--data_dir", tmp_path, "--out", tmp_path / "scores.npz")
    assert error.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "dataset 'rendered'" in line
    assert not (tmp_path / "scores.npz").exists()
