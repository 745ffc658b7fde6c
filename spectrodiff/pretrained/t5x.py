"""Checkpoints of T5X, as the paper's authors published theirs: a msgpack file, large arrays in zarr folders by it."""

import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import flax.serialization
import msgpack
import numpy as np

from spectrodiff.config import ModelConfig, SpectrogramConfig, TokenizerConfig
from spectrodiff.errors import InputError
from spectrodiff.notes.vocabulary import Vocabulary
from spectrodiff.pretrained.arrays import LazyArrays, Renamed
from spectrodiff.pretrained.names import names

_INDEX = "checkpoint"
_STEP = re.compile(r"checkpoint_(\d+)")
_HEAD_DIM = 64  # of every published size; shapes tell only heads times this
_VELOCITY_BINS = (1, 127)  # those the released code was made for
# What reading a damaged file, or one of something else, ends in.
_DAMAGE = (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError, msgpack.UnpackException)


def find(folder: pathlib.Path) -> pathlib.Path | None:
    """The checkpoint that `folder` is, or else the one of the most steps in it; None where there is none."""
    if (folder / _INDEX).is_file():
        return folder
    found = [path for path in folder.glob("checkpoint_*") if _STEP.fullmatch(path.name) and (path / _INDEX).is_file()]
    return max(found, key=lambda path: int(_STEP.fullmatch(path.name)[1]), default=None)


def read(folder: pathlib.Path) -> tuple[SpectrogramConfig, Mapping[str, np.ndarray], dict]:
    """Config, arrays by our names, and card (its `steps`) of the checkpoint in `folder`.

    Sizes and velocity bins are those of the `config.gin` beside the folder; what it does not say follows from shapes.

    Raises:
      InputError: a file is missing or damaged, parameters are missing or too many, or it is another network than ours.
    """
    arrays = T5XArrays(folder)
    config = _config(arrays, folder.resolve().parent / "config.gin", str(folder))
    table = {name.ours: name.t5x for name in names(config.model)}
    card = {} if arrays.step is None else {"steps": arrays.step}
    return config, Renamed(arrays, table, str(folder)), card


def _config(arrays: "T5XArrays", gin: pathlib.Path, where: str) -> SpectrogramConfig:
    """The paper's config with the sizes that `gin` gives, where it is a file, or else those of the arrays."""
    bindings = _bindings(gin)
    with_context = any(name.startswith("continuous_encoder.") for name in arrays)
    notes = "token_encoder" if with_context else "encoder"

    def size(name, inferred):
        text = bindings.get(name, str(inferred))
        if name in bindings and not re.fullmatch("0*[1-9][0-9]*", text):
            raise InputError(f"{gin} has {name} = {text}, which is not a whole number above 0")
        return int(text)

    def shape(name):
        if name not in arrays:
            raise InputError(f"{where} lacks parameter {name}")
        if (matrix := arrays[name]).ndim != 2:
            raise InputError(f"{where}: parameter {name} has shape {matrix.shape}, expected two sizes")
        return matrix.shape

    def layers(stack):
        found = [int(match[1]) for name in arrays if (match := re.match(rf"{stack}\.layers_(\d+)\.", name))]
        return 1 + max(found, default=-1)

    try:
        dropout = float(bindings.get("dropout_rate", "0.1"))
    except ValueError as error:
        raise InputError(f"{gin} has dropout_rate = {bindings['dropout_rate']}, which is not a number") from error
    if (positions := bindings.get("context_positions", "'terminal_relative'")) != "'terminal_relative'":
        raise InputError(f"{gin} has context_positions = {positions}; this network has only 'terminal_relative'")
    rows, width = shape(f"{notes}.token_embedder.embedding")
    max_tokens, _ = shape(f"{notes}.Embed_0.embedding")
    _, inner = shape("decoder.layers_0.self_attention.query.kernel")
    _, mlp_width = shape("decoder.layers_0.mlp.wi_0.kernel")
    head_dim = size("head_dim", _HEAD_DIM)
    model = ModelConfig(
        width=size("emb_dim", width),
        heads=size("num_heads", inner // head_dim),
        head_dim=head_dim,
        mlp_width=size("mlp_dim", mlp_width),
        note_layers=size("num_encoder_layers", layers(notes)),
        context_layers=size("num_encoder_layers", layers("continuous_encoder")),
        decoder_layers=size("num_decoder_layers", layers("decoder")),
        dropout=dropout,
        vocabulary_rows=rows,
        max_tokens=max_tokens,
        with_context=with_context,
    )
    bins = size("num_velocity_bins", next((n for n in _VELOCITY_BINS if Vocabulary(n).rows == rows), 0))
    if not bins:
        raise InputError(f"{where} has {rows} token embeddings, as no known vocabulary; lay its config.gin beside it")
    return SpectrogramConfig(TokenizerConfig(bins, "slakh", max_tokens), model)


def _bindings(gin: pathlib.Path) -> dict[str, str]:
    """Values of a gin file's bindings by their last name, macros resolved. The text is only searched, never run."""
    if not gin.is_file():
        return {}
    try:
        text = gin.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {gin}: {error}") from error
    bindings = dict(re.findall(r"^[ \t]*(?:[\w./]+\.)?(\w+)[ \t]*=[ \t]*([^\s#]+)", text, re.MULTILINE))
    return {name: bindings.get(value[1:], value) if value[0] == "%" else value for name, value in bindings.items()}


class _Span(NamedTuple):
    """Where in a msgpack file an array lies."""

    start: int
    end: int


class T5XArrays(LazyArrays):
    """The parameters of a T5X checkpoint by their dotted paths under `target`, each read when it is asked for.

    Attributes:
      step: how many steps they were trained for, where it is told.

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
        self.step = None if step is None else self._read("step", step).tolist()

    def __getitem__(self, name: str) -> np.ndarray:
        return self._read(name, self._leaves[name])

    def _read(self, name, leaf) -> np.ndarray:
        where = self._index
        try:
            if isinstance(leaf, dict):
                # The path is relative to the checkpoint, and one level up in a spec that was written to a bucket.
                path = leaf["kvstore"].get("path") or leaf["path"]
                where = self._folder / pathlib.PurePosixPath(path).name
                array = _read_zarr(where)
            elif isinstance(leaf, _Span):
                with open(self._index, "rb") as file:
                    file.seek(leaf.start)
                    array = flax.serialization.msgpack_restore(file.read(leaf.end - leaf.start))
            else:
                array = leaf
            return np.asarray(array)
        except _DAMAGE as error:
            reason = str(error).partition(" [tensorstore_spec=")[0]
            raise InputError(f"cannot read parameter {name} from {where}: {reason}") from error


def _outline(path: pathlib.Path) -> dict:
    """The nested dicts of a msgpack file that flax wrote, with spans in place of arrays."""
    with open(path, "rb") as file, open(path, "rb") as peeked:
        unpacker = msgpack.Unpacker(file, max_buffer_size=2**31 - 1)  # msgpack's own limit of one object

        def value():
            start = unpacker.tell()
            peeked.seek(start)
            (kind,) = peeked.read(1) or b"\xc1"  # at the end of the file, a byte that is no type
            if kind & 0xF0 == 0x80 or kind in (0xDE, 0xDF):
                entries = {unpacker.unpack(): value() for _ in range(unpacker.read_map_header())}
                return _Span(start, unpacker.tell()) if "__msgpack_chunked_array__" in entries else entries
            if 0xC7 <= kind <= 0xC9 or 0xD4 <= kind <= 0xD8:  # extension types: flax's arrays
                unpacker.skip()
                return _Span(start, unpacker.tell())
            return unpacker.unpack()

        return value()


def _leaves(tree: dict, *path: str) -> Iterator[tuple[str, object]]:
    """Dotted paths and leaves; a tensorstore spec is a leaf."""
    for key, value in tree.items():
        if isinstance(value, dict) and "kvstore" not in value:
            yield from _leaves(value, *path, key)
        else:
            yield ".".join((*path, key)), value


def _read_zarr(folder: pathlib.Path) -> np.ndarray:
    import tensorstore  # half a second

    spec = {
        "driver": "zarr",
        "kvstore": {"driver": "file", "path": str(folder.absolute())},
        "fill_missing_data_reads": False,  # a chunk that did not come along is an error, not zeros
    }
    return tensorstore.open(spec, read=True, open=True).result().read().result()
