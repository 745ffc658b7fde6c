"""Writes what torch.save writes of a module's state, without torch: a pickle, opcode by opcode, in an archive."""

import pathlib
import pickle
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

STORAGES = {
    "float32": "FloatStorage",
    "float64": "DoubleStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
}


def value(plain: Any) -> bytes:
    """Opcodes that push a plain value."""
    return pickle.dumps(plain, 2)[2:-1]  # less the protocol before and the stop after it


def named(module: str, name: str) -> bytes:
    """Opcodes that look up and push `module.name`."""
    return f"c{module}\n{name}\n".encode()


def call(function: bytes, *arguments: bytes) -> bytes:
    """Opcodes that push what a function returns."""
    return function + b"(" + b"".join(arguments) + b"tR"


def tensor(key: str, storage: str, offset: Any, shape: Any, strides: Any) -> bytes:
    """Opcodes that push a tensor: a view of the storage of that key and class."""
    persistent = b"(" + value("storage") + named("torch", storage) + value(key) + value("cpu") + value(1) + b"tQ"
    view = (persistent, value(offset), value(shape), value(strides), value(False))
    return call(named("torch._utils", "_rebuild_tensor_v2"), *view, call(named("collections", "OrderedDict")))


def state(entries: Mapping[Any, bytes]) -> bytes:
    """Opcodes that push an OrderedDict of entries, with the attribute that a module's state has."""
    ordered = call(named("collections", "OrderedDict"))
    items = b"".join(value(name) + entry + b"s" for name, entry in entries.items())
    return ordered + items + b"}" + value("_metadata") + ordered + b"sb"


def write_archive(path: pathlib.Path, pushed: bytes, storages: Mapping[str, np.ndarray]) -> None:
    """Writes the pickle that pushes `pushed`, and the storages by their keys."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + pushed + b".")
        archive.writestr("archive/byteorder", b"little")
        for key, stored in storages.items():
            archive.writestr(f"archive/data/{key}", stored.tobytes())
        archive.writestr("archive/version", b"3\n")


def write_torch(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes contiguous arrays by name, each in a storage of its own."""
    entries, storages = {}, {}
    for key, (name, array) in enumerate(arrays.items()):
        strides = tuple(stride // array.itemsize for stride in array.strides)
        entries[name] = tensor(str(key), STORAGES[array.dtype.name], 0, array.shape, strides)
        storages[str(key)] = array
    write_archive(path, state(entries), storages)
