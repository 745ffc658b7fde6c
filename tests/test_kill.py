"""Runs that are killed at any moment and restarted end with the same state as an uninterrupted run."""

import re
import signal
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from processes import finish, losses, start, stepped
from safetensors.numpy import load_file

STEPS = 12
OPTIONS = {"steps": STEPS, "checkpoint_every": 2}
ITEMS = ("model", "average", "training", "data")


def exported_weights(workdir):
    return load_file(workdir / "export" / "spectrogram.safetensors")


def newest_checkpoint(workdir):
    """All of the newest checkpoint: parameters, their average, the optimizer state and the data position."""
    with ocp.CheckpointManager(workdir / "checkpoints", item_names=ITEMS) as manager:
        args = {name: ocp.args.JsonRestore() if name == "data" else ocp.args.StandardRestore() for name in ITEMS}
        found = manager.restore(manager.latest_step(), args=ocp.args.Composite(**args))
        return {name: jax.tree.map(np.asarray, found[name]) for name in ITEMS}


def kill_when(process, condition):
    """Sends SIGKILL as soon as `condition()` holds; returns False if the process ended before."""
    while not (seen := condition()) and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return bool(seen)


@pytest.mark.trial
def test_run_killed_during_a_save_resumes_bit_for_bit(corpus, tmp_path):
    finish(start(corpus, tmp_path / "whole", OPTIONS))
    workdir = tmp_path / "killed"

    def saving():
        return list((workdir / "checkpoints").glob("*tmp*"))

    assert kill_when(start(corpus, workdir, OPTIONS), lambda: stepped(workdir, 1))
    assert kill_when(start(corpus, workdir, OPTIONS), saving)
    assert saving()  # an incomplete checkpoint, which must not be restored
    assert kill_when(start(corpus, workdir, OPTIONS), lambda: stepped(workdir, 7))
    assert not (workdir / "export").exists()
    output = finish(start(corpus, workdir, OPTIONS))
    assert re.search(r" step [1-9]\d*$", output, re.MULTILINE)
    assert losses(workdir) == losses(tmp_path / "whole")
    jax.tree.map(np.testing.assert_array_equal, newest_checkpoint(workdir), newest_checkpoint(tmp_path / "whole"))
    ours, theirs = exported_weights(workdir), exported_weights(tmp_path / "whole")
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


@pytest.mark.trial
def test_run_killed_at_random_times_resumes_bit_for_bit(tmp_path):
    """It saves after every step, so that most kills interrupt a save."""
    options = {"steps": 40, "checkpoint_every": 1}
    finish(start("line", tmp_path / "whole", options))
    workdir, rng = tmp_path / "killed", np.random.default_rng(0)

    def newest_step():
        return max((int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdecimal()), default=0)

    for _ in range(4):
        process, last = start("line", workdir, options), newest_step() + rng.integers(1, 9)
        assert kill_when(process, lambda last=last: newest_step() >= last and time.sleep(rng.uniform(0, 0.1)) is None)
        assert last <= newest_step() < 40
    finish(start("line", workdir, options))
    assert losses(workdir) == losses(tmp_path / "whole")
    jax.tree.map(np.testing.assert_array_equal, newest_checkpoint(workdir), newest_checkpoint(tmp_path / "whole"))
