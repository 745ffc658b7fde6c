"""Our own format for weights that are handed around: safetensors beside a JSON file that says what they are."""

import json
import pathlib
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import nnx

from spectrodiff.config import GeneratorConfig, SpectrogramConfig, from_dict, to_dict
from spectrodiff.errors import InputError
from spectrodiff.files import replacing
from spectrodiff.models.layers import Buffer
from spectrodiff.models.spectrogram_model import SpectrogramModel
from spectrodiff.vocoder.generator import Generator

FORMAT_VERSION = 1


def flatten(state: nnx.State) -> dict[str, np.ndarray]:
    """Arrays by dotted path, such as `decoder.blocks.0.mlp.wo.kernel`."""
    return {".".join(map(str, path)): np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(state)}


def save_arrays(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    with replacing(path) as temporary:
        safetensors.numpy.save_file(arrays, temporary)


def load_arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file.

    Raises:
      InputError: the file is missing, truncated or not safetensors.
    """
    try:
        return safetensors.numpy.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f"cannot read weights {path}: {error}") from error


def unflatten_into(state: nnx.State, arrays: dict[str, np.ndarray], where: str) -> nnx.State:
    """`state` (abstract or real) with its leaves replaced by `arrays`, in the state's own types.

    Raises:
      InputError: a parameter is missing, unknown or of another shape; the message names it.
    """
    flat = dict(nnx.to_flat_state(state))
    names = {".".join(map(str, path)): path for path in flat}
    for name in sorted(names.keys() ^ arrays.keys()):
        raise InputError(f"{where} {'lacks' if name in names else 'has the unknown'} parameter {name}")
    for name, path in names.items():
        leaf = flat[path]
        if leaf.shape != arrays[name].shape:
            raise InputError(f"{where}: parameter {name} has shape {arrays[name].shape}, expected {leaf.shape}")
        flat[path] = leaf.replace(jnp.asarray(arrays[name], leaf.dtype))
    return nnx.from_flat_state(flat)


class Kind(NamedTuple):
    """A network that a checkpoint folder may hold, as NAME.safetensors and NAME.json."""

    name: str
    config: type
    network: type[nnx.Module]


SPECTROGRAM = Kind("spectrogram", SpectrogramConfig, SpectrogramModel)
VOCODER = Kind("vocoder", GeneratorConfig, Generator)


def save(
    folder: pathlib.Path, kind: Kind, network: nnx.Module, config: Any, card: dict, dtype: str = "float32"
) -> None:
    """Writes `network` into `folder`; `card` is any JSON about where it comes from. `dtype` float16 halves the file."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = flatten(nnx.state(network, nnx.Any(nnx.Param, Buffer)))
    save_arrays(folder / f"{kind.name}.safetensors", {name: array.astype(dtype) for name, array in arrays.items()})
    description = {"format_version": FORMAT_VERSION, "config": to_dict(config), "card": card}
    with replacing(folder / f"{kind.name}.json") as temporary:
        temporary.write_text(json.dumps(description, indent=2) + "\n")


def holds(folder: pathlib.Path, kind: Kind) -> bool:
    """Whether `folder` has a network of this kind."""
    return (pathlib.Path(folder) / f"{kind.name}.json").is_file()


def load(folder: pathlib.Path, kind: Kind) -> tuple[nnx.Module, Any]:
    """The network and the config that `save` wrote, without initialising parameters first.

    Raises:
      InputError: files are missing, from another version, or do not fit each other.
    """
    path = pathlib.Path(folder) / f"{kind.name}.json"
    try:
        description = json.loads(path.read_text())
        version, values = description["format_version"], {**description["config"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder} is not a spectrodiff checkpoint: {path.name} is missing or damaged") from error
    if version != FORMAT_VERSION:
        raise InputError(f"{path} has format version {version}, this spectrodiff reads {FORMAT_VERSION}: upgrade it")
    config = from_dict(kind.config, values, str(path))
    abstract = nnx.eval_shape(lambda: kind.network(config, rngs=nnx.Rngs(0)))
    graph, state, rest = nnx.split(abstract, nnx.Any(nnx.Param, Buffer), ...)
    weights = path.with_suffix(".safetensors")
    return nnx.merge(graph, unflatten_into(state, load_arrays(weights), str(weights)), rest), config
