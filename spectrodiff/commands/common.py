"""What several subcommands share."""

import contextlib
import ctypes
import importlib.metadata
import importlib.util
import os
import pathlib

ROOT = pathlib.Path(__file__).parent.parent.parent  # a checkout's, where configs/ and examples/ lie


def keep_compiled_programs() -> None:
    """Keeps XLA's programs between runs, so that only the first one waits for them."""
    import jax

    if not jax.config.jax_compilation_cache_dir:
        cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "spectrodiff" / "jax"
        with contextlib.suppress(OSError):  # a home that cannot be written to: do without
            cache.mkdir(parents=True, exist_ok=True)
            jax.config.update("jax_compilation_cache_dir", str(cache))


_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # mallopt's numbers for them, from glibc's malloc.h


def computes_on_cpu() -> bool:
    """Whether JAX is going to compute on the CPU, as far as can be told without starting it.

    JAX_PLATFORMS says so. Where it is not set, JAX takes an accelerator before the CPU, so the answer is yes where no
    plugin for one is installed; they are looked for as JAX does.
    """
    if platforms := os.environ.get("JAX_PLATFORMS"):
        return platforms.split(",")[0] == "cpu"
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return not plugins and not any(map(importlib.util.find_spec, ("jax_plugins", "libtpu")))


def keep_freed_memory() -> None:
    """Has glibc reuse memory instead of handing it back, where `computes_on_cpu`; elsewhere nothing changes.

    Call it before JAX starts its threads, which it does when first asked for a device: threads that have an allocation
    arena of their own by then keep it, and hand its memory back. XLA allocates all its temporaries anew at every call.
    Given back in between, each of their pages is faulted in and zeroed again, 98,000 of them in a training step of
    configs/demo.gin and none with these settings. The memory of an accelerator is not glibc's, and beside one the
    threads that read data do better with an arena each.
    """
    if not computes_on_cpu():
        return
    with contextlib.suppress(AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_ARENA_MAX, 1)  # other arenas would turn to mmap
