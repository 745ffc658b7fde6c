"""The loop: what a run writes, and that neither signals nor numbers that are not finite hurt it."""

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
Usage = collections.namedtuple("Usage", "total used free")


def log_of(workdir):
    return [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]


def fit(workdir, task, steps, **options):
    """Trains a `Line`, and returns what it comes to."""
    options = {"log_every": 1, "evaluators": (Distance(),)} | options
    loop.train(workdir, task=task, optimizer=adamw(0.1), steps=steps, **options)
    return task.saved[-1] if task.saved else None


def run(workdir, task, **options):
    evaluators = Guesses(), MelError(every=10, sampling={"steps": 2}), Gallery(every=10, windows=1)
    options = {"steps": STEPS, "log_every": 2, "evaluators": evaluators, "checkpoint_every": SAVED} | options
    loop.train(workdir, task=task, optimizer=adamw(1e-2), **options)


@pytest.fixture(scope="module")
def task(corpus):
    return SpectrogramTask(Mixture(str(corpus)), OURS, batch_size=2, tokens=256, heldout_windows=2)


@pytest.fixture(scope="module")
def whole(task, tmp_path_factory):
    """The workdir of a run that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("whole")
    run(workdir, task, describe=lambda: "what = 'it was told'\n")
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
    assert set(log[-1]) == {"step", "heldout_mel_l1", "heldout_roughness"}
    assert all(np.isfinite(value) for figures in log for value in figures.values())
    assert (whole / "config.gin").read_text() == "what = 'it was told'\n"
    assert list((whole / "tensorboard").iterdir())
    assert {"4", "5"} <= {folder.name for folder in (whole / "checkpoints").iterdir()}


def test_a_finished_run_runs_no_further_and_another_model_is_refused(task, whole, capsys):
    before = load_file(whole / "export" / "spectrogram.safetensors")
    run(whole, task)
    assert "it was told" in (whole / "config.gin").read_text()  # nobody described it anew
    assert f"resuming at step {STEPS}" in capsys.readouterr().out
    after = load_file(whole / "export" / "spectrogram.safetensors")
    assert all(np.array_equal(before[name], after[name]) for name in before)
    with pytest.raises(InputError, match="does not fit this config"):
        run(whole, dataclasses.replace(task, config=PAPER))


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


def test_asked_to_stop_when_all_steps_are_done_it_finishes(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Interrupting(Distance):
        def __call__(self, task, weights):
            os.kill(os.getpid(), signal.SIGTERM)
            return super().__call__(task, weights)

    assert fit(tmp_path, Line(), 3, evaluators=(Interrupting(),)) is not None
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


class OnDevice(Line):
    """Makes its batches there, as a resident corpus does."""

    def batches(self, seed, start=0):
        yield from map(jax.device_put, super().batches(seed, start))

    def sources(self, source):
        assert all(isinstance(array, np.ndarray) for array in source.values())
        return super().sources(source)


@pytest.mark.parametrize("kind", [Line, OnDevice])
def test_many_in_a_row_stop_the_run_and_name_the_last_ones_examples(tmp_path, kind):
    with pytest.raises(InputError) as error:
        fit(tmp_path, kind(spoilt=range(2 * BATCH, 2**20)), 20, most_skipped=3, log_every=4, checkpoint_every=1)
    for word in ("3 steps", "step 8", "line/16, line/17, line/18, line/19"):
        assert word in str(error.value)
    skipped = [row["skipped"] for row in log_of(tmp_path) if "skipped" in row]
    assert skipped == [0, 2, 4]  # the last ones are written down too


def test_a_run_from_other_weights_reports_what_it_changed(tmp_path, capsys):
    fit(tmp_path, Line(), 3, init_from="piano")
    log = [row for row in log_of(tmp_path) if "heldout_error" in row]
    after = log[-1]["heldout_error"]
    assert [row["step"] for row in log] == [0, 3]
    assert log[0]["heldout_error"] == 6.0
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
    with pytest.raises(InputError, match=r"train\.seed 3.* 0\b"):
        fit(tmp_path, Line(), 4)
    fit(tmp_path, Line(), 4, seed=3)


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9, 500))
    with pytest.raises(InputError, match=r"step 2 .*checkpoints\b.* MB"):
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
    assert str(tmp_path / "checkpoints") in line
    assert "File too large" in line


@pytest.mark.parametrize(
    "name", ["accumulate", "log_every", "checkpoint_every", "checkpoints_kept", "keep_every", "most_skipped"]
)
def test_nonsense_is_refused_before_anything_is_made(tmp_path, name):
    with pytest.raises(InputError, match=rf"^train\.{name} is 0\b"):
        fit(tmp_path / "run", Line(), 5, **{name: 0})
    assert not (tmp_path / "run").exists()


# ---- without gin


def test_runs_of_one_process_need_no_config_and_know_nothing_of_each_other(tmp_path, monkeypatch):
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


def test_what_is_exported_later_is_what_the_run_itself_exports(task, whole, tmp_path):
    assert export(whole, tmp_path, task) == STEPS
    later, itself = (load_file(folder / "spectrogram.safetensors") for folder in (tmp_path, whole / "export"))
    assert later.keys() == itself.keys()
    assert all(np.array_equal(later[name], itself[name]) for name in later)


# ---- what a loss may look at besides the network that learns


class Student(Line):
    """Learns from another network alone: a matrix of thirteens."""

    def frozen_modules(self):
        teacher = self.build(nnx.Rngs(5))
        teacher.kernel[...] = jnp.full((SIZE, SIZE), 13.0)
        return {"teacher": teacher}

    def loss(self, model, batch, key, others):
        return ((model(batch["x"]) - others.frozen["teacher"](batch["x"])) ** 2).mean(), {}


def sizes(tree):
    return sorted(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def test_a_student_comes_to_match_its_teacher_who_is_nowhere_saved(tmp_path):
    task = Student()
    steps = {"log_every": 50, "checkpoint_every": 150, "average_decay": 0.9}
    loop.train(tmp_path, task=task, optimizer=adamw(0.3, steps=300), steps=300, **steps)
    np.testing.assert_allclose(task.saved[-1], 13.0, atol=0.05)
    with ocp.CheckpointManager(tmp_path / "checkpoints", item_names=("model", "average")) as manager:
        found = manager.restore(
            300, args=ocp.args.Composite(model=ocp.args.StandardRestore(), average=ocp.args.StandardRestore())
        )
    assert sizes(found["model"]) == sizes(found["average"]) == [SIZE * SIZE]
    loop.train(tmp_path, task=task, optimizer=adamw(0.3, steps=300), steps=301, **steps)  # goes on from it
    assert export(tmp_path, tmp_path / "export", task) == 301


class Steady(Line):
    """Is held to its own average, and says how far from it it is, and by which key it was drawn."""

    def loss(self, model, batch, key, others):
        value, _ = super().loss(model, batch, key, others)
        strayed = jnp.square(model.kernel[...] - others.ema().kernel[...]).mean()
        drawn = {f"key/{i}": part for i, part in enumerate(jax.random.key_data(key))}
        return value + strayed, {"strayed": strayed, **drawn}


def test_a_loss_that_looks_at_the_average_is_one_that_goes_on_after_a_stop(tmp_path):
    whole = fit(tmp_path / "whole", Steady(), 6)
    for steps in (3, 6):
        stopped = fit(tmp_path / "stopped", Steady(), steps)
    np.testing.assert_array_equal(stopped, whole)
    strayed = [row["strayed"] for row in log_of(tmp_path / "whole") if "strayed" in row]
    assert strayed[0] == 0.0  # before the first step the average is the network
    assert min(strayed[1:]) > 1e-6


@pytest.mark.parametrize("seed", [0, 7])
def test_no_step_draws_by_a_key_that_parameters_are_drawn_by_or_by_one_made_of_it(tmp_path, seed):
    """flax draws the n-th parameter by the n-th key that is folded into the seed's."""
    fit(tmp_path, Steady(), 4, seed=seed)
    steps = {tuple(int(row[f"key/{i}"]) for i in (0, 1)) for row in log_of(tmp_path) if "strayed" in row}
    assert len(steps) == 4
    fold = jax.vmap(jax.random.fold_in, (None, 0))
    parameters = fold(jax.random.key(seed), jnp.arange(2000))
    first = jax.random.key_data(nnx.Rngs(seed).params())
    np.testing.assert_array_equal(jax.random.key_data(parameters)[0], first)
    of_them = jax.vmap(fold, (0, None))(parameters, jnp.arange(8))
    keys = np.concatenate([np.asarray(jax.random.key_data(some)).reshape(-1, 2) for some in (parameters, of_them)])
    assert not steps & {*map(tuple, keys.tolist())}


def test_weights_are_exported_by_the_clock_with_the_state_beside_them(tmp_path):
    """So a run that is killed leaves weights, and the checkpoint that they are of."""
    task = Interrupted(3)
    fit(tmp_path, task, 7, export_minutes=1e-9)
    assert len(task.saved) == 4  # after every step, the last of which was asked to be the last
    assert "4" in {folder.name for folder in (tmp_path / "checkpoints").iterdir()}
    assert not fit(tmp_path / "unhurried", Interrupted(3), 7, export_minutes=60.0)
