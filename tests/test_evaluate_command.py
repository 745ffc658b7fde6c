"""The whole way from the command line: shards of the work join to what one process makes, and bad input is one line."""

import dataclasses
import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from flax import nnx
from inputs import OURS, make_recording, write_dataset

from spectrodiff.cli import main
from spectrodiff.data.recordings import Recording, Stem
from spectrodiff.evaluation.rendering import ENCODED, NOISE, SYSTEMS, TRUE, WRONG
from spectrodiff.models.spectrogram_model import SpectrogramModel
from spectrodiff.pretrained.kinds import MELGAN, SPECTROGRAM
from spectrodiff.pretrained.native import save
from spectrodiff.vocoder.generator import Generator, GeneratorConfig
from spectrodiff.vocoder.griffin_lim import GriffinLim
from spectrodiff.vocoder.streaming import MelGAN

ROOT = pathlib.Path(__file__).parent.parent

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
        patch.setattr("spectrodiff.evaluation.measurements._RESAMPLES", 4)
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
    assert found["run"]["sampling"]["steps"] == 1
    installed = all(map(importlib.util.find_spec, ("basic_pitch", "onnxruntime", "mir_eval")))
    assert ("No notes were transcribed." in found["remarks"]) == installed
    assert any("basic-pitch" in line for line in found["remarks"]) != installed
    assert any("200 dimensions" in line for line in found["remarks"])
    assert (whole / "table.md").read_text().startswith("| System | Fréchet (musicnn) ↓")
    assert (whole / "report.html").read_text().count("<audio") == 6


def test_shards_join_to_the_same_figures(whole, where, tmp_path, capsys):
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


def test_shards_of_the_same_songs_have_the_very_same_figures(whole, where, tmp_path):
    shutil.copytree(whole / "songs", tmp_path / "run" / "songs")
    shutil.copy(whole / "run.json", tmp_path / "run")
    for shard in (("--shard", "2/2"), ("--shard", "1/2"), ()):
        evaluate(*where, *FAST, "--workdir", tmp_path / "run", *shard)
    assert figures(tmp_path / "run") == figures(whole)


@pytest.mark.trial
def test_devices_and_processes_share_one_evaluation(whole, where, tmp_path):
    """Two at once, of four devices each; then one that reports. As exact as rounding of sums in the network lets it."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4",
    }
    arguments = ("evaluate", *where, *FAST, "--workdir", tmp_path / "run", "--batch", "2", "--shard")
    command = [sys.executable, "-m", "spectrodiff", *map(str, arguments)]
    both = [
        subprocess.Popen([*command, shard], env=environment, cwd=ROOT, stderr=subprocess.PIPE)
        for shard in ("1/2", "2/2")
    ]
    for process in both:
        _, said = process.communicate(timeout=600)
        assert process.returncode == 0, said.decode()
    songs = sorted((tmp_path / "run" / "songs").glob("*.json"))
    assert [json.loads(song.read_text())["batch"] for song in songs] == [1, 1]  # songs at once, on four devices
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*.npz")}
    evaluate(*where, *FAST, "--workdir", tmp_path / "run")
    assert all(path.stat().st_mtime_ns == then for path, then in kept.items())
    expected, got = figures(whole), figures(tmp_path / "run")
    for system, values in expected["systems"].items():
        for name, value in values.items():
            ours = got["systems"][system][name]
            assert ours == value or ours == pytest.approx(value, rel=1e-2, abs=1e-3), (system, name)


@pytest.mark.trial
def test_combinations_are_joined_in_one_table(checkpoint, where, tmp_path, capsys):
    """With context and without, by one guidance weight and another; a cell that is done is not done again."""
    config = dataclasses.replace(OURS, model=dataclasses.replace(OURS.model, with_context=False, context_layers=0))
    model = SpectrogramModel(config, rngs=nnx.Rngs(0))
    without = tmp_path / "no_context"
    without.mkdir()
    save(without, SPECTROGRAM, model, config, {})
    options = (*where[:2], *where[4:], *FAST, "--limit", "1", "--checkpoint", checkpoint, without)
    options += ("--guidance", "1", "2", "1", "--examples", "0", "--workdir", tmp_path / "grid")
    evaluate(*options, "--shard", "1/2")
    assert capsys.readouterr().out.startswith("part 1/2 of the songs is in ")
    assert not (tmp_path / "grid" / "table.md").exists()
    evaluate(*options)
    cells = json.loads((tmp_path / "grid" / "results.json").read_text())["cells"]
    found = [
        (cell["run"]["checkpoint"], cell["model"]["with_context"], cell["run"]["sampling"]["guidance"])
        for cell in cells
    ]
    expected = [(str(checkpoint), True, 1.0), (str(checkpoint), True, 2.0)]
    assert found == [*expected, (str(without), False, 1.0), (str(without), False, 2.0)]
    rows = [line.split(" | ") for line in (tmp_path / "grid" / "table.md").read_text().splitlines() if "|" in line]
    assert rows[0][:6] == [
        "| Checkpoint or system",
        *("Parameters (M)", "Context", "Steps", "Guidance"),
        "Fréchet (musicnn) ↓",
    ]
    assert [row[2:5] for row in rows[2:6]] == [
        *(["yes", "1", "1.00"], ["yes", "1", "2.00"]),
        *(["none", "1", "1.00"], ["none", "1", "2.00"]),
    ]
    assert [row[0] for row in rows[6:]] == [f"| {SYSTEMS[name]}" for name in (TRUE, ENCODED, WRONG, NOISE)]
    assert {len(row) for row in rows if row[0] != "| ---"} == {len(rows[0])}
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "grid").rglob("*.npz")}
    assert len(before) == 8
    evaluate(*options)
    assert all(path.stat().st_mtime_ns == then for path, then in before.items())


class Deaf:
    """A transcriber that hears nothing, but tells instruments apart."""

    name, instruments = "deaf", True

    def __call__(self, audio):
        return make_recording(0).notes.select(np.zeros(0, np.int32))


def test_stems_and_another_transcriber(checkpoint, tmp_path):
    pytest.importorskip("mir_eval")
    piece = make_recording(6, seconds=3.0)
    of_piano = piece.notes.select((piece.notes.program < 8) & ~piece.notes.is_drum)
    stems = (Stem(piece.audio, of_piano), Stem(piece.audio, piece.notes))  # the latter of several families
    write_dataset(tmp_path, "parts", {"test": [dataclasses.replace(piece, stems=stems)]})
    where = ("--data_dir", tmp_path, "--dataset", "parts", "--checkpoint", checkpoint, "--workdir", tmp_path / "run")
    fast = [option for option in FAST if option != "--no_transcription"]
    evaluate(*where, *fast, "--stems", "--transcriber", f"{__name__}:Deaf")
    found = figures(tmp_path / "run")
    piano = found["families"]["piano"]
    assert found["families"].keys() == {"piano"}
    assert (piano["stems"], piano["f1"], piano["true_f1"], piano["ratio"]) == (1, 0.0, 0.0, None)
    assert {kind: found["systems"]["true"][f"f1/{kind}"] for kind in ("onset", "onset/full")} == {
        "onset": 0.0,
        "onset/full": 0.0,
    }
    assert (tmp_path / "run" / "transcription" / "deaf" / "piece6 stem 1 piano.json").is_file()
    table = (tmp_path / "run" / "table.md").read_text()
    assert "| Stems alone | Stems |" in table
    assert "Program F1" in table
    # Recorded, so a SoundFont plays it too, where there is one.
    assert "soundfont" in found["systems"] or any("No SoundFont played" in line for line in found["remarks"])


def test_short_and_silent_songs_have_defined_results(checkpoint, tmp_path):
    short = make_recording(4, seconds=1.0)
    short = Recording("short", short.audio[:8000], short.notes)
    silent = Recording("silent", np.zeros(16000, np.float32), make_recording(5, seconds=1.0).notes)
    noteless = Recording("noteless", make_recording(6, seconds=1.0).audio, silent.notes.select(np.zeros(0, np.int32)))
    write_dataset(tmp_path, "odd", {"test": [short, silent, noteless]})
    options = ("--data_dir", tmp_path, "--dataset", "odd", "--checkpoint", checkpoint, "--workdir", tmp_path / "run")
    evaluate(*options, *FAST)
    text = (tmp_path / "run" / "table.md").read_text() + (tmp_path / "run" / "results.json").read_text()
    assert "nan" not in text.lower()
    found = figures(tmp_path / "run")
    assert found["per_song"][1]["onset"] is None
    assert found["systems"]["synthesised"]["onset"] is not None
    assert "The true audio of silent is silent." in found["remarks"]


def test_bad_input_is_one_line(whole, where, tmp_path, capsys):
    there, new = ("--workdir", whole), ("--workdir", tmp_path / "new")
    assert "holds songs made with steps 1, not 2" in fails(capsys, *where, *FAST, *there, "--steps", "2")
    assert "no records in a 'test' split" in fails(capsys, *where, *FAST, *new, "--split", "test")
    assert "no dataset 'absent'" in fails(capsys, *where, *FAST, *new, "--dataset", "absent")
    assert "shard is '3/2'; give 1/8" in fails(capsys, *where, *FAST, *new, "--shard", "3/2")
    assert "limit is 0" in fails(capsys, *where, *FAST, *new, "--limit", "0")
    assert "no embedding 'loud'" in fails(capsys, *where, *FAST, *new, "--embedding", "loud")
    assert "no checkpoint 'absent'" in fails(capsys, *where, *FAST, *new, "--checkpoint", "demo", "absent")
    assert "no SoundFont at absent.sf2" in fails(capsys, *where, *FAST, *new, "--soundfont", "absent.sf2")
    heard = (*where, *(option for option in FAST if option != "--no_transcription"), *new, "--transcriber")
    assert "no transcriber 'absent:Mt3': No module named 'absent'" in fails(capsys, *heard, "absent:Mt3")
    assert "no transcriber 'json'" in fails(capsys, *heard, "json")
    assert "json:JSONDecoder does not return a transcriber" in fails(capsys, *heard, "json:JSONDecoder")
    assert "stems are scored by their notes" in fails(capsys, *where, *FAST, *new, "--stems")
    assert not (tmp_path / "new").exists()


def test_one_evaluation_has_one_vocoder_wherever_it_lies(whole, where, tmp_path, capsys):
    """Other weights at the path of those before are refused; the same at another path are not."""
    config = GeneratorConfig(channels=16, dilations=(1,))
    identities = []
    for seed in (0, 1):
        generator = Generator(config, rngs=nnx.Rngs(seed))
        save(tmp_path / f"{seed}", MELGAN, generator, config, {})
        identities.append(MelGAN(generator).identity())
    (tmp_path / "0").rename(tmp_path / "moved")
    (tmp_path / "1").rename(tmp_path / "0")
    shutil.copytree(whole, tmp_path / "run")
    run = json.loads((whole / "run.json").read_text())
    assert run["vocoder"] == GriffinLim().identity()
    (tmp_path / "run" / "run.json").write_text(json.dumps(run | {"vocoder": identities[0]}))
    there = (*where, *(option for option in FAST if option not in ("--vocoder", "griffin_lim")))
    there += ("--workdir", tmp_path / "run", "--vocoder")
    message = fails(capsys, *there, tmp_path / "0")
    assert f"holds songs made with vocoder {identities[0]}, not {identities[1]}" in message
    evaluate(*there, tmp_path / "moved")


def test_a_dataset_at_another_rate_is_refused(checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("spectrodiff.data.recordings.SAMPLE_RATE", 22050)
    write_dataset(tmp_path, "fast", {"test": [make_recording(4, seconds=1.0)]})
    monkeypatch.undo()
    where = ("--data_dir", tmp_path, "--dataset", "fast", "--checkpoint", checkpoint, "--workdir", tmp_path / "run")
    line = fails(capsys, *where, *FAST)
    assert "cannot evaluate piece4 of fast: it is at 22050 Hz, where 16000 are needed; prepare it again" in line
