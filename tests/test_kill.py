"""A run that is killed without warning, at any moment, and started again is a run that was never killed."""

import signal
import time

import numpy as np
import pytest
from processes import finish, losses, start, stepped
from safetensors.numpy import load_file

STEPS = 12
OPTIONS = {"steps": STEPS, "checkpoint_every": 2}


def weights(workdir):
    return load_file(workdir / "export" / "spectrogram.safetensors")


def kill_when(process, happened):
    """SIGKILL as soon as `happened()`; False if the process ended first."""
    while not (seen := happened()) and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return bool(seen)


@pytest.mark.slow
def test_killed_twice_and_in_the_middle_of_a_save(corpus, tmp_path):
    finish(start(corpus, tmp_path / "whole", OPTIONS))
    workdir = tmp_path / "killed"

    def saving():
        return list((workdir / "checkpoints").glob("*tmp*"))

    assert kill_when(start(corpus, workdir, OPTIONS), lambda: stepped(workdir, 1))
    assert kill_when(start(corpus, workdir, OPTIONS), saving)
    assert saving()  # half a checkpoint, which must not be taken for one
    assert kill_when(start(corpus, workdir, OPTIONS), lambda: stepped(workdir, 7))
    assert not (workdir / "export").exists()
    output = finish(start(corpus, workdir, OPTIONS))
    assert "resuming at step" in output
    assert losses(workdir) == losses(tmp_path / "whole")
    ours, theirs = weights(workdir), weights(tmp_path / "whole")
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
