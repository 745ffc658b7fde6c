"""Writing files so that no reader ever sees half of one."""

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterator

from spectrodiff.errors import InputError


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields a temporary path beside `path` (same suffix), renamed onto it when the block succeeds.

    Raises:
      InputError: the folder does not exist or cannot be written, the disk is full, or `path` is a folder.
    """
    path = pathlib.Path(path)
    check_writable(path)
    temporary = None
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=path.suffix, dir=path.parent)
        os.close(handle)
        temporary = pathlib.Path(name)
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes private files; the result should be an ordinary one
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def check_writable(path: str | os.PathLike) -> None:
    """Finds out before long work, not after it, that its result could not be written.

    Raises:
      InputError: the folder does not exist or cannot be written, or `path` is itself a folder.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        raise InputError(f"cannot write {path}: it is a folder; name a file")
    if not path.parent.is_dir():
        raise InputError(f"cannot write {path}: the folder {path.parent} does not exist; create it first")
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"cannot write {path}: no permission to write in {path.parent}")
