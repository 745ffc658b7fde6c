import importlib.util
import subprocess
import sys

import gin
import jax
import pytest
from flax import nnx
from jax.experimental import topologies

from spectrodiff.errors import InputError
from spectrodiff.training import state as states
from spectrodiff.training.dry_run import dry_run, largest_arrays, tpu_devices
from spectrodiff.training.gin_config import read_config

PROGRAM = """
%fused_computation (p: f32[512,512]) -> f32[512,512] {
  %p = f32[512,512]{1,0} parameter(0)
  ROOT %m = f32[512,512]{1,0} multiply(%p, %p)
}
ENTRY %main (x: f32[1000,1000]) -> bf16[8,4] {
  %x = f32[1000,1000]{1,0} parameter(0)
  %a = bf16[100,100]{1,0} dot(%x, %x), metadata={op_name="jit(step)/attention/dot_general"}
  %b = bf16[100,100]{1,0} dot(%x, %x), metadata={op_name="jit(step)/attention/dot_general"}
  %c = (f32[7,7]{1,0}) tuple(%a)
  ROOT %d = f32[8,4]{1,0} fusion(%a), kind=kLoop, calls=%fused_computation
}
"""


def test_largest_arrays_lists_stored_outputs_only():
    assert largest_arrays(PROGRAM, 5) == [
        (20000, "bf16[100,100]", "attention/dot_general"),
        (128, "f32[8,4]", ""),
    ]
    assert len(largest_arrays(PROGRAM, 1)) == 1


@pytest.fixture(scope="module")
def train_arguments():
    read_config(["configs/tiny.gin"], [])
    yield gin.get_bindings("train")
    gin.clear_config()


def test_reported_sizes_equal_those_of_real_arrays(train_arguments):
    found = dry_run(**train_arguments)
    task = train_arguments["task"]
    state = states.create(*states.split(task.build(nnx.Rngs(0)))[1:], train_arguments["optimizer"])
    arrays = jax.tree.leaves(state)
    assert found.parameters == sum(x.size for x in jax.tree.leaves(state.params))
    assert found.state == sum(x.nbytes for x in arrays)
    batch = sum(x.size * x.dtype.itemsize for x in task.batch_shapes().values())
    assert 0 <= found.arguments - found.state - batch <= 64 * len(arrays)  # padding, as XLA aligns each array
    activations = 4 * task.batch_size * 256 * task.config.model.mlp_width
    assert found.temporaries > activations
    assert found.largest[0][0] >= found.largest[-1][0] > 0
    assert f"{found.batch} examples" in str(found)


def test_tasks_without_a_fixed_batch_raise_input_error(train_arguments):
    with pytest.raises(InputError, match="RefinerTask"):
        dry_run(**{**train_arguments, "task": type("RefinerTask", (), {})()})


def test_indivisible_batch_raises_input_error(train_arguments):
    with pytest.raises(InputError, match=r"\b4 examples\b.* 3 parts$"):
        dry_run(**train_arguments, accumulate=3)


def test_missing_tpu_compiler_raises_input_error(monkeypatch):
    def without_libtpu(topology, platform):
        raise RuntimeError("JAX TPU support not installed; cannot generate TPU topology.")

    monkeypatch.setattr(topologies, "get_topology_desc", without_libtpu)
    with pytest.raises(InputError, match=r"v5p:2x2x2.*pip install 'jax\[tpu\]'"):
        tpu_devices("v5p:2x2x2")


@pytest.mark.trial
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
@pytest.mark.parametrize(("topology", "said"), [("v5e:2x4", "on 8 devices"), ("v0:1", "'v0:1'")])
def test_dry_run_compiles_for_tpus_that_are_not_there(topology, said):
    flags = ["train", "--gin_file", "tiny.gin", "--gin_param", "SpectrogramTask.batch_size = 8", "--dry_run"]
    done = subprocess.run(
        [sys.executable, "-m", "spectrodiff", *flags, "--tpu", topology], capture_output=True, text=True, timeout=600
    )
    assert said in done.stdout + done.stderr
    assert done.returncode == (0 if "devices" in said else 2)


@pytest.mark.trial
def test_dry_run_needs_no_workdir_and_uses_virtual_devices():
    """It runs in a process of its own, as JAX fixes the number of devices when it starts."""
    flags = ["train", "--gin_file", "tiny.gin", "--gin_param", "SpectrogramTask.batch_size = 4", "--dry_run"]
    done = subprocess.run(
        [sys.executable, "-m", "spectrodiff", *flags, "--devices", "2"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "4 examples a step on 2 devices" in done.stdout
