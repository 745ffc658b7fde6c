"""T5X checkpoints, the format of the published weights: a msgpack file, and zarr folders of large arrays."""

import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import flax.serialization
import msgpack
import numpy as np

from spectrodiff.config import MAX_SIZE, from_dict, is_fraction, is_whole
from spectrodiff.errors import InputError
from spectrodiff.models.spectrogram_model import SpectrogramConfig
from spectrodiff.notes.vocabulary import Vocabulary
from spectrodiff.pretrained.arrays import LazyArrays, Renamed, Spec
from spectrodiff.pretrained.gin_file import read_bindings
from spectrodiff.pretrained.names import names

_INDEX = "checkpoint"
_STEP = re.compile(r"checkpoint_(\d+)")
_HEAD_DIM = 64  # of all published sizes; shapes have only its product with the number of heads
_PUBLISHED = ((512, 384), (768, 768), (1024, 1024))  # width, and number of heads times head_dim
_VELOCITY_BINS = (1, 127)  # of the released code's configs
# What is raised when a damaged file, or another kind of file, is read.
_DAMAGE = (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError, msgpack.UnpackException)


def find(folder: pathlib.Path) -> pathlib.Path | None:
    """Returns `folder` if it is a checkpoint, or else the one with the most steps in it, or None."""
    if (folder / _INDEX).is_file():
        return folder
    found = [path for path in folder.glob("checkpoint_*") if _STEP.fullmatch(path.name) and (path / _INDEX).is_file()]
    return max(found, key=lambda path: int(_STEP.fullmatch(path.name)[1]), default=None)


def read(folder: pathlib.Path) -> tuple[SpectrogramConfig, Mapping[str, np.ndarray], dict]:
    """Returns the config, the arrays by our names, and the card (with `steps`) of the checkpoint in `folder`.

    Sizes and velocity bins are read from `config.gin` in the parent folder; missing ones are inferred from shapes.

    Raises:
      InputError: a file is missing or damaged, parameters are missing or unknown, or the network is another one.
    """
    arrays = T5XArrays(folder)
    config = _config(arrays, folder.resolve().parent / "config.gin", str(folder))
    table = {name.ours: name.t5x for name in names(config.model)}
    card = {} if arrays.step is None else {"steps": arrays.step}
    return config, Renamed(arrays, table, str(folder)), card


def _config(arrays: "T5XArrays", gin: pathlib.Path, where: str) -> SpectrogramConfig:
    """Returns the paper's config with the sizes in the file `gin`, if it exists, or those of the arrays."""
    bindings = read_bindings(gin) if gin.is_file() else {}
    with_context = any(name.startswith("continuous_encoder.") for name in arrays)
    notes = "token_encoder" if with_context else "encoder"

    def size(name, inferred):
        value = bindings.get(name, inferred)
        if name in bindings and not is_whole(value):
            raise InputError(f"{gin} has {name} = {value!r}, which is not a whole number from 1 to {MAX_SIZE}")
        return value

    def shape(name):
        if name not in arrays:
            raise InputError(f"{where} lacks parameter {name}")
        if len(found := arrays.spec(name).shape) != 2:
            raise InputError(f"{where}: parameter {name} has shape {found}, expected two sizes")
        return found

    def layers(stack):
        found = [int(match[1]) for name in arrays if (match := re.match(rf"{stack}\.layers_(\d+)\.", name))]
        return 1 + max(found, default=-1)

    if not is_fraction(dropout := bindings.get("T5Config.dropout_rate", 0.1)):
        raise InputError(f"{gin} has T5Config.dropout_rate = {dropout!r}, which is not a number from 0 to below 1")
    if (positions := bindings.get("T5Config.context_positions", "terminal_relative")) != "terminal_relative":
        raise InputError(f"{gin} has T5Config.context_positions = {positions!r}; there is only 'terminal_relative'")
    rows, width = shape(f"{notes}.token_embedder.embedding")
    max_tokens, _ = shape(f"{notes}.Embed_0.embedding")
    _, inner = shape("decoder.layers_0.self_attention.query.kernel")
    _, mlp_width = shape("decoder.layers_0.mlp.wi_0.kernel")
    if (width, inner) not in _PUBLISHED and "T5Config.head_dim" not in bindings:
        raise InputError(
            f"{where} is {width} wide and its heads {inner} together, which is no published size: put its config.gin "
            "beside it, with T5Config.head_dim"
        )
    head_dim = size("T5Config.head_dim", _HEAD_DIM)
    bins = next((n for n in _VELOCITY_BINS if Vocabulary(n).rows == rows), 0)
    if not (bins := size("VocabularyConfig.num_velocity_bins", bins)):
        raise InputError(
            f"{where} has {rows} token embeddings, which no known vocabulary has; put its config.gin beside it"
        )
    model = {
        "width": size("T5Config.emb_dim", width),
        "heads": size("T5Config.num_heads", inner // head_dim),
        "head_dim": head_dim,
        "mlp_width": size("T5Config.mlp_dim", mlp_width),
        "note_layers": size("T5Config.num_encoder_layers", layers(notes)),
        "context_layers": size("T5Config.num_encoder_layers", layers("continuous_encoder")) if with_context else 0,
        "decoder_layers": size("T5Config.num_decoder_layers", layers("decoder")),
        "dropout": dropout,
        "vocabulary_rows": rows,
        "max_tokens": max_tokens,
        "with_context": with_context,
    }
    tokenizer = {"velocity_bins": bins, "program_map": "slakh", "max_tokens": max_tokens}
    return from_dict(SpectrogramConfig, {"tokenizer": tokenizer, "model": model}, where)


class _Span(NamedTuple):
    """The position of an array in a msgpack file."""

    start: int
    end: int


class T5XArrays(LazyArrays):
    """The parameters of a T5X checkpoint by their dotted paths under `target`, read lazily.

    Attributes:
      step: the number of training steps, if stored.

    Raises:
      InputError: the checkpoint's file is damaged or of another kind.
    """

    def __init__(self, folder: pathlib.Path):
        self._folder, self._index = folder, folder / _INDEX
        try:
            optimizer = _outline(self._index)["optimizer"]
            self._leaves = dict(_leaves(optimizer["target"]))
            step = optimizer.get("state", {}).get("step")
        except _DAMAGE as error:
            raise InputError(f"cannot read {self._index}: it is damaged or not of T5X ({error!r})") from error
        super().__init__(self._leaves)
        self.step = None if step is None else self._step(step)

    def __getitem__(self, name: str) -> np.ndarray:
        return self._read(name, self._leaves[name], _all)

    def spec(self, name: str) -> Spec:
        """Returns the shape and type of an array; one in the msgpack file is read for that."""
        return self._read(name, self._leaves[name], _spec)

    def _step(self, leaf) -> int:
        if self._read("step", leaf, _spec).shape != ():
            raise InputError(f"{self._index} has a step that is not one number")
        step = self._read("step", leaf, _all).tolist()
        if not is_whole(step, 0, 2**63):
            raise InputError(f"{self._index} has the step {step!r}; expected a whole number")
        return step

    def _read(self, name, leaf, convert) -> Any:
        """Returns `convert` of an array or of its tensorstore."""
        where = self._index
        try:
            if isinstance(leaf, dict):
                # The path is relative to the checkpoint; specs that were written to a bucket have it one level up.
                path = leaf["kvstore"].get("path") or leaf["path"]
                where = self._folder / pathlib.PurePosixPath(path).name
                return convert(_open_zarr(where))
            if isinstance(leaf, _Span):
                with open(self._index, "rb") as file:
                    file.seek(leaf.start)
                    leaf = flax.serialization.msgpack_restore(file.read(leaf.end - leaf.start))
            return convert(np.asarray(leaf))
        except _DAMAGE as error:
            said = str(error).partition(" [tensorstore_spec=")[0]
            raise InputError(f"cannot read parameter {name} from {where}: {said}") from error


def _outline(path: pathlib.Path) -> dict:
    """Returns the nested dicts of a msgpack file written by flax, with spans in place of arrays."""
    with open(path, "rb") as file, open(path, "rb") as peeked:
        unpacker = msgpack.Unpacker(file, max_buffer_size=2**31 - 1)  # msgpack's own limit of one object

        def value():
            start = unpacker.tell()
            peeked.seek(start)
            (kind,) = peeked.read(1) or b"\xc1"  # at the end of the file, a byte that is not a type
            if kind & 0xF0 == 0x80 or kind in (0xDE, 0xDF):
                entries = {unpacker.unpack(): value() for _ in range(unpacker.read_map_header())}
                return _Span(start, unpacker.tell()) if "__msgpack_chunked_array__" in entries else entries
            if 0xC7 <= kind <= 0xC9 or 0xD4 <= kind <= 0xD8:  # extension types: flax's arrays
                unpacker.skip()
                return _Span(start, unpacker.tell())
            return unpacker.unpack()

        return value()


def _leaves(tree: dict, *path: str) -> Iterator[tuple[str, object]]:
    """Yields dotted paths and leaves; a tensorstore spec is a leaf."""
    for key, value in tree.items():
        if isinstance(value, dict) and "kvstore" not in value:
            yield from _leaves(value, *path, key)
        else:
            yield ".".join((*path, key)), value


def _all(stored: Any) -> np.ndarray:
    return stored if isinstance(stored, np.ndarray) else stored.read().result()


def _spec(stored: Any) -> Spec:
    return Spec(tuple(stored.shape), np.dtype(getattr(stored.dtype, "numpy_dtype", stored.dtype)).name)


def _open_zarr(folder: pathlib.Path) -> Any:
    """Opens the tensorstore of a zarr folder, which reads only metadata."""
    import tensorstore  # takes half a second

    spec = {
        "driver": "zarr",
        "kvstore": {"driver": "file", "path": str(folder.absolute())},
        "fill_missing_data_reads": False,  # missing chunks are errors, not zeros
    }
    store = tensorstore.open(spec, read=True, open=True).result()
    chunk = store.chunk_layout.read_chunk.shape
    if any(size > max(whole, 1) for size, whole in zip(chunk, store.shape, strict=True)):
        raise ValueError(f"an array of shape {store.shape} has no chunks of {chunk}")
    return store
