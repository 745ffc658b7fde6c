"""Sharding of the training state and of batches over a mesh of all devices."""

import functools
import re
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from spectrodiff.errors import InputError

# The mesh axis that shards each dimension of a leaf, by the first pattern that is found in its dotted path. `model` is
# tensor parallelism (Shoeybi et al. 2019): it shards heads and hidden units, so that a block needs one all-reduce for
# attention and one for the MLP. `data` shards the other dimension, as FSDP does (Zhao et al. 2023).
RULES = (
    (r"\b(query|key|value|wi_0|wi_1)\.kernel\b", ("data", "model")),
    (r"\b(out|wo)\.kernel\b", ("model", "data")),
    (r"\bembed", (None, "data")),
    (r"\bkernel\b", ("data", None)),
)


def make_mesh(model: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns a mesh of `devices` with the axes `data` and `model`; the latter has size `model`.

    The default is all devices of all processes.

    Raises:
      InputError: `model` does not divide the number of devices of a process.
    """
    devices = jax.devices() if devices is None else devices
    local = sum(device.process_index == devices[0].process_index for device in devices)
    if model < 1 or local % model:
        raise InputError(f"train.model_parallel is {model}; choose a divisor of {local}, the devices of a process")
    # Not jax.make_mesh, which rejects hosts without an interconnect and may place a `model` group on several hosts.
    devices = sorted(devices, key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(devices).reshape(-1, model), ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def partition_spec(path: str, shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """Returns the partition of the leaf at the dotted `path` by `RULES`.

    Dimensions that an axis does not divide evenly are not sharded. The moments of an optimiser have the names of their
    parameters and follow the same rules. A leaf with another number of dimensions than its rule, such as Adafactor's
    row and column statistics, is small and replicated.
    """
    axes = next((axes for pattern, axes in RULES if re.search(pattern, path)), ())
    if len(axes) != len(shape):
        return PartitionSpec()
    return PartitionSpec(*(
        axis if axis is not None and size % mesh.shape[axis] == 0 else None
        for axis, size in zip(axes, shape, strict=True)
    ))  # fmt: skip


def replicated_over_data(sharding: NamedSharding) -> NamedSharding:
    """Returns the sharding with the axis `data` removed, over which the array is then replicated."""
    return NamedSharding(sharding.mesh, PartitionSpec(*(None if axis == "data" else axis for axis in sharding.spec)))


def shardings(tree, mesh: Mesh):
    """Returns the sharding of every leaf of a state of arrays or jax.ShapeDtypeStructs."""

    def sharding(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        return NamedSharding(mesh, partition_spec(name, leaf.shape, mesh))

    return jax.tree_util.tree_map_with_path(sharding, tree)


def distribute(tree, layout):
    """Distributes arrays, which every process has in full, by the shardings `layout`."""

    def put(array, sharding):
        if sharding.is_fully_addressable:
            return jax.device_put(array, sharding)
        full = np.asarray(array)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: full[index])

    return jax.tree.map(put, tree, layout)


def check_batch(size: int, mesh: Mesh | AbstractMesh, accumulate: int) -> None:
    """Raises InputError if `size` examples cannot be divided into `accumulate` microbatches over the axis `data`."""
    if accumulate < 1:
        raise InputError(f"train.accumulate is {accumulate}; choose 1 or more")
    shares = mesh.shape["data"] * accumulate
    if size % shares:
        parts = f", in {accumulate} parts" if accumulate > 1 else ""
        raise InputError(
            f"a batch has {size} examples; choose a multiple of {shares}: {mesh.shape['data']} shares of devices{parts}"
        )


def shard_batch(batch: dict[str, np.ndarray | jax.Array], mesh: Mesh) -> dict[str, jax.Array]:
    """Returns global arrays that are sharded over `data`, given this process's part of a batch."""
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    if all(isinstance(array, jax.Array) for array in batch.values()):  # a resident corpus, in a run of one process
        return jax.device_put(batch, sharding)
    return {name: jax.make_array_from_process_local_data(sharding, array) for name, array in batch.items()}


def replicated(tree, mesh: Mesh):
    """Returns the arrays replicated, on this process's first device, for evaluation and export on one device."""
    if mesh.size == 1:
        return tree
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), _replicator(mesh)(tree))


@functools.cache
def _replicator(mesh: Mesh):
    return jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, PartitionSpec()))
