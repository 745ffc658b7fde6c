"""The flags of `train` that a config does not have: several processes, and a window of steps to trace."""

import pytest
from processes import finish, free_port, start_python

from spectrodiff.cli import main
from spectrodiff.training import loop

TINY = ["train", "--gin_file", "configs/tiny.gin"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--coordinator", "127.0.0.1:9", "--process", "0"], "--processes is missing: a process of several needs all"),
        (
            ["--coordinator", "here", "--processes", "2", "--process", "0"],
            "'here' is no address, such as 10.0.0.1:1234",
        ),
        (["--coordinator", "127.0.0.1:9", "--processes", "2", "--process", "2"], "cannot join the other processes: "),
        (["--distributed"], "cannot join the other processes: "),  # why, depends on what ran before
        (["--profile", "30:20"], "'30:20' is no range of steps, such as 20:30"),
    ],
)
def test_what_cannot_be(options, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as error:
        main([*TINY, "--workdir", str(tmp_path / "run"), *options])
    assert error.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("spectrodiff")
    assert message in line
    assert not (tmp_path / "run").exists()


def test_the_window_to_trace_reaches_the_loop(tmp_path, monkeypatch):
    given = {}
    monkeypatch.setattr(loop, "train", lambda workdir, **options: given.update(options, workdir=workdir))
    main([*TINY, "--workdir", str(tmp_path), "--profile", "20:30"])
    assert given == {"workdir": str(tmp_path), "profile": (20, 30)}


JOINED = """
import sys, jax
from spectrodiff.cli import main
from spectrodiff.training import loop
loop.train = lambda workdir: print("process", jax.process_index(), "of", jax.process_count(), "for", workdir)
main(sys.argv[1:])
"""


def test_two_processes_join_by_their_flags_before_anything_trains():
    options = [*TINY, "--workdir", "runs/two", "--coordinator", f"127.0.0.1:{free_port()}", "--processes", 2]
    two = [start_python("-c", JOINED, *options, "--process", i) for i in (0, 1)]
    for i, process in enumerate(two):
        assert f"process {i} of 2 for runs/two" in finish(process)
