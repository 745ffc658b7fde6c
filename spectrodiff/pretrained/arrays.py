"""Arrays by name, read one at a time, so that two copies of all weights are never in memory at once."""

import contextlib
import os
import pathlib
from collections.abc import Collection, Iterable, Iterator, Mapping

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from tqdm import tqdm

from spectrodiff.errors import InputError
from spectrodiff.files import replacing


class LazyArrays(Mapping[str, np.ndarray]):
    """Arrays that are read when they are asked for, and not when somebody looks for a name."""

    def __init__(self, names: Collection[str]):
        self._names = names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names


class Renamed(LazyArrays):
    """Arrays under other names.

    `table` has the name in `arrays` by the new one; `linear` are the new names of what is to be transposed.

    Raises:
      InputError: `arrays` lacks a parameter, or has one too many; the message names it and `where`.
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


class SafetensorsArrays(LazyArrays):
    """The arrays of a safetensors file.

    The file is opened anew for each: left open it stays mapped, and every page once read counts as memory in use.

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

    @contextlib.contextmanager
    def _open(self):
        try:
            with safetensors.safe_open(self._path, "np") as file:
                yield file
        except (OSError, safetensors.SafetensorError) as error:
            raise InputError(f"cannot read weights {self._path}: {error}") from error


def save_arrays(path: pathlib.Path, arrays: Mapping[str, np.ndarray], metadata: dict[str, str] | None = None) -> None:
    with replacing(path) as temporary:
        contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}  # it writes what lies there
        safetensors.numpy.save_file(contiguous, temporary, metadata)


def check_names(found: Iterable[str], expected: Iterable[str], where: str) -> None:
    """Raises InputError for a parameter that is not in both; the message names it and `where`."""
    found, expected = set(found), set(expected)
    for name in sorted(found ^ expected):
        raise InputError(f"{where} {'lacks' if name in expected else 'has the unknown'} parameter {name}")


def checked(
    arrays: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]], where: str
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields names and contiguous arrays, one at a time, having seen that they are those of `shapes`.

    Raises:
      InputError: a parameter is missing, unknown, of another shape or no floats; the message names it and `where`.
    """
    check_names(arrays, shapes, where)
    for name, shape in tqdm(shapes.items(), desc="loading weights", unit="parameter", delay=2.0, leave=False):
        array = arrays[name]
        if array.shape != shape:
            raise InputError(f"{where}: parameter {name} has shape {array.shape}, expected {shape}")
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise InputError(f"{where}: parameter {name} has type {array.dtype}, expected floating point numbers")
        yield name, np.asarray(array, order="C")
