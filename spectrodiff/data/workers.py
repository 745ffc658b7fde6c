"""A parallel map whose worker processes end with the process that started them."""

import collections
import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from spectrodiff.errors import InputError

Item, Result = TypeVar("Item"), TypeVar("Result")


def check_workers(workers: int | None) -> None:
    """Raises InputError unless `workers` is 1 or more, or None for one process per core."""
    if workers is not None and workers < 1:
        raise InputError(f"workers is {workers}; choose 1 or more")


def worker_count(workers: int | None, items: int, items_per_worker: int = 8) -> int:
    """Returns how many processes to start for `items` items: at most `workers`, which defaults to one per core.

    Each process gets at least `items_per_worker` items, as many as one handles in the seconds that starting takes.
    """
    return max(1, min(workers or os.cpu_count() or 1, items // items_per_worker))


def parallel_map(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """Yields `function(item)` of each item, in order, computed a little ahead by `workers` processes.

    With one worker it is a plain `map` in this process.

    Raises:
      InputError: a worker was killed.
    """
    if workers == 1:
        yield from map(function, items)
        return
    items = iter(items)
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_end_with_parent)
    try:
        queue = collections.deque(pool.submit(function, item) for item in itertools.islice(items, 3 * workers))
        while queue:
            yield queue.popleft().result()
            queue.extend(pool.submit(function, item) for item in itertools.islice(items, 1))
    except BrokenProcessPool as error:
        raise InputError("a process was killed, probably for lack of memory: try again with fewer workers") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """Ends a worker when its parent was killed, and keeps it silent when the parent is interrupted."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=lambda: (multiprocessing.parent_process().join(), os._exit(1)), daemon=True).start()
