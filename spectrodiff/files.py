"""Writing files so that no reader ever sees half of one."""

import contextlib
import hashlib
import json
import os
import pathlib
import re
import secrets
import shutil
import stat
import urllib.parse
from collections.abc import Iterator
from typing import Any

from spectrodiff.errors import InputError

_ADDRESS = re.compile("[A-Za-z][A-Za-z0-9+.-]+:/.*", re.DOTALL)  # pathlib makes one slash of the two
_LONGEST_SUFFIX = 16  # what writers look at is shorter


def local_path(path: str | os.PathLike) -> pathlib.Path:
    """The path, for what reads or writes disks of this machine alone.

    Object stores cannot append to a file, rename a folder or lock one, which runs and datasets need, and the reader of
    datasets opens local files only.

    Raises:
      InputError: it is an address, such as gs://bucket/run.
    """
    path = pathlib.Path(path)
    if _ADDRESS.fullmatch(str(path)):
        scheme, _, rest = str(path).partition(":/")
        raise InputError(
            f"{scheme}://{rest.lstrip('/')} is an address, not a path: name a folder or file of this machine; "
            "a bucket can be mounted as one (gcsfuse, s3fs)"
        )
    return path


def utf8_path(path: str | os.PathLike) -> pathlib.Path:
    """The path, made absolute, for libraries that take no other than UTF-8: those of datasets and checkpoints.

    Raises:
      InputError: it is an address, or holds other bytes.
    """
    path = local_path(path).absolute()
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{path} has bytes in its name that are no UTF-8: rename it, or name another folder"
        ) from error
    return path


def file_name(name: str, longest: int = 240) -> str:
    """A name for the file of something called `name`: quoted as in addresses, so that any disk tells it from others.

    What would be over `longest` bytes is cut, and ends with a hash of the whole. Disks take 255, suffix included.
    """
    quoted = urllib.parse.quote(name, safe=" ", errors="surrogateescape")
    if len(quoted) <= longest:
        return quoted
    digest = hashlib.sha256(quoted.encode()).hexdigest()[:16]
    return f"{quoted[: longest - 17]}-{digest}"


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields a temporary path beside `path` (same suffix), renamed onto it when the block succeeds.

    Raises:
      InputError: the folder does not exist or cannot be written, the disk is full, or `path` is a folder or an address.
    """
    path = local_path(path)
    check_writable(path)
    temporary = _beside(path)
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))  # as readable as any other file
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields a temporary folder beside `path`, which becomes `path` when the block succeeds and is removed otherwise.

    Raises:
      InputError: `path` is there and not an empty folder, or cannot be made, or the disk is full, or it is an address.
    """
    path = local_path(path)
    temporary = _beside(path)
    try:
        mode = _mode(path)
        taken = mode is not None and not (stat.S_ISDIR(mode) and not any(path.iterdir()))
        if not taken:
            temporary.mkdir()
    except (OSError, ValueError) as error:  # the latter for a null character
        raise InputError(f"cannot make the folder {path}: {getattr(error, 'strerror', None) or error}") from error
    if taken:
        raise InputError(f"{path} is there already; name a new folder or empty it first")
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _mode(path: pathlib.Path) -> int | None:
    """The kind and rights of what is there, None for nothing; raises OSError or ValueError for what can never be."""
    try:
        return os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None


def _beside(path: pathlib.Path) -> pathlib.Path:
    """A name that nothing has, and that every disk takes which takes `path`'s."""
    suffix = path.suffix if len(os.fsencode(path.suffix)) <= _LONGEST_SUFFIX else ""
    return path.parent / f".{secrets.token_hex(8)}{suffix}"


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Raises InputError as `replacing`."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n")


def check_writable(path: str | os.PathLike, size: int = 0) -> None:
    """Finds out before long work, not after it, that its result, of `size` bytes or more, could not be written.

    Raises:
      InputError: the folder does not exist, cannot be written or has no room; or `path` is itself a folder, too long a
        name, or an address.
    """
    path = local_path(path)
    try:
        mode = _mode(path)
    except (OSError, ValueError) as error:  # the name is too long, or holds a null character
        raise InputError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from error
    if mode is not None and stat.S_ISDIR(mode):
        raise InputError(f"cannot write {path}: it is a folder; name a file")
    if not path.parent.is_dir():
        raise InputError(f"cannot write {path}: the folder {path.parent} does not exist; create it first")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise InputError(f"cannot write {path}: no permission to write in {path.parent}")
    if (free := shutil.disk_usage(path.parent).free) < size:
        raise InputError(f"cannot write {path}: it takes {size / 1e6:.1f} MB, {free / 1e6:.1f} MB are free")
