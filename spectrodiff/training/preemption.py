"""Preemption: on SIGTERM, which schedulers send before they take a machine away, a run saves its state and stops."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils


@contextlib.contextmanager
def preemption() -> Iterator[Callable[[int], bool]]:
    """Yields a function that, called with the number of each step, returns whether to stop after that step.

    It handles SIGTERM within the context. In a run of several processes, where JAX handles the signal, all processes
    stop after the same step, shortly after one of them received it.
    """
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point
        return
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # Python allows no signal handlers elsewhere
        yield lambda step: False
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: asked.set())
    try:
        yield lambda step: asked.is_set()
    finally:
        signal.signal(signal.SIGTERM, before)
