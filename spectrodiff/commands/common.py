"""Functions shared by several subcommands."""

import contextlib
import ctypes
import importlib.metadata
import importlib.util
import io
import os
import pathlib


def say(line: str, file: io.TextIOBase | None = None) -> None:
    """Prints a line at once, on a line of its own where a progress bar is shown; to stdout by default."""
    from tqdm import tqdm

    with tqdm.external_write_mode(file):
        print(line, file=file, flush=True)


def compilation_cache() -> pathlib.Path:
    """Returns the folder of compiled programs: the one JAX_COMPILATION_CACHE_DIR names, or else the user's."""
    configured = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    default = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "spectrodiff" / "jax"
    return pathlib.Path(configured or default).expanduser()


_WORTH_KEEPING = 0.1  # seconds that compiling a program takes at least; loading one takes some hundredths


def keep_compiled_programs() -> None:
    """Caches compiled programs on disk, so that only the first run compiles them.

    They are in ~/.cache/spectrodiff/jax, or in the folder that JAX_COMPILATION_CACHE_DIR names. Call it before anything
    is compiled.
    """
    import jax

    if not jax.config.jax_compilation_cache_dir:
        cache = compilation_cache()
        with contextlib.suppress(OSError):  # without a cache if the home folder cannot be written
            cache.mkdir(parents=True, exist_ok=True)
            jax.config.update("jax_compilation_cache_dir", str(cache))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:  # JAX's second is longer than most programs take
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _WORTH_KEEPING)


def set_xla_flags(*flags: str) -> None:
    """Sets flags of XLA, if this version of jaxlib is known to have them: XLA ends a process that sets one it has not.

    Flags that XLA_FLAGS sets already keep their values. Call it before JAX initializes its devices.
    """
    if importlib.metadata.version("jaxlib").startswith(("0.10.", "0.11.")):
        os.environ["XLA_FLAGS"] = " ".join((*flags, os.environ.get("XLA_FLAGS", "")))


_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # of mallopt, from glibc's malloc.h


def computes_on_cpu() -> bool:
    """Returns whether JAX is going to compute on the CPU, without initializing it.

    This is decided by JAX_PLATFORMS or, if that is not set, by whether a plugin for an accelerator is installed, which
    JAX prefers to the CPU.
    """
    if platforms := os.environ.get("JAX_PLATFORMS"):
        return platforms.split(",")[0] == "cpu"
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return not plugins and not any(map(importlib.util.find_spec, ("jax_plugins", "libtpu")))


def keep_freed_memory() -> None:
    """Makes glibc keep freed memory instead of returning it to the system, if `computes_on_cpu`.

    XLA allocates its temporaries at each call. If they are returned in between, all their pages are faulted in and
    zeroed again: 98,000 per training step of configs/demo.gin, and none with these settings. With an accelerator, whose
    memory is not glibc's, threads that read data are faster with an arena each.

    Call it before JAX initializes its devices and so starts threads, which keep the arenas they have by then.
    """
    if not computes_on_cpu():
        return
    with contextlib.suppress(AttributeError):  # not glibc
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_ARENA_MAX, 1)  # other arenas would turn to mmap
