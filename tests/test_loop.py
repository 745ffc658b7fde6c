"""The train loop: outputs, resuming, signals, non-finite steps, full disks, and losses with other networks."""

import collections
import dataclasses
import json
import os
import resource
import shutil
import signal

import gin
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from inputs import OURS, PAPER
from line import BATCH, SIZE, Distance, Line
from safetensors.numpy import load_file

from spectrodiff.data.mixture import Mixture
from spectrodiff.errors import InputError
from spectrodiff.pretrained.kinds import SPECTROGRAM
from spectrodiff.pretrained.native import load
from spectrodiff.training import loop
from spectrodiff.training.evaluators import Gallery, Guesses, MelError
from spectrodiff.training.export import export
from spectrodiff.training.optimizers import adamw
from spectrodiff.training.spectrogram import SpectrogramTask

STEPS, SAVED = 5, 2
DiskUsage = collections.namedtuple("DiskUsage", "total used free")


def read_log(workdir):
    return [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]


def fit(workdir, task, steps, **options):
    """Trains a `Line`, and returns the exported matrix, if there is one."""
    options = {"log_every": 1, "evaluators": (Distance(),)} | options
    loop.train(workdir, task=task, optimizer=adamw(0.1), steps=steps, **options)
    return task.saved[-1] if task.saved else None


def train_spectrogram(workdir, task, **options):
    evaluators = Guesses(), MelError(every=10, sampling={"steps": 2}), Gallery(every=10, windows=1)
    options = {"steps": STEPS, "log_every": 2, "evaluators": evaluators, "checkpoint_every": SAVED} | options
    loop.train(workdir, task=task, optimizer=adamw(1e-2), **options)


@pytest.fixture(scope="module")
def task(corpus):
    return SpectrogramTask(Mixture(str(corpus)), OURS, batch_size=2, tokens=256, heldout_windows=2)


@pytest.fixture(scope="module")
def uninterrupted(task, tmp_path_factory):
    """The workdir of an uninterrupted run of a spectrogram model."""
    workdir = tmp_path_factory.mktemp("whole")
    train_spectrogram(workdir, task, describe=lambda: "description = 'the first run'\n")
    return workdir


@pytest.mark.trial
def test_run_writes_export_log_config_and_checkpoints(task, uninterrupted):
    _, config = load(uninterrupted / "export", SPECTROGRAM)
    assert config == task.config
    description = json.loads((uninterrupted / "export" / "spectrogram.json").read_text())
    assert description["card"] == {"steps": STEPS, "examples": 2 * STEPS, "seed": 0}
    log = read_log(uninterrupted)
    assert [figures["step"] for figures in log] == [0, 1, 2, 4, STEPS, STEPS]
    assert set(log[0]) == {"step", "mean_mel", "wrong_window", "context_mean"}
    assert set(log[1]) >= {"step", "loss", "gradient_norm", "skipped", "examples_per_second", "waiting", "utilisation"}
    assert set(log[-1]) == {"step", "heldout_mel_l1", "heldout_roughness"}
    assert all(np.isfinite(value) for figures in log for value in figures.values())
    assert (uninterrupted / "config.gin").read_text() == "description = 'the first run'\n"
    assert list((uninterrupted / "tensorboard").iterdir())
    assert {"4", "5"} <= {folder.name for folder in (uninterrupted / "checkpoints").iterdir()}


@pytest.mark.trial
def test_finished_run_trains_no_further_and_keeps_its_config(task, uninterrupted, capsys):
    before = load_file(uninterrupted / "export" / "spectrogram.safetensors")
    train_spectrogram(uninterrupted, task)
    assert "the first run" in (uninterrupted / "config.gin").read_text()  # the config was not written again
    assert f" step {STEPS}\n" in capsys.readouterr().out
    after = load_file(uninterrupted / "export" / "spectrogram.safetensors")
    assert all(np.array_equal(before[name], after[name]) for name in before)
    with pytest.raises(InputError, match=r"\bconfig\b.*--workdir"):
        train_spectrogram(uninterrupted, dataclasses.replace(task, config=PAPER))


def test_time_limit_ends_the_run_as_its_last_step_does(tmp_path):
    task = Line()
    fit(tmp_path, task, 5, stop_after_minutes=1e-9)
    assert [folder.name for folder in (tmp_path / "checkpoints").iterdir()] == ["1"]
    assert len(task.saved) == 1
    with pytest.raises(InputError, match="stop_after_minutes"):
        fit(tmp_path, task, 5, stop_after_minutes=0.0)


class InterruptedLine(Line):
    """Sends its own process SIGTERM before batch `last`."""

    def __init__(self, last):
        super().__init__()
        self.last = last

    def batches(self, seed, start=0):
        for number, batch in enumerate(super().batches(seed, start), start // BATCH):
            if number == self.last:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch


def test_interrupted_run_resumes_bit_for_bit(tmp_path, capsys):
    uninterrupted = fit(tmp_path / "whole", Line(), 7)
    before = signal.getsignal(signal.SIGTERM)
    task = InterruptedLine(3)
    assert fit(tmp_path / "stopped", task, 7) is None  # nothing was exported, as it must end quickly
    assert " step 4 " in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) == before
    np.testing.assert_array_equal(fit(tmp_path / "stopped", task, 7), uninterrupted)
    assert task.started == [0, 4 * BATCH]
    ours, theirs = (read_log(tmp_path / name) for name in ("stopped", "whole"))
    timeless = [[(row["step"], row.get("loss")) for row in log] for log in (ours, theirs)]
    assert timeless[0] == timeless[1]


def test_interrupted_run_logs_its_last_steps(tmp_path):
    fit(tmp_path, InterruptedLine(3), 7, log_every=5)
    assert [row["step"] for row in read_log(tmp_path) if "loss" in row] == [1, 4]


def test_interrupt_after_the_last_step_does_not_stop_the_export(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class InterruptingDistance(Distance):
        def __call__(self, task, weights):
            os.kill(os.getpid(), signal.SIGTERM)
            return super().__call__(task, weights)

    assert fit(tmp_path, Line(), 3, evaluators=(InterruptingDistance(),)) is not None
    assert "heldout_error" in read_log(tmp_path)[-1]


def test_non_finite_steps_are_skipped_and_counted(tmp_path):
    trained = fit(tmp_path, Line(spoilt=range(BATCH, 3 * BATCH)), 6, log_every=3)  # batches 2 and 3
    assert np.isfinite(trained).all()
    log = [row for row in read_log(tmp_path) if "skipped" in row]
    assert [(row["step"], row["skipped"]) for row in log] == [(1, 0), (3, 2), (6, 0)]
    assert ["loss" in row for row in log] == [True, False, True]  # no loss if all were skipped: JSON has no NaN


def test_logged_means_exclude_skipped_steps(tmp_path):
    logs = []
    for name, every in (("each", 1), ("all", 4)):
        fit(tmp_path / name, Line(spoilt=range(BATCH, 2 * BATCH)), 4, log_every=every)
        logs.append({row["step"]: row for row in read_log(tmp_path / name) if "skipped" in row})
    each, together = logs
    assert together[4]["skipped"] == 1
    for name in ("loss", "gradient_norm"):
        assert together[4][name] == pytest.approx(np.mean([each[step][name] for step in (3, 4)]))


class LineOnDevice(Line):
    """Its batches are on the device, like those of a dataset that is kept there."""

    def batches(self, seed, start=0):
        yield from map(jax.device_put, super().batches(seed, start))

    def sources(self, source):
        assert all(isinstance(array, np.ndarray) for array in source.values())
        return super().sources(source)


@pytest.mark.parametrize("kind", [Line, LineOnDevice])
def test_many_skipped_steps_stop_the_run_naming_examples(tmp_path, kind):
    with pytest.raises(InputError) as error:
        fit(tmp_path, kind(spoilt=range(2 * BATCH, 2**20)), 20, most_skipped=3, log_every=4, checkpoint_every=1)
    for word in ("3 steps", "step 8", "line/16, line/17, line/18, line/19"):
        assert word in str(error.value)
    skipped = [row["skipped"] for row in read_log(tmp_path) if "skipped" in row]
    assert skipped == [0, 2, 4]  # the last skipped steps are logged, too


def test_run_with_init_from_writes_a_report(tmp_path, capsys):
    fit(tmp_path, Line(), 3, init_from="piano")
    log = [row for row in read_log(tmp_path) if "heldout_error" in row]
    after = log[-1]["heldout_error"]
    assert [row["step"] for row in log] == [0, 3]
    assert log[0]["heldout_error"] == 6.0
    report = (tmp_path / "report.md").read_text()
    assert f"| error | 6.0000 | {after:.4f} | {after / 6 - 1:+.1%} |" in report
    assert report in capsys.readouterr().out


def test_profile_traces_a_range_of_steps(tmp_path):
    fit(tmp_path, Line(), 6, profile=(2, 4))
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


@pytest.mark.parametrize("steps", [(3, 3), (5, 2), (-1, 2)])
def test_empty_range_of_profiled_steps_raises_input_error(tmp_path, steps):
    with pytest.raises(InputError, match=r"^train\.profile is "):
        fit(tmp_path, Line(), 6, profile=steps)


def test_trace_is_written_if_the_run_ends_first(tmp_path):
    fit(tmp_path, Line(), 3, profile=(1, 10))
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_resuming_with_another_seed_raises_input_error(tmp_path):
    fit(tmp_path, Line(), 2, seed=3)
    with pytest.raises(InputError, match=r"train\.seed 3.* 0\b"):
        fit(tmp_path, Line(), 4)
    fit(tmp_path, Line(), 4, seed=3)


def test_too_little_disk_space_raises_input_error(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: DiskUsage(10**9, 10**9, 500))
    with pytest.raises(InputError, match=r"step 2 .*checkpoints\b.* MB"):
        fit(tmp_path, Line(), 6, checkpoint_every=2)


def test_failed_checkpoint_write_raises_input_error(tmp_path):
    """A limit on the file size simulates a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(InputError) as error:
            fit(tmp_path, Line(outputs=4096), 6, checkpoint_every=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    line = str(error.value).splitlines()[0]
    assert str(tmp_path / "checkpoints") in line
    assert "File too large" in line


@pytest.mark.parametrize(
    "name", ["accumulate", "log_every", "checkpoint_every", "checkpoints_kept", "keep_every", "most_skipped"]
)
def test_invalid_settings_fail_before_the_workdir_is_created(tmp_path, name):
    with pytest.raises(InputError, match=rf"^train\.{name} is 0\b"):
        fit(tmp_path / "run", Line(), 5, **{name: 0})
    assert not (tmp_path / "run").exists()


# ---- without gin


def test_runs_in_one_process_are_independent_and_need_no_gin(tmp_path, monkeypatch):
    def fail(*_):
        raise AssertionError("gin was asked")

    for name in ("config_str", "operative_config_str", "query_parameter", "get_bindings", "get_configurable"):
        monkeypatch.setattr(gin, name, fail)
    ends = [fit(tmp_path / name, Line(), 3, seed=seed) for name, seed in (("one", 0), ("two", 1), ("again", 0))]
    np.testing.assert_array_equal(ends[0], ends[2])
    assert not np.array_equal(ends[0], ends[1])
    assert not (tmp_path / "one" / "config.gin").exists()
    task = Line()
    assert export(tmp_path / "one", tmp_path / "new", task) == 3
    assert export(tmp_path / "two", tmp_path / "other", task, seed=1, ema=False) == 3
    np.testing.assert_array_equal(task.saved[0], ends[0])
    assert not np.array_equal(task.saved[1], ends[1])


@pytest.mark.trial
def test_later_export_equals_the_export_of_the_run(task, uninterrupted, tmp_path):
    assert export(uninterrupted, tmp_path, task) == STEPS
    later, itself = (load_file(folder / "spectrogram.safetensors") for folder in (tmp_path, uninterrupted / "export"))
    assert later.keys() == itself.keys()
    assert all(np.array_equal(later[name], itself[name]) for name in later)


# ---- losses that use frozen networks or the average of the weights


class StudentLine(Line):
    """Is trained to match a frozen teacher, whose matrix is 13 everywhere."""

    def frozen_modules(self):
        teacher = self.build(nnx.Rngs(5))
        teacher.kernel[...] = jnp.full((SIZE, SIZE), 13.0)
        return {"teacher": teacher}

    def loss(self, model, batch, key, others):
        return ((model(batch["x"]) - others.frozen["teacher"](batch["x"])) ** 2).mean(), {}


def sizes(tree):
    return sorted(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def test_student_matches_its_teacher_which_is_not_saved(tmp_path):
    task = StudentLine()
    steps = {"log_every": 50, "checkpoint_every": 150, "average_decay": 0.9}
    loop.train(tmp_path, task=task, optimizer=adamw(0.3, steps=300), steps=300, **steps)
    np.testing.assert_allclose(task.saved[-1], 13.0, atol=0.05)
    with ocp.CheckpointManager(tmp_path / "checkpoints", item_names=("model", "average")) as manager:
        found = manager.restore(
            300, args=ocp.args.Composite(model=ocp.args.StandardRestore(), average=ocp.args.StandardRestore())
        )
    assert sizes(found["model"]) == sizes(found["average"]) == [SIZE * SIZE]
    loop.train(tmp_path, task=task, optimizer=adamw(0.3, steps=300), steps=301, **steps)  # resumes
    assert export(tmp_path, tmp_path / "export", task) == 301


class AveragedLine(Line):
    """Its loss adds the distance from the average of the weights; it logs this distance and the key of the step."""

    def loss(self, model, batch, key, others):
        value, _ = super().loss(model, batch, key, others)
        strayed = jnp.square(model.kernel[...] - others.ema().kernel[...]).mean()
        drawn = {f"key/{i}": part for i, part in enumerate(jax.random.key_data(key))}
        return value + strayed, {"strayed": strayed, **drawn}


def test_loss_with_the_average_resumes_bit_for_bit(tmp_path):
    uninterrupted = fit(tmp_path / "whole", AveragedLine(), 6)
    for steps in (3, 6):
        stopped = fit(tmp_path / "stopped", AveragedLine(), steps)
    np.testing.assert_array_equal(stopped, uninterrupted)
    strayed = [row["strayed"] for row in read_log(tmp_path / "whole") if "strayed" in row]
    assert strayed[0] == 0.0  # the average starts as the initial weights
    assert min(strayed[1:]) > 1e-6


@pytest.mark.parametrize("seed", [0, 7])
def test_keys_of_steps_differ_from_those_of_parameters(tmp_path, seed):
    """Nor are they folded from these. Flax initializes the n-th parameter with n folded into the key of the seed."""
    fit(tmp_path, AveragedLine(), 4, seed=seed)
    steps = {tuple(int(row[f"key/{i}"]) for i in (0, 1)) for row in read_log(tmp_path) if "strayed" in row}
    assert len(steps) == 4
    fold = jax.vmap(jax.random.fold_in, (None, 0))
    parameters = fold(jax.random.key(seed), jnp.arange(2000))
    first = jax.random.key_data(nnx.Rngs(seed).params())
    np.testing.assert_array_equal(jax.random.key_data(parameters)[0], first)
    of_them = jax.vmap(fold, (0, None))(parameters, jnp.arange(8))
    keys = np.concatenate([np.asarray(jax.random.key_data(some)).reshape(-1, 2) for some in (parameters, of_them)])
    assert not steps & {*map(tuple, keys.tolist())}


def test_periodic_export_also_saves_a_checkpoint(tmp_path):
    """A killed run leaves exported weights and a checkpoint of the same step."""
    task = InterruptedLine(3)
    fit(tmp_path, task, 7, export_minutes=1e-9)
    assert len(task.saved) == 4  # after each of the four steps before it stopped
    assert "4" in {folder.name for folder in (tmp_path / "checkpoints").iterdir()}
    assert not fit(tmp_path / "unhurried", InterruptedLine(3), 7, export_minutes=60.0)


def test_evaluator_that_cannot_evaluate_the_task_ends_the_run_before_anything_else(tmp_path):
    class Choosy:
        every = 1000

        def check(self, task):
            raise InputError("choosy")

        def __call__(self, task, weights):
            raise AssertionError

    task = Line()
    with pytest.raises(InputError, match="choosy"):
        fit(tmp_path / "run", task, 1, evaluators=[Choosy()])
    assert not (tmp_path / "run").exists()
    assert not task.started
