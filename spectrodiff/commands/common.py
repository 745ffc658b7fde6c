"""What several subcommands share."""

import contextlib
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
