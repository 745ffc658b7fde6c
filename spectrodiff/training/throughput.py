"""Measurement of training throughput: examples per second, time spent waiting for data, and utilisation."""

import contextlib
import time
from collections.abc import Iterator

import jax
from jax.sharding import Mesh

from spectrodiff.training.flops import peak_flops


class ThroughputMeter:
    """Measures examples per second, the fraction of time spent waiting for data, and the utilisation of the devices.

    Utilisation is relative to `peak`, the peak FLOP/s of all devices together. It needs the attribute `flops`, the
    floating-point operations of a step; while that is None, utilisation is not reported.
    """

    def __init__(self, peak: float):
        self.peak: float = peak
        self.flops: int | None = None
        self._restart()

    def _restart(self) -> None:
        self._since, self._waited = time.monotonic(), 0.0

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Excludes the time within the context from the measurement."""
        start = time.monotonic()
        yield
        self._since += time.monotonic() - start

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time within the context as waiting for data."""
        start = time.monotonic()
        yield
        self._waited += time.monotonic() - start

    def read(self, steps: int, examples: int) -> dict[str, float]:
        """Returns the metrics of the `steps` steps and `examples` examples since the last reading, and restarts."""
        elapsed = time.monotonic() - self._since
        figures = {
            "examples_per_second": examples / elapsed,
            "waiting": self._waited / elapsed,
        }
        if self.flops is not None:
            figures["utilisation"] = steps * self.flops / elapsed / self.peak
        self._restart()
        return figures


def mesh_peak_flops(mesh: Mesh, dtype: str) -> float:
    """Returns the peak FLOP/s of all devices of a mesh.

    CPU devices of one process share its cores, so that each process counts as one device.
    """
    device = jax.local_devices()[0]
    return peak_flops(device, dtype) * (jax.process_count() if device.platform == "cpu" else mesh.size)
