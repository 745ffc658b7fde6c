"""A dry run of training: compiles the step for the devices of this process, without data, and reports what it needs."""

import dataclasses
import functools
import math
import os
import re
import time
from collections.abc import Sequence
from typing import Any

import jax
import optax
from flax import nnx
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from spectrodiff.errors import InputError, reason
from spectrodiff.training import state as states
from spectrodiff.training.adaptation import Adaptation, everything
from spectrodiff.training.flops import step_flops
from spectrodiff.training.sharding import check_batch, make_mesh, shardings
from spectrodiff.training.steps import make_train_step

_GIB = 2**30
_LARGEST = 8  # the number of arrays that are listed
# Lines of an HLO program: the head of a computation, an operation that makes an array, and the name of its operation.
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?(\S+) .*\{$")
_ARRAY = re.compile(r"^\s+(?:ROOT )?%?\S+ = (\w+)\[([\d,]+)\]\S* (?!parameter|get-tuple-element|bitcast)")
_OPERATION = re.compile(r'op_name="([^"]*)"')
_LIBTPU = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # processes may compile at the same time
    # Otherwise libtpu looks for a TPU and its hosts, and prints at length that there are none.
    "TPU_ACCELERATOR_TYPE": "v5p-8",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


@dataclasses.dataclass(frozen=True)
class DryRun:
    """What a compiled training step needs. Sizes are in bytes on each device."""

    devices: int
    batch: int
    parameters: int
    flops: int | None  # of a step, on all devices together
    seconds: float  # of compilation
    state: int  # parameters, their average and the optimiser's state
    arguments: int  # state and batch
    temporaries: int  # XLA's working memory: activations, gradients and gathered parameters
    largest: list[tuple[int, str, str]]  # arrays of the program: size, shape and operation

    def __str__(self) -> str:
        flops = "unknown" if self.flops is None else f"{self.flops / 1e12:.2f} TFLOP"
        lines = [
            f"{self.parameters / 1e6:.1f} M trained parameters, {self.batch} examples a step on {self.devices} devices",
            f"a step: {flops} on all devices together; compiled in {self.seconds:.0f} s",
            f"memory of each device: {(self.arguments + self.temporaries) / _GIB:.2f} GiB, of which state "
            f"{self.state / _GIB:.2f}, batch {(self.arguments - self.state) / _GIB:.2f}, "
            f"temporaries {self.temporaries / _GIB:.2f}",
            "largest arrays on each device:",
            *(f"  {size / _GIB:7.3f} GiB  {shape}  {name}" for size, shape, name in self.largest),
        ]
        return "\n".join(lines)


def tpu_devices(topology: str) -> list[jax.Device]:
    """Returns the devices of a slice of TPUs, such as "v5p:2x2x2", for which programs can be compiled without it.

    Raises:
      InputError: libtpu, which has the compiler, is not installed, or it does not know such a slice.
    """
    for name, value in _LIBTPU.items():
        os.environ.setdefault(name, value)
    try:
        return topologies.get_topology_desc(topology, platform="tpu").devices
    except RuntimeError as error:
        message = reason(error)
        if "not installed" in message:
            message = "its compiler is in the package libtpu: pip install 'jax[tpu]'"
        raise InputError(f"cannot compile for the TPU slice {topology!r}: {message}") from error


def dry_run(
    *,
    task: Any,
    optimizer: optax.GradientTransformation,
    devices: Sequence[jax.Device] | None = None,
    accumulate: int = 1,
    model_parallel: int = 1,
    adaptation: Adaptation | None = None,
    **_: Any,
) -> DryRun:
    """Compiles the training step of `task` for `devices`, by default all of this process; nothing is computed.

    The other arguments are those of `training.loop.train`, of which some are ignored. The memory is what XLA's buffer
    assignment for these devices reports: for virtual CPU devices, that of an accelerator can differ, since XLA fuses
    and schedules differently there. `spectrodiff train --dry_run` asks XLA for an order of operations that saves
    memory.

    Raises:
      InputError: the task's batches are only known when data is read, the batch cannot be divided over the devices, or
        the step takes more memory than they have.
    """
    if not hasattr(task, "batch_shapes"):
        raise InputError(f"a dry run is for spectrogram models; {type(task).__name__} has no fixed batch")
    adaptation = everything() if adaptation is None else adaptation
    mesh, batch = make_mesh(model_parallel, devices), task.batch_shapes()
    size = len(batch["tokens"])
    check_batch(size, mesh, accumulate)

    graph, *parts = nnx.eval_shape(lambda: adaptation.split(task.build(nnx.Rngs(0)), nnx.Rngs(0)))
    state = jax.eval_shape(functools.partial(states.create, optimizer=optimizer), *parts)
    layout = shardings(state, mesh)

    def placed(tree, where):
        return jax.tree.map(lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), tree, where)

    def merge(params, frozen):
        return adaptation.merge(graph, params, frozen)

    frozen_modules = task.frozen_modules()

    state = placed(state, layout)
    batch = placed(batch, jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec("data")), batch))
    step = make_train_step(
        merge,
        task.loss,
        optimizer,
        jax.random.key(0),
        accumulate=accumulate,
        shardings=layout,
        frozen_modules=frozen_modules,
    )
    start = time.perf_counter()
    try:
        compiled = step.lower(state, batch).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise InputError(f"the step does not fit its devices: {reason(error)}") from error
    seconds = time.perf_counter() - start
    memory = compiled.memory_analysis()
    return DryRun(
        devices=mesh.size,
        batch=size,
        parameters=sum(math.prod(x.shape) for x in jax.tree.leaves(state.params)),
        flops=None if frozen_modules else step_flops(step.loss, state, batch),
        seconds=seconds,
        state=sum(_shard_bytes(x) for x in jax.tree.leaves(state)),
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        largest=largest_arrays(compiled.as_text(), _LARGEST),
    )


def _shard_bytes(x: jax.ShapeDtypeStruct) -> int:
    return math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize


def largest_arrays(program: str, count: int) -> list[tuple[int, str, str]]:
    """Returns size in bytes, shape and operation of the `count` largest arrays of an optimised HLO program.

    Arrays within fusions are left out, since they are not stored. Of several with equal shape and operation, one is
    listed.
    """
    found, stored = set(), True
    for line in program.splitlines():
        if named := _COMPUTATION.match(line):
            stored = "fused" not in named[1]
        elif stored and (array := _ARRAY.match(line)):
            shape = [int(n) for n in array[2].split(",")]
            operation = _OPERATION.search(line)
            name = operation[1].split("/", 1)[-1] if operation else ""
            found.add((math.prod(shape) * _itemsize(array[1]), f"{array[1]}[{array[2]}]", name))
    return sorted(found, reverse=True)[:count]


def _itemsize(dtype: str) -> int:
    """Returns the bytes of an element of an HLO type, such as f32, bf16, u8 or pred."""
    bits = re.search(r"\d+", dtype)
    return max(1, int(bits[0]) // 8) if bits else 1
