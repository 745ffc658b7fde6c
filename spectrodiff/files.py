"""Writing files so that no reader ever sees half of one."""

import contextlib
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

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
        _publish(temporary, 0o666)
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields a temporary folder beside `path`, which becomes `path` when the block succeeds and is removed otherwise.

    Raises:
      InputError: `path` is there and not an empty folder, or cannot be made, or the disk is full.
    """
    path = pathlib.Path(path)
    try:
        taken = path.exists() and not (path.is_dir() and not any(path.iterdir()))
        temporary = None if taken else pathlib.Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except (OSError, ValueError) as error:  # the latter for a null character
        raise InputError(f"cannot make the folder {path}: {getattr(error, 'strerror', None) or error}") from error
    if temporary is None:
        raise InputError(f"{path} is there already; name a new folder or empty it first")
    try:
        yield temporary
        _publish(temporary, 0o777)
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _publish(temporary: pathlib.Path, mode: int) -> None:
    """tempfile makes what is private; the result should be as readable as any other."""
    umask = os.umask(0)
    os.umask(umask)
    temporary.chmod(mode & ~umask)


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Raises InputError as `replacing`."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n")


def check_writable(path: str | os.PathLike) -> None:
    """Finds out before long work, not after it, that its result could not be written.

    Raises:
      InputError: the folder does not exist or cannot be written, or `path` is itself a folder.
    """
    path = pathlib.Path(path)
    try:
        is_folder = path.is_dir()
    except OSError as error:  # the name is too long
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    if is_folder:
        raise InputError(f"cannot write {path}: it is a folder; name a file")
    if not path.parent.is_dir():
        raise InputError(f"cannot write {path}: the folder {path.parent} does not exist; create it first")
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"cannot write {path}: no permission to write in {path.parent}")
