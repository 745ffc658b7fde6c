"""Paths, and writing files and folders atomically."""

import contextlib
import hashlib
import json
import math
import numbers
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

_ADDRESS = re.compile("[A-Za-z][A-Za-z0-9+.-]+:/.*", re.DOTALL)  # pathlib reduces // to /
_MAX_SUFFIX = 16  # bytes; suffixes of file formats are shorter
_PACKAGE = pathlib.Path(__file__).parent


def packaged(name: str) -> pathlib.Path:
    """Returns the folder `configs` or `examples`, of an installed package or of a checkout.

    The files lie at the top of the repository, and setup.py installs them as parts of the package.
    """
    installed = _PACKAGE / name
    return installed if installed.is_dir() else _PACKAGE.parent / name


def as_path(path: str | os.PathLike) -> pathlib.Path:
    """Returns the path; raises InputError if it is neither a str nor an `os.PathLike` object."""
    if not isinstance(path, str | os.PathLike):
        raise InputError(f"a path is a str or an os.PathLike object, but this is of the type {type(path).__name__}")
    return pathlib.Path(path)


def local_path(path: str | os.PathLike) -> pathlib.Path:
    """Returns the path, having checked that it is a path of this machine, not an address.

    Object stores cannot append to files or rename or lock folders, which runs and datasets need, and the reader of
    datasets opens local files only.

    Raises:
      InputError: it is an address, such as gs://bucket/run, or neither a str nor a path.
    """
    path = as_path(path)
    if _ADDRESS.fullmatch(str(path)):
        scheme, _, rest = str(path).partition(":/")
        raise InputError(
            f"{scheme}://{rest.lstrip('/')} is an address, not a path: name a folder or file of this machine; "
            "a bucket can be mounted as one (gcsfuse, s3fs)"
        )
    return path


def is_file(path: str | os.PathLike) -> bool:
    """Returns whether there is a file at `path`: False for a name that is too long, for which pathlib raises."""
    return os.path.isfile(path)


def is_folder(path: str | os.PathLike) -> bool:
    """Returns whether there is a folder at `path`: False for a name that is too long, for which pathlib raises."""
    return os.path.isdir(path)


def utf8_path(path: str | os.PathLike) -> pathlib.Path:
    """Returns the absolute path, having checked that it is UTF-8, as libraries of datasets and checkpoints require.

    Raises:
      InputError: it is an address, or not UTF-8.
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
    """Returns a file name for something called `name`, percent-encoded, so that it is valid on any file system.

    A name of more than `longest` bytes is truncated and ends with a hash. File systems allow 255, with the suffix.
    """
    quoted = urllib.parse.quote(name, safe=" ", errors="surrogateescape")
    if len(quoted) <= longest:
        return quoted
    digest = hashlib.sha256(quoted.encode()).hexdigest()[:16]
    return f"{quoted[: longest - 17]}-{digest}"


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields a temporary path in the folder of `path`, with its suffix, which replaces `path` if the block succeeds.

    Raises:
      InputError: the folder does not exist or cannot be written, the disk is full, or `path` is a folder or an address.
    """
    path = local_path(path)
    check_writable(path)
    temporary = _temporary_path(path)
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))  # permissions by the umask
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields a temporary folder, which is renamed to `path` if the block succeeds, and removed otherwise.

    Raises:
      InputError: `path` exists and is not an empty folder, cannot be made, or is an address; or the disk is full.
    """
    path = local_path(path)
    temporary = _temporary_path(path)
    try:
        mode = _mode(path)
        taken = mode is not None and not (stat.S_ISDIR(mode) and not any(path.iterdir()))
        if not taken:
            temporary.mkdir()
    except (OSError, ValueError) as error:  # ValueError: a null character
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
    """Returns the mode of a path, or None if it does not exist; raises OSError or ValueError for invalid paths."""
    try:
        return os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None


def _temporary_path(path: pathlib.Path) -> pathlib.Path:
    """Returns an unused path in the folder of `path`, with a name that is valid wherever that of `path` is."""
    suffix = path.suffix if len(os.fsencode(path.suffix)) <= _MAX_SUFFIX else ""
    return path.parent / f".{secrets.token_hex(8)}{suffix}"


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes text in UTF-8, atomically; raises InputError as `replacing`."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes a value as JSON, atomically; raises InputError as `replacing`."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def check_writable(path: str | os.PathLike, size: int = 0) -> None:
    """Checks, before long work, that a file of `size` bytes could be written to `path`.

    Raises:
      InputError: the folder does not exist, cannot be written or is full; or `path` is a folder, too long a name, or an
        address.
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


def nan_to_none(value: Any) -> Any:
    """Replaces numbers in nested dicts and sequences that are not finite, which JSON does not have, by None."""
    if isinstance(value, dict):
        return {name: nan_to_none(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [nan_to_none(part) for part in value]
    if isinstance(value, numbers.Real) and not isinstance(value, numbers.Integral):  # of Python and NumPy
        return float(value) if math.isfinite(value) else None
    return value
