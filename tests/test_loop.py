"""The loop: what a run writes, and that neither signals nor numbers that are not finite hurt it."""

import collections
import dataclasses
import json
import os
import resource
import shutil
import signal

import gin
import numpy as np
import pytest
from inputs import OURS, PAPER
from line import BATCH, Line
from safetensors.numpy import load_file

from spectrodiff.data.mixture import Mixture
from spectrodiff.errors import InputError
from spectrodiff.pretrained.kinds import SPECTROGRAM
from spectrodiff.pretrained.native import load
from spectrodiff.training import loop, spectrogram
from spectrodiff.training.optimizers import adamw
from spectrodiff.training.spectrogram import SpectrogramTask

STEPS, SAVED = 5, 2
Usage = collections.namedtuple("Usage", "total used free")


def log_of(workdir):
    return [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]


def fit(workdir, task, steps, **options):
    """Trains a `Line`, and returns what it comes to."""
    loop.train(workdir, task=task, optimizer=adamw(0.1), steps=steps, **{"log_every": 1} | options)
    return task.saved[-1] if task.saved else None


@pytest.fixture(scope="module", autouse=True)
def _small_batches():
    with pytest.MonkeyPatch.context() as patch:
        real = spectrogram.batches
        patch.setattr(spectrogram, "batches", lambda *args, **options: real(*args, **options, batch_size=2, tokens=256))
        yield


def run(workdir, task, **options):
    options = {"steps": STEPS, "log_every": 2, "evaluate_every": 10, "checkpoint_every": SAVED} | options
    loop.train(workdir, task=task, optimizer=adamw(1e-2), **options)


@pytest.fixture(scope="module")
def task(corpus):
    return SpectrogramTask(Mixture(str(corpus)), OURS, heldout_windows=2, heldout_steps=2)


@pytest.fixture(scope="module")
def whole(task, tmp_path_factory):
    """The workdir of a run that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("whole")
    run(workdir, task)
    return workdir


def test_what_a_run_leaves(task, whole):
    _, config = load(whole / "export", SPECTROGRAM)
    assert config == task.config
    description = json.loads((whole / "export" / "spectrogram.json").read_text())
    assert description["card"] == {"steps": STEPS, "examples": 2 * STEPS, "seed": 0}
    log = log_of(whole)
    assert [figures["step"] for figures in log] == [0, 1, 2, 4, STEPS, STEPS]
    assert set(log[0]) == {"step", "mean_mel", "wrong_window", "context_mean"}
    assert set(log[1]) >= {"step", "loss", "gradient_norm", "skipped", "examples_per_second", "waiting", "utilisation"}
    assert "heldout_mel_l1" in log[-1]
    assert all(np.isfinite(value) for figures in log for value in figures.values())
    assert (whole / "config.gin").is_file()
    assert list((whole / "tensorboard").iterdir())
    assert {"4", "5"} <= {folder.name for folder in (whole / "checkpoints").iterdir()}


def test_a_finished_run_runs_no_further_and_another_model_is_refused(task, whole, capsys):
    before = load_file(whole / "export" / "spectrogram.safetensors")
    run(whole, task)
    assert f"resuming at step {STEPS}" in capsys.readouterr().out
    after = load_file(whole / "export" / "spectrogram.safetensors")
    assert all(np.array_equal(before[name], after[name]) for name in before)
    with pytest.raises(InputError, match="does not fit this config"):
        run(whole, dataclasses.replace(task, config=PAPER))


def test_bindings_that_nothing_uses_are_named(tmp_path, capsys):
    gin.parse_config(["adamw.warmup = 1", "muon.warmup = 2", "muon.adam_rate = 0.1"])
    fit(tmp_path, Line(), 2)
    assert "of the config nothing uses muon.adam_rate, muon.warmup\n" in capsys.readouterr().out
    assert "adamw.warmup = 1\n" in (tmp_path / "config.gin").read_text()


def test_no_time_is_no_steps_but_a_checkpoint(tmp_path):
    task = Line()
    fit(tmp_path, task, 5, stop_after_minutes=1e-9)
    assert [folder.name for folder in (tmp_path / "checkpoints").iterdir()] == ["0"]
    assert len(task.saved) == 1


class Interrupted(Line):
    """Sends its own process SIGTERM before batch `last`."""

    def __init__(self, last):
        super().__init__()
        self.last = last

    def batches(self, seed, start=0):
        for number, batch in enumerate(super().batches(seed, start), start // BATCH):
            if number == self.last:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch


def test_asked_to_stop_a_run_saves_and_goes_on_to_the_bit(tmp_path, capsys):
    whole = fit(tmp_path / "whole", Line(), 7)
    before = signal.getsignal(signal.SIGTERM)
    task = Interrupted(3)
    assert fit(tmp_path / "stopped", task, 7) is None  # nothing was exported: it had better be quick
    assert "asked to stop: step 4 is saved" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) == before
    np.testing.assert_array_equal(fit(tmp_path / "stopped", task, 7), whole)
    assert task.started == [0, 4 * BATCH]
    ours, theirs = (log_of(tmp_path / name) for name in ("stopped", "whole"))
    timeless = [[(row["step"], row.get("loss")) for row in log] for log in (ours, theirs)]
    assert timeless[0] == timeless[1]


def test_asked_to_stop_between_two_rows_of_its_log_a_run_writes_one_more(tmp_path):
    fit(tmp_path, Interrupted(3), 7, log_every=5)
    assert [row["step"] for row in log_of(tmp_path) if "loss" in row] == [1, 4]


class Evaluated(Line):
    """Sends its own process SIGTERM while it is evaluated."""

    def evaluate(self, graph, params, buffers):
        os.kill(os.getpid(), signal.SIGTERM)
        return super().evaluate(graph, params, buffers)


def test_asked_to_stop_when_all_steps_are_done_it_finishes(tmp_path):
    assert fit(tmp_path, Evaluated(), 3) is not None
    assert "heldout_error" in log_of(tmp_path)[-1]


def test_steps_that_are_not_finite_are_skipped_and_counted(tmp_path):
    whole = fit(tmp_path, Line(spoilt=range(BATCH, 3 * BATCH)), 6, log_every=3)  # the second batch and the third
    assert np.isfinite(whole).all()
    log = [row for row in log_of(tmp_path) if "skipped" in row]
    assert [(row["step"], row["skipped"]) for row in log] == [(1, 0), (3, 2), (6, 0)]
    assert ["loss" in row for row in log] == [True, False, True]  # JSON knows no NaN


def test_what_is_logged_is_of_the_steps_that_were_not_skipped(tmp_path):
    logs = []
    for name, every in (("each", 1), ("all", 4)):
        fit(tmp_path / name, Line(spoilt=range(BATCH, 2 * BATCH)), 4, log_every=every)
        logs.append({row["step"]: row for row in log_of(tmp_path / name) if "skipped" in row})
    each, together = logs
    assert together[4]["skipped"] == 1
    for name in ("loss", "gradient_norm"):
        assert together[4][name] == pytest.approx(np.mean([each[step][name] for step in (3, 4)]))


def test_many_in_a_row_stop_the_run_and_name_the_last_ones_examples(tmp_path):
    with pytest.raises(InputError) as error:
        fit(tmp_path, Line(spoilt=range(2 * BATCH, 2**20)), 20, most_skipped=3, log_every=4, checkpoint_every=1)
    assert str(error.value).splitlines()[0] == (
        "3 steps in a row, to step 8 or just before, had a loss or gradients that are not finite: lower the learning "
        "rate, clip gradients, or look at the last one's examples, line/16, line/17, line/18, line/19"
    )
    assert [row["skipped"] for row in log_of(tmp_path) if "skipped" in row] == [
        0,
        2,
        4,
    ]  # the last ones are written down too


def test_a_run_from_other_weights_reports_what_it_changed(tmp_path, capsys):
    fit(tmp_path, Line(), 3, init_from="piano")
    log = log_of(tmp_path)
    after = log[-1]["heldout_error"]
    assert log[1]["heldout_error"] == 6.0
    report = (tmp_path / "report.md").read_text()
    assert f"| error | 6.0000 | {after:.4f} | {after / 6 - 1:+.1%} |" in report
    assert report in capsys.readouterr().out


def test_a_window_of_steps_is_traced(tmp_path):
    fit(tmp_path, Line(), 6, profile=(2, 4))
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_a_run_that_ends_while_it_is_traced_keeps_the_trace(tmp_path):
    fit(tmp_path, Line(), 3, profile=(1, 10))
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_a_run_goes_on_with_its_own_seed(tmp_path):
    fit(tmp_path, Line(), 2, seed=3)
    with pytest.raises(InputError, match=r"the run in .* began with train\.seed 3, not 0: give it that one again"):
        fit(tmp_path, Line(), 4)
    fit(tmp_path, Line(), 4, seed=3)


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9, 500))
    line = r"no room for the checkpoint of step 2 in .*checkpoints: it takes 0.0 MB, 0.0 MB are free"
    with pytest.raises(InputError, match=line):
        fit(tmp_path, Line(), 6, checkpoint_every=2)


def test_a_checkpoint_that_cannot_be_written_ends_the_run(tmp_path):
    """Played by a limit on the size of a file."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(InputError) as error:
            fit(tmp_path, Line(outputs=4096), 6, checkpoint_every=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    line = str(error.value).splitlines()[0]
    assert line == f"cannot write a checkpoint to {tmp_path / 'checkpoints'}: File too large"


@pytest.mark.parametrize(
    "name", ["accumulate", "log_every", "checkpoint_every", "checkpoints_kept", "keep_every", "most_skipped"]
)
def test_nonsense_is_refused_before_anything_is_made(tmp_path, name):
    with pytest.raises(InputError, match=f"^train.{name} is 0; choose 1 or more"):
        fit(tmp_path / "run", Line(), 5, **{name: 0})
    assert not (tmp_path / "run").exists()
