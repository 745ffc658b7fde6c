"""How fast a run goes, and what holds it back."""

import contextlib
import time
from collections.abc import Iterator

import jax
from jax.sharding import Mesh

from spectrodiff.training.flops import peak_flops


class ThroughputMeter:
    """Examples a second, the part of the time spent waiting for data, and that of `peak` operations a second used.

    `peak` is that of all devices together. A step asks for `flops` operations; where that is None, as it is until it
    is set, how much of the peak is used is unknown, and that figure is left out.
    """

    def __init__(self, peak: float):
        self.peak: float = peak
        self.flops: int | None = None
        self.reset()

    def reset(self) -> None:
        """Forgets the time since `read`: what passed was no training."""
        self._since, self._waited = time.monotonic(), 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        asked = time.monotonic()
        yield
        self._waited += time.monotonic() - asked

    def read(self, steps: int, examples: int) -> dict[str, float]:
        """The figures of the `steps` steps and `examples` examples since it last was read or reset."""
        elapsed = time.monotonic() - self._since
        figures = {
            "examples_per_second": examples / elapsed,
            "waiting": self._waited / elapsed,
        }
        if self.flops is not None:
            figures["utilisation"] = steps * self.flops / elapsed / self.peak
        self.reset()
        return figures


def mesh_peak_flops(mesh: Mesh, dtype: str) -> float:
    """The peak of a mesh's devices together. CPU devices of one process share its cores: there each process is one."""
    device = jax.local_devices()[0]
    return peak_flops(device, dtype) * (jax.process_count() if device.platform == "cpu" else mesh.size)
