"""Comparison with diffusers' network and tokenizer, which run in a separate virtual environment.

`make peers` creates the environment and sets SPECTRODIFF_PEERS to its Python, so that the tests must run. Without the
variable they run if .venv-peers exists, and are skipped otherwise.
"""

import os
import pathlib
import subprocess

import pytest

_ROOT = pathlib.Path(__file__).parents[2]
_TABLE = pytest.StashKey()


@pytest.fixture(scope="session")
def torch_python():
    """The path of the environment's Python, which has PyTorch and diffusers."""
    python = os.environ.get("SPECTRODIFF_PEERS")
    if python is None and not (_ROOT / ".venv-peers" / "ready").exists():
        pytest.skip("diffusers is not installed in .venv-peers: `make peers` does it")
    return _ROOT / (python or ".venv-peers/bin/python")


@pytest.fixture(scope="session")
def peer(torch_python):
    """A function that runs peer.py with the given arguments (see its docstring)."""

    def run(*arguments):
        command = [torch_python, pathlib.Path(__file__).with_name("peer.py"), *arguments]
        done = subprocess.run(
            command, env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-4000:]

    return run


@pytest.fixture(scope="session")
def table(request):
    """Rows of strings that are printed as a table after all tests."""
    return request.config.stash.setdefault(_TABLE, [])


def pytest_terminal_summary(terminalreporter, config):
    rows = config.stash.get(_TABLE, [])
    if rows:
        terminalreporter.section("parity with diffusers: max |a - b| / max |b|")
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        terminalreporter.line("  ".join(map(str.rjust, row, widths)))
