"""Work shared out among processes that end with the one that started them."""

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
    """Raises InputError if that is no number of processes; None is one per core."""
    if workers is not None and workers < 1:
        raise InputError(f"workers is {workers}; choose 1 or more")


def crew(workers: int | None, items: int, worth: int = 8) -> int:
    """How many processes to start for so many items: `workers`, by default one per core, but each for `worth` items.

    Starting one takes seconds, in which another gets through that many.
    """
    return max(1, min(workers or os.cpu_count() or 1, items // worth))


def in_order(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """`map(function, items)`, in other processes a little ahead of time; in this one if `workers` is 1.

    Raises:
      InputError: a process was killed.
    """
    if workers == 1:
        yield from map(function, items)
        return
    items = iter(items)
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_serve)
    try:
        queue = collections.deque(pool.submit(function, item) for item in itertools.islice(items, 3 * workers))
        while queue:
            yield queue.popleft().result()
            queue.extend(pool.submit(function, item) for item in itertools.islice(items, 1))
    except BrokenProcessPool as error:
        raise InputError("a process was killed, probably for lack of memory: try again with fewer --workers") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _serve() -> None:
    """Lets no worker outlive a run that was killed outright, nor speak up when that is interrupted."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=lambda: (multiprocessing.parent_process().join(), os._exit(1)), daemon=True).start()
