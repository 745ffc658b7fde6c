"""Being asked to stop: SIGTERM, as schedulers send it before they take a machine away."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils


@contextlib.contextmanager
def preemption() -> Iterator[Callable[[int], bool]]:
    """Yields a function that says, asked at every step, whether this step is the one to save and stop after.

    In a run of several processes that is the same step for all, shortly after a signal to any one of them: there JAX
    listens, from `jax.distributed.initialize` on.
    """
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point
        return
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # where Python allows no handlers
        yield lambda step: False
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: asked.set())
    try:
        yield lambda step: asked.is_set()
    finally:
        signal.signal(signal.SIGTERM, before)
