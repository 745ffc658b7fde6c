import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from line import BATCH, Line
from test_loop import fit

from spectrodiff.errors import InputError
from spectrodiff.models.layers import Positions, rms_norm
from spectrodiff.training import state as states
from spectrodiff.training.checkpoints import Checkpoints


class Small(nnx.Module):
    def __init__(self, width):
        self.norm = rms_norm(width, rngs=nnx.Rngs(0))
        self.positions = Positions(4, width, rngs=nnx.Rngs(0))


def make_state(width=4):
    _, params, buffers = states.split(Small(width))
    return states.create(params, buffers, optax.adam(1e-3))


def abstract(width=4):
    """Shapes, dtypes and sharding of the state to restore."""
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), make_state(width))


def state_at(step):
    return jax.tree.map(lambda x: x + jnp.asarray(0.1 * step).astype(x.dtype), make_state())._replace(
        step=jnp.int32(step)
    )


def test_new_workdir_has_no_checkpoint(tmp_path):
    checkpoints = Checkpoints(tmp_path / "runs" / "new", 2)
    assert checkpoints.newest is None
    checkpoints.close()


def test_newest_checkpoint_restores_exactly_and_old_ones_are_deleted(tmp_path):
    checkpoints = Checkpoints(tmp_path, 2)
    for step in (1, 2, 3, 3):  # saved twice, as at the end of a run
        checkpoints.save(step, state_at(step), {"examples": 10 * step, "seed": 7})
    checkpoints.close()
    again = Checkpoints(tmp_path, 2)
    assert sorted(again.manager.all_steps()) == [2, 3]
    assert again.newest == 3
    state, place = again.restore(abstract())
    assert place == {"examples": 30, "seed": 7}
    assert jax.tree.structure(state) == jax.tree.structure(state_at(3))
    for restored, saved in zip(jax.tree.leaves(state), jax.tree.leaves(state_at(3)), strict=True):
        assert restored.dtype == saved.dtype
        np.testing.assert_array_equal(restored, saved)
    again.close()


def test_keep_every_retains_milestones(tmp_path):
    checkpoints = Checkpoints(tmp_path, 1, keep_every=2)
    for step in range(1, 6):
        checkpoints.save(step, state_at(step), {})
    checkpoints.close()
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == [2, 4, 5]


def test_checkpoint_of_another_model_raises_input_error(tmp_path):
    checkpoints = Checkpoints(tmp_path, 2)
    checkpoints.save(1, state_at(1), {})
    checkpoints.manager.wait_until_finished()
    with pytest.raises(InputError, match=r"config.*--workdir"):
        checkpoints.restore(abstract(width=6))
    checkpoints.close()


def test_unwritable_workdir_raises_input_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"workdir .*/file/run: "):
        Checkpoints(tmp_path / "file" / "run", 2)


def test_url_as_workdir_creates_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"^s3://bucket/run "):
        Checkpoints(pathlib.Path("s3://bucket/run"), 2)
    assert os.listdir() == []


# ---- damaged checkpoints

WIDTH = 512  # arrays large enough to be stored outside the index of the OCDBT database


@pytest.fixture(scope="module")
def saved_run(tmp_path_factory):
    """A workdir with checkpoints of steps 1, 2 and 3."""
    workdir = tmp_path_factory.mktemp("run")
    checkpoints = Checkpoints(workdir, 3)
    for step in (1, 2, 3):
        rng = np.random.default_rng(step)
        state = jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape), x.dtype), make_state(WIDTH))  # noqa: B023
        checkpoints.save(step, state._replace(step=jnp.int32(step)), {"examples": 10 * step, "seed": 7})
    checkpoints.close()
    return workdir


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def fill_with_zeros(path):
    path.write_bytes(bytes(path.stat().st_size))


DAMAGE = [
    *(("model", how, "d/*") for how in (truncate, fill_with_zeros, pathlib.Path.unlink)),
    ("average", pathlib.Path.unlink, "manifest.ocdbt"),
    ("average", shutil.rmtree, "."),
    ("training", truncate, "d/*"),
    ("training", truncate, "_METADATA"),
    ("data", truncate, "metadata"),
    ("data", shutil.rmtree, "."),
]


def damage(workdir, step, item, how, pattern):
    folder = workdir / "checkpoints" / str(step) / item
    for path in [folder] if pattern == "." else list(folder.glob(pattern)):
        how(path)


@pytest.mark.parametrize(("item", "how", "pattern"), DAMAGE)
def test_damaged_checkpoint_falls_back_to_the_previous_one(saved_run, tmp_path, capfd, item, how, pattern):
    workdir = shutil.copytree(saved_run, tmp_path / "run")
    damage(workdir, 3, item, how, pattern)
    checkpoints = Checkpoints(workdir, 3)
    state, place = checkpoints.restore(abstract(WIDTH))
    assert (int(state.step), place["examples"]) == (2, 20)
    said = capfd.readouterr()
    aside, then = said.out.splitlines()
    assert "step 3 " in aside
    assert str(workdir / "damaged_checkpoint_3") in aside
    assert then.endswith(" step 2")
    assert "Traceback" not in said.err
    assert (workdir / "damaged_checkpoint_3").is_dir()
    checkpoints.save(3, state._replace(step=jnp.int32(3)), {"examples": 30, "seed": 7})  # the step can be saved again
    checkpoints.close()
    again = Checkpoints(workdir, 3)
    assert again.restore(abstract(WIDTH))[1]["examples"] == 30
    again.close()


def test_two_damaged_checkpoints_fall_back_to_the_first(saved_run, tmp_path, capsys):
    workdir = shutil.copytree(saved_run, tmp_path / "run")
    damage(workdir, 3, "model", truncate, "d/*")
    damage(workdir, 2, "average", truncate, "d/*")
    checkpoints = Checkpoints(workdir, 3)
    assert int(checkpoints.restore(abstract(WIDTH))[0].step) == 1
    *aside, then = capsys.readouterr().out.splitlines()
    assert [re.search(r"\bstep \d", line)[0] for line in aside] == ["step 3", "step 2"]
    assert then.endswith(" step 1")
    assert checkpoints.newest == 1
    checkpoints.close()


def test_no_checkpoint_is_moved_if_all_are_damaged(saved_run, tmp_path):
    workdir = shutil.copytree(saved_run, tmp_path / "run")
    for step in (1, 2, 3):
        damage(workdir, step, "model", truncate, "d/*")
    checkpoints = Checkpoints(workdir, 3)
    with pytest.raises(InputError, match=r"step 3 in .*\bdamaged\b") as caught:
        checkpoints.restore(abstract(WIDTH))
    assert "\n" not in str(caught.value)
    assert sorted(checkpoints.manager.all_steps()) == [1, 2, 3]
    with pytest.raises(InputError, match=r"step 3 in .*\bconfig\b"):
        Checkpoints(shutil.copytree(saved_run, tmp_path / "other"), 3).restore(abstract(WIDTH + 2))
    assert sorted(os.listdir(tmp_path / "other")) == ["checkpoints"]
    like = abstract(WIDTH)
    with pytest.raises(InputError, match=r"step 2 in .*\bdamaged\b"):
        checkpoints.restore_parameters(2, like.params, like.frozen, ema=False)
    checkpoints.close()


def test_damage_prints_nothing_to_stderr(saved_run, tmp_path):
    """In a process of its own, as asyncio would report unfinished reads only when the interpreter exits."""
    for number, how in enumerate((truncate, fill_with_zeros)):
        damage(shutil.copytree(saved_run, tmp_path / str(number)), 3, "training", how, "d/*")
    program = (
        "import pathlib, sys; sys.path[:0] = sys.argv[1:2]; from test_checkpoints import *\n"
        "for path in map(pathlib.Path, sys.argv[2:]): Checkpoints(path, 3).restore(abstract(WIDTH))"
    )
    arguments = [os.path.dirname(__file__), str(tmp_path / "0"), str(tmp_path / "1")]
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout.count(" step 2\n") == 2


def test_run_with_a_damaged_checkpoint_ends_with_the_same_weights(tmp_path, capsys):
    whole = fit(tmp_path / "whole", Line(), 6, checkpoint_every=2)
    fit(tmp_path / "run", Line(), 4, checkpoint_every=2)
    damage(tmp_path / "run", 4, "model", fill_with_zeros, "manifest.ocdbt")
    capsys.readouterr()
    resumed = Line()
    np.testing.assert_array_equal(fit(tmp_path / "run", resumed, 6, checkpoint_every=2), whole)
    assert resumed.started == [2 * BATCH]
    assert capsys.readouterr().out.count(" step 2\n") == 2  # restored and resumed
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)
    assert {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()} >= {"4", "6"}
