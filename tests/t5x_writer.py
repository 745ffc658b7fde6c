"""Writes checkpoints in T5X's format (version 3), by tensorstore and flax, without T5X."""

import pathlib
from collections.abc import Callable, Mapping

import flax.serialization
import numpy as np
import tensorstore


def write_t5x(
    folder: pathlib.Path,
    parameters: Mapping[str, np.ndarray],
    step: int = 500_000,
    *,
    inline: Callable[[str, np.ndarray], bool] = lambda name, array: array.ndim < 2,
    bucket: bool = False,
) -> None:
    """Writes `parameters`, by dotted path under `target`, into `folder`.

    T5X keeps what is not partitioned in the msgpack file, by default the norms' scales, and has a zarr array for each
    of the rest. `inline` chooses the former. With `bucket` the specs are those of a checkpoint that was written to a
    bucket. The optimizer's state, of which readers want nothing but the step, is a stump.
    """
    folder.mkdir(parents=True)
    target: dict = {}
    for name, array in parameters.items():
        *parents, last = name.split(".")
        node = target
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = array if inline(name, array) else _write_zarr(folder, f"target.{name}", array, bucket)
    moments = {"decoder": {"decoder_norm": {"scale": {"m": np.zeros(0, np.float32), "v": np.ones(8, np.float32)}}}}
    state = {"step": np.int32(step), "param_states": moments}
    contents = {"version": 3, "optimizer": {"target": target, "state": state}}
    (folder / "checkpoint").write_bytes(flax.serialization.msgpack_serialize(contents))


def _write_zarr(folder: pathlib.Path, name: str, array: np.ndarray, bucket: bool) -> dict:
    """Writes an array in two by two chunks, as if partitioned over so many devices, and returns its spec."""
    metadata = {
        "shape": list(array.shape),
        "chunks": [-(-size // 2) for size in array.shape],
        "compressor": {"id": "gzip", "level": 1},
    }
    spec = {"driver": "zarr", "dtype": array.dtype.name, "metadata": metadata}
    store = {**spec, "kvstore": {"driver": "file", "path": str(folder.absolute() / name)}}
    tensorstore.open(store, create=True, open=True).result().write(array).result()
    if bucket:
        return {**spec, "kvstore": {"driver": "gcs", "bucket": "t5x-dummy-bucket"}, "path": name}
    return {**spec, "kvstore": {"driver": "file", "path": name}}
