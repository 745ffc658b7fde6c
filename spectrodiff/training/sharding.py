"""Where arrays lie: a mesh of all devices, rules that shard parameters by name, batches shared out among processes."""

import functools
import re

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from spectrodiff.errors import InputError

# The first rule whose pattern is found in a leaf's dotted path says which mesh axis shards which dimension. `model`
# splits what one matrix widens and the next narrows again, so that a block needs one sum over devices for attention and
# one for the MLP (Shoeybi et al. 2019); `data` splits what is left, as FSDP does (Zhao et al. 2023).
RULES = (
    (r"\b(query|key|value|wi_0|wi_1)\.kernel\b", ("data", "model")),
    (r"\b(out|wo)\.kernel\b", ("model", "data")),
    (r"\bembed", (None, "data")),
    (r"\bkernel\b", ("data", None)),
)


def make_mesh(model: int = 1) -> Mesh:
    """All devices of all processes as `data` x `model`, `model` of them sharing each example.

    Raises:
      InputError: a process's devices do not divide into groups of `model`.
    """
    local = jax.local_device_count()
    if model < 1 or local % model:
        raise InputError(f"train.model_parallel is {model}; choose a divisor of {local}, the devices of a process")
    # Not jax.make_mesh: it refuses devices of several hosts that no interconnect joins, and may let a group span hosts.
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(devices).reshape(-1, model), ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def partition_spec(path: str, shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """How the leaf at the dotted `path` is sharded: by `RULES`, but never a dimension that does not divide evenly.

    Moments of an optimiser lie under their parameter's name and follow its rule; what has other dimensions than the
    rule, such as Adafactor's row and column averages, is small and kept whole everywhere.
    """
    axes = next((axes for pattern, axes in RULES if re.search(pattern, path)), ())
    if len(axes) != len(shape):
        return PartitionSpec()
    return PartitionSpec(*(
        axis if axis is not None and size % mesh.shape[axis] == 0 else None
        for axis, size in zip(axes, shape, strict=True)
    ))  # fmt: skip


def replicated_over_data(sharding: NamedSharding) -> NamedSharding:
    """The same, but whole along `data`."""
    return NamedSharding(sharding.mesh, PartitionSpec(*(None if axis == "data" else axis for axis in sharding.spec)))


def shardings(tree, mesh: Mesh):
    """The sharding of every leaf of a state, abstract or real."""

    def sharding(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        return NamedSharding(mesh, partition_spec(name, leaf.shape, mesh))

    return jax.tree_util.tree_map_with_path(sharding, tree)


def distribute(tree, layout):
    """Arrays that every process has whole, laid out as `layout` says."""

    def put(array, sharding):
        if sharding.is_fully_addressable:
            return jax.device_put(array, sharding)
        whole = np.asarray(array)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: whole[index])

    return jax.tree.map(put, tree, layout)


def check_batch(size: int, mesh: Mesh | AbstractMesh, accumulate: int) -> None:
    """Raises InputError for a batch of `size` examples that cannot be shared out in `accumulate` parts."""
    if accumulate < 1:
        raise InputError(f"train.accumulate is {accumulate}; choose 1 or more")
    shares = mesh.shape["data"] * accumulate
    if size % shares:
        parts = f", in {accumulate} parts" if accumulate > 1 else ""
        raise InputError(
            f"a batch has {size} examples; choose a multiple of {shares}: {mesh.shape['data']} shares of devices{parts}"
        )


def shard_batch(batch: dict[str, np.ndarray | jax.Array], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's part of a batch as its part of global arrays, sharded over `data`."""
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    if all(isinstance(array, jax.Array) for array in batch.values()):  # on a device already, and of one process
        return jax.device_put(batch, sharding)
    return {name: jax.make_array_from_process_local_data(sharding, array) for name, array in batch.items()}


def replicated(tree, mesh: Mesh):
    """A state whole on this process's first device, for evaluation and export, which know of one device only."""
    if mesh.size == 1:
        return tree
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), _replicator(mesh)(tree))


@functools.cache
def _replicator(mesh: Mesh):
    return jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, PartitionSpec()))
