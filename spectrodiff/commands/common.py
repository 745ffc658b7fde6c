"""What several subcommands share."""

import contextlib
import ctypes
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


def keep_freed_memory() -> None:
    """Has glibc reuse memory instead of handing it back: call it before JAX is imported.

    XLA allocates all its temporaries anew at every call. Given back in between, each of their pages is faulted in and
    zeroed again: a sixth of a training step of configs/demo.gin on two cores.
    """
    with contextlib.suppress(AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_ARENA_MAX, 1)  # other arenas would turn to mmap
