"""Our own format for weights that are handed around: safetensors beside a JSON file that says what they are."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import nnx

from spectrodiff.config import SpectrogramConfig, from_dict, to_dict
from spectrodiff.errors import InputError
from spectrodiff.files import replacing
from spectrodiff.models.layers import Buffer
from spectrodiff.models.spectrogram_model import SpectrogramModel

FORMAT_VERSION = 1
CONFIG_NAME = "spectrodiff.json"
WEIGHTS_NAME = "spectrogram.safetensors"


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


def save_spectrogram_model(
    folder: pathlib.Path, model: SpectrogramModel, config: SpectrogramConfig, card: dict, dtype: str = "float32"
) -> None:
    """Writes `model` into `folder`; `card` is any JSON about where it comes from. `dtype` float16 halves the file."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = flatten(nnx.state(model, (nnx.Param, Buffer)))
    save_arrays(folder / WEIGHTS_NAME, {name: array.astype(dtype) for name, array in arrays.items()})
    description = {"format_version": FORMAT_VERSION, "config": to_dict(config), "card": card}
    with replacing(folder / CONFIG_NAME) as temporary:
        temporary.write_text(json.dumps(description, indent=2) + "\n")


def load_spectrogram_model(folder: pathlib.Path) -> tuple[SpectrogramModel, SpectrogramConfig]:
    """Reads what `save_spectrogram_model` wrote, without initialising parameters first.

    Raises:
      InputError: files are missing, from another version, or do not fit each other.
    """
    folder = pathlib.Path(folder)
    try:
        description = json.loads((folder / CONFIG_NAME).read_text())
        version, values = description["format_version"], description["config"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder} is not a spectrodiff checkpoint: {CONFIG_NAME} is missing or damaged") from error
    if version != FORMAT_VERSION:
        raise InputError(
            f"{folder} has format version {version}, this spectrodiff reads {FORMAT_VERSION}: upgrade spectrodiff"
        )
    config = from_dict(SpectrogramConfig, values, str(folder / CONFIG_NAME))
    abstract = nnx.eval_shape(lambda: SpectrogramModel(config, rngs=nnx.Rngs(0)))
    graph, state, rest = nnx.split(abstract, (nnx.Param, Buffer), ...)
    path = folder / WEIGHTS_NAME
    return nnx.merge(graph, unflatten_into(state, load_arrays(path), str(path)), rest), config
