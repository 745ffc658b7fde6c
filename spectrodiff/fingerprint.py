"""Short hashes that identify networks and files by their contents, independently of names and paths."""

import hashlib
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from spectrodiff.errors import InputError

_DIGITS = 16  # hexadecimal: of a million networks two share a fingerprint with a chance of 1 in 10^7


def fingerprint(network: nnx.Module | nnx.State, *settings: Any) -> str:
    """Returns the fingerprint of a network's parameters, with their names and shapes, and of its `settings`.

    Settings are hashed by their `repr`, so that they should be numbers, strings and dataclasses of these.
    """
    state = nnx.state(network) if isinstance(network, nnx.Module) else network
    digest = hashlib.sha256(repr(settings).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(nnx.filter_state(state, nnx.Param)):
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))  # hashlib knows no bfloat16
    return digest.hexdigest()[:_DIGITS]


def fingerprint_of_files(files: Mapping[str, pathlib.Path]) -> str:
    """Returns the fingerprint of the contents of `files`, which maps names to paths; the paths do not matter.

    Raises:
      InputError: one cannot be read.
    """
    digest = hashlib.sha256()
    for name, path in sorted(files.items()):
        try:
            with path.open("rb") as file:
                of_file = hashlib.file_digest(file, "sha256")
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror or error}") from error
        digest.update(f"{name} {of_file.hexdigest()}\n".encode())
    return digest.hexdigest()[:_DIGITS]
