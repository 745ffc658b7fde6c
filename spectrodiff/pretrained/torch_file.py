"""Reads tensors from files of torch.save (.bin) without torch, and without executing anything in them."""

import math
import os
import pickle
import zipfile
from collections import OrderedDict
from typing import NamedTuple

import ml_dtypes
import numpy as np

from spectrodiff.errors import InputError
from spectrodiff.pretrained.arrays import LazyArrays, Spec

_TYPES = {
    "FloatStorage": np.dtype(np.float32),
    "DoubleStorage": np.dtype(np.float64),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
}


class _Storage(NamedTuple):
    key: str  # the name of its file in the archive
    dtype: np.dtype


class _Tensor(NamedTuple):
    """A view of a storage; offset and strides are in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _RefusedError(Exception):
    """The pickle refers to something other than tensors."""


class _Unpickler(pickle.Unpickler):
    """Unpickles dicts of tensors and refuses everything else: no other name is looked up or called."""

    def find_class(self, module, name):
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            # A new function each time, so that attributes set by the pickle have no effect.
            return lambda storage, offset, shape, strides, *_: _Tensor(storage, offset, shape, strides)
        if module == "torch" and name in _TYPES:
            return name  # used in persistent ids only
        raise _RefusedError(f"it asks for {module}.{name}")

    def persistent_load(self, pid):
        match pid:
            case ("storage", str(kind), str(key), _, int()) if kind in _TYPES:
                return _Storage(key, _TYPES[kind])
        raise _RefusedError(f"it asks for the object {str(pid)[:80]}")


class TorchArrays(LazyArrays):
    """The tensors of a file written by `torch.save` (1.6 and later), read lazily.

    Raises:
      InputError: the file is missing, damaged, or holds anything but tensors by name; nothing in it is executed.
    """

    def __init__(self, path: str | os.PathLike):
        self._path = path
        try:
            with zipfile.ZipFile(path) as archive:
                (pickled,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
                with archive.open(pickled) as file:
                    tensors = _Unpickler(file).load()
            self._folder = pickled.removesuffix("data.pkl") + "data/"
        except _RefusedError as error:
            raise InputError(f"refused to load {path}: {error}, and only tensors are safe") from error
        except Exception as error:  # damaged pickles raise any exception
            raise InputError(
                f"cannot read weights {path}: missing, damaged or not of torch.save ({error!r})"
            ) from error
        if not isinstance(tensors, dict) or not all(
            isinstance(name, str) and isinstance(tensor, _Tensor) and isinstance(tensor.storage, _Storage)
            for name, tensor in tensors.items()
        ):
            raise InputError(f"refused to load {path}: it holds something other than tensors by name")
        super().__init__(tensors)
        self._tensors = tensors

    def __getitem__(self, name: str) -> np.ndarray:
        tensor = self._tensors[name]
        try:
            with zipfile.ZipFile(self._path) as archive:
                return _view(tensor, archive.read(self._folder + tensor.storage.key))
        except Exception as error:  # as above
            raise InputError(f"cannot read parameter {name} of {self._path}: {error!r}") from error

    def spec(self, name: str) -> Spec:
        tensor = self._tensors[name]
        return Spec(tensor.shape, tensor.storage.dtype.name)


def _view(tensor: _Tensor, stored: bytes) -> np.ndarray:
    """Returns a tensor as a view of its storage; raises ValueError if it exceeds the storage."""
    flat = np.frombuffer(stored, tensor.storage.dtype)
    if min(tensor.offset, *tensor.shape, *tensor.strides, 0) < 0 or len(tensor.shape) != len(tensor.strides):
        raise ValueError(f"no tensor has offset {tensor.offset}, shape {tensor.shape} and strides {tensor.strides}")
    last = tensor.offset + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.strides, strict=True))
    if math.prod(tensor.shape) and last >= flat.size:
        raise ValueError(f"it reaches beyond its storage of {flat.size} values")
    steps = [stride * flat.itemsize for stride in tensor.strides]
    return np.lib.stride_tricks.as_strided(flat[tensor.offset :], tensor.shape, steps, writeable=False)
