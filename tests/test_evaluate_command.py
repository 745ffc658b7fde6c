"""`spectrodiff evaluate`: results, shards, resuming, grids of settings, and one-line errors."""

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
    *("--steps", "1", "--guidance", "1", "--vocoder", "griffin_lim", "--batch", "1"),  # compiles a single program
    *("--no_transcription", "--seconds", "3", "--examples", "2"),
)


def evaluate(*arguments):
    main(["evaluate", *map(str, arguments)])


def error_of(capsys, *arguments):
    with pytest.raises(SystemExit) as exit:
        evaluate(*arguments)
    assert exit.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.fixture(scope="module", autouse=True)
def few_resamples():
    """Fewer bootstrap resamples: confidence intervals take most of the time and are not tested here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("spectrodiff.evaluation.measurements._RESAMPLES", 4)
        yield


@pytest.fixture(scope="module")
def data_args(corpus, checkpoint):
    return "--data_dir", corpus, "--checkpoint", checkpoint, "--split", "train"


@pytest.fixture(scope="module")
def unsharded(data_args, tmp_path_factory):
    """The workdir of an evaluation by one process."""
    workdir = tmp_path_factory.mktemp("evaluation") / "whole"
    evaluate(*data_args, *FAST, "--workdir", workdir)
    return workdir


def read_results(workdir):
    """The results without speeds, which differ between runs."""
    found = json.loads((workdir / "results.json").read_text())
    for values in found["systems"].values():
        values.pop("spectrogram_speed", None), values.pop("vocoder_speed", None)
    return found


def test_evaluate_writes_results_table_and_report(unsharded):
    found = read_results(unsharded)
    assert [song["name"] for song in found["per_song"]] == ["piece1", "piece2"]
    ours, encoded, noise = (found["systems"][name] for name in ("synthesised", "encoded", "noise"))
    assert 0 < encoded["mel"] < ours["mel"]
    assert 0 < encoded["frechet/musicnn"] < noise["frechet/musicnn"]
    assert found["run"]["sampling"]["steps"] == 1
    installed = all(map(importlib.util.find_spec, ("basic_pitch", "onnxruntime", "mir_eval")))
    assert ("No notes were transcribed." in found["remarks"]) == installed
    assert any("basic-pitch" in line for line in found["remarks"]) != installed
    assert any("200 dimensions" in line for line in found["remarks"])
    assert (unsharded / "table.md").read_text().startswith("| System | Fréchet (musicnn) ↓")
    assert (unsharded / "report.html").read_text().count("<audio") == 6


@pytest.mark.trial
def test_joined_shards_equal_an_unsharded_run(unsharded, data_args, tmp_path, capsys):
    for shard in ("1/2", "2/2"):
        evaluate(*data_args, *FAST, "--workdir", tmp_path / "run", "--shard", shard)
        assert capsys.readouterr().out.startswith(f"part {shard} ")
        assert not (tmp_path / "run" / "results.json").exists()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*.npz")}
    assert len(kept) == 4
    evaluate(*data_args, *FAST, "--workdir", tmp_path / "run")
    assert all(path.stat().st_mtime_ns == then for path, then in kept.items())  # nothing was computed again
    expected, got = read_results(unsharded), read_results(tmp_path / "run")
    assert got["run"] == expected["run"]
    for system, values in expected["systems"].items():
        assert got["systems"][system].keys() == values.keys()
        for name, value in values.items():
            ours = got["systems"][system][name]
            assert ours == value or ours == pytest.approx(value, rel=1e-2, abs=1e-3), (system, name)


def test_interrupted_evaluation_computes_only_missing_songs(unsharded, data_args, tmp_path):
    shutil.copytree(unsharded, tmp_path / "run")
    for path in (tmp_path / "run").rglob("piece1.*"):
        path.unlink()
    others = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("piece2.*")}
    evaluate(*data_args, *FAST, "--workdir", tmp_path / "run", "--limit", "1")
    assert len(list((tmp_path / "run").rglob("piece1.*"))) == 4
    assert all(path.stat().st_mtime_ns == then for path, then in others.items())
    assert read_results(tmp_path / "run")["songs"] == 1


def test_shards_of_existing_songs_give_identical_results(unsharded, data_args, tmp_path):
    shutil.copytree(unsharded / "songs", tmp_path / "run" / "songs")
    shutil.copy(unsharded / "run.json", tmp_path / "run")
    for shard in (("--shard", "2/2"), ("--shard", "1/2"), ()):
        evaluate(*data_args, *FAST, "--workdir", tmp_path / "run", *shard)
    assert read_results(tmp_path / "run") == read_results(unsharded)


@pytest.mark.trial
def test_processes_with_several_devices_share_an_evaluation(unsharded, data_args, tmp_path):
    """Two processes with four devices each run at once, then one reports. Results agree up to rounding."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4",
    }
    arguments = ("evaluate", *data_args, *FAST, "--workdir", tmp_path / "run", "--batch", "2", "--shard")
    command = [sys.executable, "-m", "spectrodiff", *map(str, arguments)]
    both = [
        subprocess.Popen([*command, shard], env=environment, cwd=ROOT, stderr=subprocess.PIPE)
        for shard in ("1/2", "2/2")
    ]
    for process in both:
        _, said = process.communicate(timeout=600)
        assert process.returncode == 0, said.decode()
    songs = sorted((tmp_path / "run" / "songs").glob("*.json"))
    assert [json.loads(song.read_text())["batch"] for song in songs] == [1, 1]  # one song per process
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*.npz")}
    evaluate(*data_args, *FAST, "--workdir", tmp_path / "run")
    assert all(path.stat().st_mtime_ns == then for path, then in kept.items())
    expected, got = read_results(unsharded), read_results(tmp_path / "run")
    for system, values in expected["systems"].items():
        for name, value in values.items():
            ours = got["systems"][system][name]
            assert ours == value or ours == pytest.approx(value, rel=1e-2, abs=1e-3), (system, name)


@pytest.mark.trial
def test_grid_of_settings_is_joined_in_one_table(checkpoint, data_args, tmp_path, capsys):
    """Two checkpoints, with and without context, by two guidance weights; finished cells are not computed again."""
    config = dataclasses.replace(OURS, model=dataclasses.replace(OURS.model, with_context=False, context_layers=0))
    model = SpectrogramModel(config, rngs=nnx.Rngs(0))
    without = tmp_path / "no_context"
    without.mkdir()
    save(without, SPECTROGRAM, model, config, {})
    options = (*data_args[:2], *data_args[4:], *FAST, "--limit", "1", "--checkpoint", checkpoint, without)
    options += ("--guidance", "1", "2", "1", "--examples", "0", "--workdir", tmp_path / "grid")
    evaluate(*options, "--shard", "1/2")
    assert capsys.readouterr().out.startswith("part 1/2 ")
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


class SilentTranscriber:
    """A transcriber with instruments that returns no notes."""

    name, instruments = "deaf", True

    def __call__(self, audio):
        return make_recording(0).notes.select(np.zeros(0, np.int32))


@pytest.mark.trial
def test_stems_are_scored_by_a_custom_transcriber(checkpoint, tmp_path):
    pytest.importorskip("mir_eval")
    piece = make_recording(6, seconds=3.0)
    of_piano = piece.notes.select((piece.notes.program < 8) & ~piece.notes.is_drum)
    stems = (Stem(piece.audio, of_piano), Stem(piece.audio, piece.notes))  # the second has several families
    write_dataset(tmp_path, "parts", {"test": [dataclasses.replace(piece, stems=stems)]})
    data_args = (
        "--data_dir",
        tmp_path,
        "--dataset",
        "parts",
        "--checkpoint",
        checkpoint,
        "--workdir",
        tmp_path / "run",
    )
    fast = [option for option in FAST if option != "--no_transcription"]
    evaluate(*data_args, *fast, "--stems", "--transcriber", f"{__name__}:SilentTranscriber")
    found = read_results(tmp_path / "run")
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
    # The piece counts as recorded, so the SoundFont baseline is included where one is installed.
    assert "soundfont" in found["systems"] or any("No SoundFont played" in line for line in found["remarks"])


@pytest.mark.trial
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
    found = read_results(tmp_path / "run")
    assert found["per_song"][1]["onset"] is None
    assert found["systems"]["synthesised"]["onset"] is not None
    assert "The true audio of silent is silent." in found["remarks"]


def test_invalid_input_is_a_one_line_error(unsharded, data_args, tmp_path, capsys):
    there, new = ("--workdir", unsharded), ("--workdir", tmp_path / "new")
    assert " steps 1, " in error_of(capsys, *data_args, *FAST, *there, "--steps", "2")
    assert "'test' split" in error_of(capsys, *data_args, *FAST, *new, "--split", "test")
    assert "dataset 'absent'" in error_of(capsys, *data_args, *FAST, *new, "--dataset", "absent")
    assert "--overlap is 999" in error_of(capsys, *data_args, *FAST, *new, "--overlap", "999")
    assert " --guidance; " in error_of(capsys, *data_args, *FAST, *new, "--checkpoint", "demo_diffusion", "demo")
    assert "--shard is '3/2'" in error_of(capsys, *data_args, *FAST, *new, "--shard", "3/2")
    assert "--limit is 0" in error_of(capsys, *data_args, *FAST, *new, "--limit", "0")
    assert "embedding 'loud'" in error_of(capsys, *data_args, *FAST, *new, "--embedding", "loud")
    assert "checkpoint 'absent'" in error_of(capsys, *data_args, *FAST, *new, "--checkpoint", "demo", "absent")
    assert " absent.sf2: " in error_of(capsys, *data_args, *FAST, *new, "--soundfont", "absent.sf2")
    heard = (*data_args, *(option for option in FAST if option != "--no_transcription"), *new, "--transcriber")
    assert "transcriber 'absent:Mt3'" in error_of(capsys, *heard, "absent:Mt3")
    assert "transcriber 'json'" in error_of(capsys, *heard, "json")
    assert "json:JSONDecoder " in error_of(capsys, *heard, "json:JSONDecoder")
    assert " --stems, " in error_of(capsys, *data_args, *FAST, *new, "--stems")
    assert not (tmp_path / "new").exists()


def test_vocoder_is_identified_by_weights_rather_than_path(unsharded, data_args, tmp_path, capsys):
    """Other weights at the same path are refused, the same weights at another path are accepted."""
    config = GeneratorConfig(channels=16, dilations=(1,))
    identities = []
    for seed in (0, 1):
        generator = Generator(config, rngs=nnx.Rngs(seed))
        save(tmp_path / f"{seed}", MELGAN, generator, config, {})
        identities.append(MelGAN(generator).identity())
    (tmp_path / "0").rename(tmp_path / "moved")
    (tmp_path / "1").rename(tmp_path / "0")
    shutil.copytree(unsharded, tmp_path / "run")
    run = json.loads((unsharded / "run.json").read_text())
    assert run["vocoder"] == GriffinLim().identity()
    (tmp_path / "run" / "run.json").write_text(json.dumps(run | {"vocoder": identities[0]}))
    there = (*data_args, *(option for option in FAST if option not in ("--vocoder", "griffin_lim")))
    there += ("--workdir", tmp_path / "run", "--vocoder")
    message = error_of(capsys, *there, tmp_path / "0")
    assert f"vocoder {identities[0]}" in message
    assert identities[1] in message
    evaluate(*there, tmp_path / "moved")


def test_dataset_with_another_sample_rate_is_refused(checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("spectrodiff.data.recordings.SAMPLE_RATE", 22050)
    write_dataset(tmp_path, "fast", {"test": [make_recording(4, seconds=1.0)]})
    monkeypatch.undo()
    data_args = ("--data_dir", tmp_path, "--dataset", "fast", "--checkpoint", checkpoint, "--workdir", tmp_path / "run")
    line = error_of(capsys, *data_args, *FAST)
    assert all(part in line for part in ("piece4 of fast", "22050 Hz", "16000"))
