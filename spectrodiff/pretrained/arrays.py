"""Lazily read mappings of arrays, so that two copies of all weights are never in memory at once."""

import abc
import contextlib
import os
import pathlib
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import safetensors
import safetensors.numpy
from tqdm import tqdm

from spectrodiff.errors import InputError
from spectrodiff.files import replacing

_FLOATS = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}  # by name in safetensors


class Spec(NamedTuple):
    """The shape and type of a stored array. `dtype` is NumPy's name of it, or the format's if NumPy has none."""

    shape: tuple[int, ...]
    dtype: str


class LazyArrays(Mapping[str, np.ndarray]):
    """A mapping of arrays that are read when they are accessed, but not when names are looked up."""

    def __init__(self, names: Collection[str]):
        self._names = names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    @abc.abstractmethod
    def spec(self, name: str) -> Spec:
        """Returns the shape and type of an array, without reading it if possible."""


def spec_of(arrays: Mapping, name: str) -> Spec:
    """Returns the shape and type of an array; raises the same as a lookup of `name`."""
    if isinstance(arrays, LazyArrays):
        return arrays.spec(name)
    return Spec(arrays[name].shape, arrays[name].dtype.name)


class Stacks(LazyArrays):
    """The arrays of several mappings as one: `stack.name` is `name` in `stacks[stack]`."""

    def __init__(self, stacks: Mapping[str, LazyArrays]):
        super().__init__(frozenset(f"{stack}.{name}" for stack, arrays in stacks.items() for name in arrays))
        self._stacks = stacks

    def __getitem__(self, name: str) -> np.ndarray:
        stack, _, rest = name.partition(".")
        return self._stacks[stack][rest]

    def spec(self, name: str) -> Spec:
        stack, _, rest = name.partition(".")
        return self._stacks[stack].spec(rest)


class Renamed(LazyArrays):
    """A mapping of arrays under other names.

    `table` maps new names to those in `arrays`; the arrays with the new names `linear` are transposed.

    Raises:
      InputError: the names in `arrays` are not those in `table`; the message has the first one and `where`.
    """

    def __init__(
        self, arrays: Mapping[str, np.ndarray], table: Mapping[str, str], where: str, linear: Collection[str] = ()
    ):
        super().__init__(table)
        check_names(arrays, table.values(), where)
        self._arrays, self._table, self._linear = arrays, table, frozenset(linear)

    def __getitem__(self, name: str) -> np.ndarray:
        array = self._arrays[self._table[name]]
        return array.T if name in self._linear else array

    def spec(self, name: str) -> Spec:
        shape, dtype = spec_of(self._arrays, self._table[name])
        return Spec(shape[::-1] if name in self._linear else shape, dtype)


class SafetensorsArrays(LazyArrays):
    """The arrays of a safetensors file.

    The file is opened for each array: an open file stays mapped, and all pages read so far count as memory in use.

    Raises:
      InputError: the file is missing, truncated or not safetensors.
    """

    def __init__(self, path: str | os.PathLike):
        self._path = path
        with self._open() as file:
            super().__init__(frozenset(file.keys()))

    def __getitem__(self, name: str) -> np.ndarray:
        with self._open() as file:
            return file.get_tensor(name)

    def spec(self, name: str) -> Spec:
        with self._open() as file:
            stored = file.get_slice(name)
            dtype = stored.get_dtype()
            return Spec(tuple(stored.get_shape()), _FLOATS.get(dtype, dtype))

    @contextlib.contextmanager
    def _open(self):
        try:
            with safetensors.safe_open(self._path, "np") as file:
                yield file
        except (OSError, safetensors.SafetensorError) as error:
            raise InputError(f"cannot read weights {self._path}: {error}") from error


def save_arrays(
    path: pathlib.Path, arrays: Iterable[tuple[str, np.ndarray]], metadata: dict[str, str] | None = None
) -> None:
    """Writes named arrays, which may be generated lazily, as safetensors; all of them are in memory, without copies.

    Raises:
      InputError: `path` cannot be written, or the disk is full.
    """
    with replacing(path) as temporary:
        arrays = tqdm(arrays, desc=f"writing {path.parent.name}", unit="parameter", delay=2.0, leave=False)
        contiguous = {name: np.asarray(array, order="C") for name, array in arrays}  # save_file ignores strides
        permissions = stat.S_IMODE(temporary.stat().st_mode)
        try:
            safetensors.numpy.save_file(contiguous, temporary, metadata)
            temporary.chmod(permissions)  # save_file makes another file, which only its owner may read
        except safetensors.SafetensorError as error:  # also raised in place of OSError
            raise InputError(f"cannot write {path}: {error}") from error


def check_names(found: Iterable[str], expected: Iterable[str], where: str) -> None:
    """Raises InputError unless both have the same names; the message has the first other one and `where`."""
    found, expected = set(found), set(expected)
    for name in sorted(found ^ expected):
        raise InputError(f"{where} {'lacks' if name in expected else 'has the unknown'} parameter {name}")


def check_spec(spec: Spec, name: str, shape: tuple[int, ...], where: str) -> None:
    """Raises InputError if a parameter has another shape, or is not of floats."""
    if spec.shape != shape:
        raise InputError(f"{where}: parameter {name} has shape {spec.shape}, expected {shape}")
    if spec.dtype not in _FLOATS.values():
        raise InputError(f"{where}: parameter {name} has type {spec.dtype}, expected {', '.join(_FLOATS.values())}")


def checked(
    arrays: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]], where: str
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields names and contiguous arrays, one at a time, having checked names and shapes against `shapes`.

    Raises:
      InputError: a parameter is missing, unknown, of another shape or not of floats; the message has it and `where`.
    """
    check_names(arrays, shapes, where)
    for name, shape in tqdm(shapes.items(), desc="loading weights", unit="parameter", delay=2.0, leave=False):
        check_spec(spec_of(arrays, name), name, shape, where)
        yield name, np.asarray(arrays[name], order="C")
