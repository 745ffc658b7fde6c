"""Training, killed and resumed, must be training that was never killed."""

import dataclasses
import json
import time

import numpy as np
import pytest
from inputs import OURS, PAPER
from safetensors.numpy import load_file

from spectrodiff.data.mixture import Mixture
from spectrodiff.errors import InputError
from spectrodiff.pretrained.native import SPECTROGRAM, load
from spectrodiff.training import loop, spectrogram
from spectrodiff.training.optimizers import muon
from spectrodiff.training.spectrogram import SpectrogramTask

STEPS, SAVED, KILLED = 5, 2, 4


class Killed(BaseException):
    """Nothing in the loop catches it, so nothing after it runs: as with SIGKILL."""


class _Fatal:
    """Batches until a checkpoint is on disk and `KILLED` were taken; then the end."""

    def __init__(self, batches, workdir):
        self.batches, self.checkpoint, self.taken = batches, workdir / "checkpoints" / str(SAVED), 0
        self.get_state = batches.get_state

    def __next__(self):
        if self.taken == KILLED:
            while not self.checkpoint.is_dir():
                time.sleep(0.01)
            raise Killed
        self.taken += 1
        return next(self.batches)


@dataclasses.dataclass(frozen=True)
class FatalTask(SpectrogramTask):
    workdir: object = None

    def batches(self, seed):
        return _Fatal(super().batches(seed), self.workdir)


@pytest.fixture(scope="module", autouse=True)
def _small_batches():
    with pytest.MonkeyPatch.context() as patch:
        real = spectrogram.batches
        patch.setattr(spectrogram, "batches", lambda *args, **options: real(*args, **options, batch_size=2, tokens=256))
        yield


def run(workdir, task, steps=STEPS, **options):
    loop.train(
        workdir, task=task, optimizer=muon(1e-2), steps=steps, log_every=2, evaluate_every=10, checkpoint_every=SAVED,
        **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def task(corpus):
    # Dropout is on, so that its randomness must continue too.
    model = dataclasses.replace(OURS.model, dropout=0.1)
    config = dataclasses.replace(OURS, model=model)
    return SpectrogramTask(Mixture(str(corpus)), config, heldout_windows=2, heldout_steps=2)


@pytest.fixture(scope="module")
def whole(task, tmp_path_factory):
    """The workdir of a run that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("whole")
    run(workdir, task)
    return workdir


def log_of(workdir):
    return [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]


def test_a_killed_run_resumes_to_the_bit(task, whole, tmp_path, capsys):
    fatal = FatalTask(**{f.name: getattr(task, f.name) for f in dataclasses.fields(task)}, workdir=tmp_path)
    with pytest.raises(Killed):
        run(tmp_path, fatal)
    assert not (tmp_path / "export").exists()
    run(tmp_path, task)
    resumed = int(capsys.readouterr().out.split("resuming at step ")[1].split()[0])
    assert resumed in (SAVED, KILLED)  # the second checkpoint may have made it, too
    ours, theirs = (load_file(w / "export" / "spectrogram.safetensors") for w in (tmp_path, whole))
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
    assert log_of(tmp_path)[-1]["heldout_mel_l1"] == log_of(whole)[-1]["heldout_mel_l1"]


def test_what_a_run_leaves(task, whole):
    _, config = load(whole / "export", SPECTROGRAM)
    assert config == task.config
    description = json.loads((whole / "export" / "spectrogram.json").read_text())
    assert description["card"] == {"steps": STEPS, "seed": 0}
    log = log_of(whole)
    assert [figures["step"] for figures in log] == [0, 1, 2, 4, STEPS]
    assert set(log[0]) == {"step", "mean_mel", "wrong_window", "context_mean"}
    assert set(log[1]) == {"step", "loss", "gradient_norm", "overfull", "examples_per_second", "waiting"}
    assert all(np.isfinite(value) for figures in log for value in figures.values())
    assert (whole / "config.gin").is_file()
    assert sorted(int(folder.name) for folder in (whole / "checkpoints").iterdir()) == [4, 5]


def test_a_finished_run_runs_no_further_and_another_model_is_refused(task, whole, capsys):
    before = load_file(whole / "export" / "spectrogram.safetensors")
    run(whole, task)
    assert f"resuming at step {STEPS}" in capsys.readouterr().out
    after = load_file(whole / "export" / "spectrogram.safetensors")
    assert all(np.array_equal(before[name], after[name]) for name in before)
    with pytest.raises(InputError, match="does not fit this config"):
        run(whole, dataclasses.replace(task, config=PAPER))


def test_no_time_is_no_steps_but_a_checkpoint(task, tmp_path):
    run(tmp_path, task, stop_after_minutes=1e-9)
    assert [folder.name for folder in (tmp_path / "checkpoints").iterdir()] == ["0"]
    assert (tmp_path / "export" / "spectrogram.json").is_file()
