import itertools
import os
import subprocess
import sys

import pytest

from spectrodiff.data.workers import check_workers, parallel_map, worker_count
from spectrodiff.errors import InputError


def test_worker_count_depends_on_cpus_and_items(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert [worker_count(None, items) for items in (0, 7, 8, 15, 16, 31, 32, 1000)] == [1, 1, 1, 1, 2, 3, 4, 4]
    assert [worker_count(2, items, items_per_worker=100) for items in (150, 200, 300)] == [1, 2, 2]
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert worker_count(None, 1000) == 1


def test_invalid_worker_count_raises_input_error():
    for workers in (None, 1, 99):
        check_workers(workers)
    for workers in (0, -1):
        with pytest.raises(InputError, match=f"workers is {workers}"):
            check_workers(workers)


def test_one_worker_runs_lazily_in_this_process():
    processed = []
    results = parallel_map(lambda item: processed.append(item) or os.getpid(), itertools.count(), 1)
    assert next(results) == next(results) == os.getpid()
    assert processed == [0, 1]


PROGRAM = """
import itertools, os
from spectrodiff.data.workers import parallel_map
from spectrodiff.errors import InputError

if __name__ == "__main__":
    results = parallel_map(abs, itertools.count(-20), 2)  # endless: results are computed ahead only up to a limit
    print(*itertools.islice(results, 30))
    results.close()
    print(*parallel_map(abs, range(-3, 4), 2))
    try:
        list(parallel_map(os._exit, range(16), 2))
    except InputError as error:
        print(error)
"""


@pytest.mark.trial
def test_results_are_ordered_and_killed_workers_raise_input_error(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(PROGRAM)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    *results, error = done.stdout.splitlines()
    assert results == [" ".join(str(abs(item)) for item in range(-20, 10)), "3 2 1 0 1 2 3"]
    assert "workers" in error
