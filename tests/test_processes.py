"""Training in several processes, which train, save and stop as one run."""

import signal
import time

import pytest
from processes import finish, free_port, losses, start, stepped
from run_training import train


def start_two_processes(workdir, options):
    address = f"127.0.0.1:{free_port()}"
    return [start("line", workdir, options, address, 2, i, devices=2) for i in (0, 1)]


@pytest.mark.trial
def test_two_processes_train_save_and_stop_together(tmp_path):
    """SIGTERM to one stops both at the same step; resumed by both, then by a single process, losses match one run."""
    workdir = tmp_path / "two"
    two = start_two_processes(workdir, {"steps": 4000})
    while not stepped(workdir, 3):
        assert all(process.poll() is None for process in two)
        time.sleep(0.05)
    two[1].send_signal(signal.SIGTERM)
    output, no_message = (finish(process) for process in two)
    (saved,) = (int(path.name) for path in (workdir / "checkpoints").iterdir())
    assert 3 <= saved < 4000
    assert f" step {saved} " in output
    assert f" step {saved} " not in no_message
    assert not (workdir / "export").exists()
    for process in start_two_processes(workdir, {"steps": saved + 2, "checkpoint_every": 1}):
        finish(process)
    train("line", workdir, steps=saved + 4)
    train("line", tmp_path / "one", steps=saved + 4)
    assert sorted(losses(workdir)) == list(range(1, saved + 5))
    assert losses(workdir) == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
