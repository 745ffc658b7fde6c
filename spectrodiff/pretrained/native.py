"""The native format of weights: a safetensors file, and a JSON file with the config and information."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from spectrodiff.config import from_dict, to_dict
from spectrodiff.errors import InputError
from spectrodiff.files import write_json
from spectrodiff.models.layers import Buffer
from spectrodiff.pretrained.arrays import SafetensorsArrays, checked, save_arrays
from spectrodiff.pretrained.kinds import Kind

FORMAT_VERSION = 2


def flatten(state: nnx.State) -> dict[str, np.ndarray]:
    """Returns the arrays of a state by dotted path, such as `decoder.blocks.0.mlp.wo.kernel`."""
    return {name: np.asarray(leaf[...]) for name, (_, leaf) in _leaves(state).items()}


def _leaves(state: nnx.State) -> dict[str, tuple[tuple, nnx.Variable]]:
    """Returns paths and leaves by dotted path."""
    return {".".join(map(str, path)): (path, leaf) for path, leaf in nnx.to_flat_state(state)}


def unflatten_into(state: nnx.State, arrays: Mapping[str, np.ndarray], where: str) -> nnx.State:
    """Returns `state`, abstract or not, with its leaves replaced by `arrays`, converted to the types of the state.

    With lazy arrays, there is never a second copy of all of them. Raises InputError as `checked`.
    """
    leaves = _leaves(state)
    flat = {}
    for name, array in checked(arrays, {name: leaf.shape for name, (_, leaf) in leaves.items()}, where):
        path, leaf = leaves[name]
        flat[path] = leaf.replace(jax.device_put(np.asarray(array, leaf.dtype)))  # faster than jnp.asarray
    return nnx.from_flat_state(flat)


class _OneKey(nnx.Rngs):
    """Always returns the same key: shapes need no randomness, and counting keys would take most of the time."""

    def params(self):
        return jax.random.key(0)


def _abstract(kind: Kind, config: Any) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """Returns the structure of a network, its stored state and its other state; both are abstract."""
    abstract = nnx.eval_shape(lambda: kind.network(config, rngs=_OneKey(0)))
    return nnx.split(abstract, nnx.Any(nnx.Param, Buffer), ...)


def shapes_of(kind: Kind, config: Any) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of all parameters of a network by dotted path."""
    return {name: leaf.shape for name, (_, leaf) in _leaves(_abstract(kind, config)[1]).items()}


def build(kind: Kind, config: Any, arrays: Mapping[str, np.ndarray], where: str) -> nnx.Module:
    """Returns the network of `config` with the weights `arrays`; raises InputError as `checked`."""
    graph, state, rest = _abstract(kind, config)
    return nnx.merge(graph, unflatten_into(state, arrays, where), rest)


def save(
    folder: pathlib.Path, kind: Kind, network: nnx.Module, config: Any, card: dict, dtype: str = "float32"
) -> None:
    """Writes `network` into `folder`, with a `card` of any JSON about its origin, its weights converted to `dtype`."""
    arrays = flatten(nnx.state(network, nnx.Any(nnx.Param, Buffer)))
    write(folder, kind, {name: array.astype(dtype) for name, array in arrays.items()}, config, card)


def write(folder: pathlib.Path, kind: Kind, arrays: Mapping[str, np.ndarray], config: Any, card: dict) -> None:
    """Writes `arrays`, which may be lazy, in their own types into `folder`, with their config and card."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    description, weights = (folder / name for name in kind.files)
    save_arrays(weights, arrays.items())
    write_json(description, {"format_version": FORMAT_VERSION, "config": to_dict(config), "card": card})


def read(folder: pathlib.Path, kind: Kind) -> tuple[Any, Mapping[str, np.ndarray], dict]:
    """Returns the config, arrays and card that `save` wrote; the arrays are read lazily.

    Raises:
      InputError: files are missing, damaged, or of an unknown version.
    """
    path, weights = (pathlib.Path(folder) / name for name in kind.files)
    try:
        description = json.loads(path.read_text())
        version, values = description["format_version"], description["config"]
        card = {**description.get("card", {})}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{folder} is not a spectrodiff checkpoint: {path.name} is missing or damaged") from error
    if version != FORMAT_VERSION:
        raise InputError(f"{path} has format version {version}, this spectrodiff reads {FORMAT_VERSION}: upgrade it")
    return from_dict(kind.config, values, str(path)), SafetensorsArrays(weights), card


def load(folder: pathlib.Path, kind: Kind) -> tuple[nnx.Module, Any]:
    """Returns the network and the config that `save` wrote.

    Raises:
      InputError: files are missing, of an unknown version, or do not fit each other.
    """
    config, arrays, _ = read(folder, kind)
    return build(kind, config, arrays, str(pathlib.Path(folder) / kind.files[1])), config
