"""The whole way from the command line: shares of the work join to what one process makes, and bad input is one line."""

import json
import shutil

import numpy as np
import pytest
from inputs import make_recording, write_dataset

from spectrodiff.cli import main
from spectrodiff.data.recordings import Recording

FAST = (
    *("--steps", "1", "--guidance", "1", "--vocoder", "griffin_lim", "--batch", "1"),  # one program in all
    *("--no_transcription", "--seconds", "3", "--examples", "2"),
)


def evaluate(*arguments):
    main(["evaluate", *map(str, arguments)])


def fails(capsys, *arguments):
    with pytest.raises(SystemExit) as exit:
        evaluate(*arguments)
    assert exit.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.fixture(scope="module", autouse=True)
def few_resamples():
    """Intervals take most of the time, and are no matter here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("spectrodiff.evaluation.results._RESAMPLES", 4)
        yield


@pytest.fixture(scope="module")
def where(corpus, checkpoint):
    return "--data_dir", corpus, "--checkpoint", checkpoint, "--split", "train"


@pytest.fixture(scope="module")
def whole(where, tmp_path_factory):
    """The workdir of one process."""
    workdir = tmp_path_factory.mktemp("evaluation") / "whole"
    evaluate(*where, *FAST, "--workdir", workdir)
    return workdir


def figures(workdir):
    """Without those of speed, which differ from run to run."""
    found = json.loads((workdir / "results.json").read_text())
    for values in found["systems"].values():
        values.pop("spectrogram_speed", None), values.pop("vocoder_speed", None)
    return found


def test_one_command_leaves_figures_table_and_page(whole):
    found = figures(whole)
    assert [song["name"] for song in found["per_song"]] == ["piece1", "piece2"]
    ours, encoded, noise = (found["systems"][name] for name in ("synthesised", "encoded", "noise"))
    assert 0 < encoded["mel"] < ours["mel"]
    assert 0 < encoded["frechet/musicnn"] < noise["frechet/musicnn"]
    assert found["run"]["steps"] == 1
    assert any("basic-pitch" in line for line in found["remarks"])
    assert any("200 dimensions" in line for line in found["remarks"])
    assert (whole / "table.md").read_text().startswith("|  | Fréchet (musicnn) ↓")
    assert (whole / "report.html").read_text().count("<audio") == 6


def test_shares_join_to_the_same_figures(whole, where, tmp_path, capsys):
    for shard in ("1/2", "2/2"):
        evaluate(*where, *FAST, "--workdir", tmp_path / "run", "--shard", shard)
        assert capsys.readouterr().out.startswith(f"part {shard} of the songs is in ")
        assert not (tmp_path / "run" / "results.json").exists()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*.npz")}
    assert len(kept) == 4
    evaluate(*where, *FAST, "--workdir", tmp_path / "run")
    assert all(path.stat().st_mtime_ns == then for path, then in kept.items())  # it only reported
    expected, got = figures(whole), figures(tmp_path / "run")
    assert got["run"] == expected["run"]
    for system, values in expected["systems"].items():
        assert got["systems"][system].keys() == values.keys()
        for name, value in values.items():
            ours = got["systems"][system][name]
            assert ours == value or ours == pytest.approx(value, rel=1e-2, abs=1e-3), (system, name)


def test_a_run_that_was_cut_off_makes_only_what_is_missing(whole, where, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    for path in (tmp_path / "run").rglob("piece1.*"):
        path.unlink()
    others = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("piece2.*")}
    evaluate(*where, *FAST, "--workdir", tmp_path / "run", "--limit", "1")
    assert len(list((tmp_path / "run").rglob("piece1.*"))) == 4
    assert all(path.stat().st_mtime_ns == then for path, then in others.items())
    assert figures(tmp_path / "run")["songs"] == 1


def test_short_and_silent_songs_have_defined_results(checkpoint, tmp_path):
    short = make_recording(4, seconds=1.0)
    short = Recording("short", short.audio[:8000], short.notes)
    silent = Recording("silent", np.zeros(16000, np.float32), make_recording(5, seconds=1.0).notes)
    write_dataset(tmp_path, "odd", {"test": [short, silent]})
    options = ("--data_dir", tmp_path, "--dataset", "odd", "--checkpoint", checkpoint, "--workdir", tmp_path / "run")
    evaluate(*options, *FAST)
    text = (tmp_path / "run" / "table.md").read_text() + (tmp_path / "run" / "results.json").read_text()
    assert "nan" not in text.lower()
    found = figures(tmp_path / "run")
    assert found["per_song"][1]["onset"] is None
    assert found["systems"]["synthesised"]["onset"] is not None


def test_bad_input_is_one_line(whole, where, tmp_path, capsys):
    there, new = ("--workdir", whole), ("--workdir", tmp_path / "new")
    assert "holds songs made with steps 1, not 2" in fails(capsys, *where, *FAST, *there, "--steps", "2")
    assert "no records in a 'test' split" in fails(capsys, *where, *FAST, *new, "--split", "test")
    assert "no dataset 'absent'" in fails(capsys, *where, *FAST, *new, "--dataset", "absent")
    assert "shard is '3/2'; give 1/8" in fails(capsys, *where, *FAST, *new, "--shard", "3/2")
    assert "limit is 0; choose more than 0" in fails(capsys, *where, *FAST, *new, "--limit", "0")
    assert "no embedding 'loud'" in fails(capsys, *where, *FAST, *new, "--embedding", "loud")
    assert not (tmp_path / "new").exists()
