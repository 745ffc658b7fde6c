import json
import os
import pathlib
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


def fresh(width=4):
    _, params, buffers = states.split(Small(width))
    return states.create(params, buffers, optax.adam(1e-3))


def abstract(width=4):
    """What a checkpoint is restored like."""
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), fresh(width))


def at(step):
    return jax.tree.map(lambda x: x + jnp.asarray(0.1 * step).astype(x.dtype), fresh())._replace(step=jnp.int32(step))


def test_a_fresh_workdir_has_nothing_to_restore(tmp_path):
    checkpoints = Checkpoints(tmp_path / "runs" / "new", 2)
    assert checkpoints.newest is None
    checkpoints.close()


def test_the_newest_comes_back_to_the_bit_and_the_older_ones_go(tmp_path):
    checkpoints = Checkpoints(tmp_path, 2)
    for step in (1, 2, 3, 3):  # the last time as if saved once more at the end
        checkpoints.save(step, at(step), {"examples": 10 * step, "seed": 7})
    checkpoints.close()
    again = Checkpoints(tmp_path, 2)
    assert sorted(again.manager.all_steps()) == [2, 3]
    assert again.newest == 3
    state, place = again.restore(abstract())
    assert place == {"examples": 30, "seed": 7}
    assert jax.tree.structure(state) == jax.tree.structure(at(3))
    for restored, saved in zip(jax.tree.leaves(state), jax.tree.leaves(at(3)), strict=True):
        assert restored.dtype == saved.dtype
        np.testing.assert_array_equal(restored, saved)
    again.close()


def test_milestones_stay(tmp_path):
    checkpoints = Checkpoints(tmp_path, 1, keep_every=2)
    for step in range(1, 6):
        checkpoints.save(step, at(step), {})
    checkpoints.close()
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == [2, 4, 5]


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    checkpoints = Checkpoints(tmp_path, 2)
    checkpoints.save(1, at(1), {})
    checkpoints.manager.wait_until_finished()
    with pytest.raises(InputError, match=r"config.*--workdir"):
        checkpoints.restore(abstract(width=6))
    checkpoints.close()


def test_a_workdir_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write to workdir"):
        Checkpoints(tmp_path / "file" / "run", 2)


def test_an_address_makes_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="s3://bucket/run is an address"):
        Checkpoints(pathlib.Path("s3://bucket/run"), 2)
    assert os.listdir() == []


# ---- damage

WIDTH = 512  # arrays too large to be kept in a database's index


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Three checkpoints."""
    workdir = tmp_path_factory.mktemp("run")
    checkpoints = Checkpoints(workdir, 3)
    for step in (1, 2, 3):
        rng = np.random.default_rng(step)
        state = jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape), x.dtype), fresh(WIDTH))  # noqa: B023
        checkpoints.save(step, state._replace(step=jnp.int32(step)), {"examples": 10 * step, "seed": 7})
    checkpoints.close()
    return workdir


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def blank(path):
    path.write_bytes(bytes(path.stat().st_size))


DAMAGE = [
    *(("model", how, "d/*") for how in (cut, blank, pathlib.Path.unlink)),
    ("average", pathlib.Path.unlink, "manifest.ocdbt"),
    ("average", shutil.rmtree, "."),
    ("training", cut, "d/*"),
    ("training", cut, "_METADATA"),
    ("data", cut, "metadata"),
    ("data", shutil.rmtree, "."),
]


def damage(workdir, step, item, how, pattern):
    folder = workdir / "checkpoints" / str(step) / item
    for path in [folder] if pattern == "." else list(folder.glob(pattern)):
        how(path)


@pytest.mark.parametrize(("item", "how", "pattern"), DAMAGE)
def test_a_run_goes_on_from_before_a_damaged_checkpoint(run, tmp_path, capfd, item, how, pattern):
    workdir = shutil.copytree(run, tmp_path / "run")
    damage(workdir, 3, item, how, pattern)
    checkpoints = Checkpoints(workdir, 3)
    state, place = checkpoints.restore(abstract(WIDTH))
    assert (int(state.step), place["examples"]) == (2, 20)
    said = capfd.readouterr()
    aside, then = said.out.splitlines()
    assert "step 3 is damaged" in aside
    assert str(workdir / "damaged_checkpoint_3") in aside
    assert then == "going on from step 2"
    assert "Traceback" not in said.err
    assert (workdir / "damaged_checkpoint_3").is_dir()
    checkpoints.save(3, state._replace(step=jnp.int32(3)), {"examples": 30, "seed": 7})  # it is saved anew
    checkpoints.close()
    again = Checkpoints(workdir, 3)
    assert again.restore(abstract(WIDTH))[1]["examples"] == 30
    again.close()


def test_several_damaged_checkpoints(run, tmp_path, capsys):
    workdir = shutil.copytree(run, tmp_path / "run")
    damage(workdir, 3, "model", cut, "d/*")
    damage(workdir, 2, "average", cut, "d/*")
    checkpoints = Checkpoints(workdir, 3)
    assert int(checkpoints.restore(abstract(WIDTH))[0].step) == 1
    *aside, then = capsys.readouterr().out.splitlines()
    assert [line.split(" is ")[0] for line in aside] == ["the checkpoint of step 3", "the checkpoint of step 2"]
    assert then == "going on from step 1"
    assert checkpoints.newest == 1
    checkpoints.close()


def test_nothing_is_put_aside_where_no_checkpoint_is_sound(run, tmp_path):
    workdir = shutil.copytree(run, tmp_path / "run")
    for step in (1, 2, 3):
        damage(workdir, step, "model", cut, "d/*")
    checkpoints = Checkpoints(workdir, 3)
    with pytest.raises(InputError, match=r"step 3 in .* is damaged") as caught:
        checkpoints.restore(abstract(WIDTH))
    assert "\n" not in str(caught.value)
    assert sorted(checkpoints.manager.all_steps()) == [1, 2, 3]
    with pytest.raises(InputError, match=r"step 3 in .* does not fit this config"):
        Checkpoints(shutil.copytree(run, tmp_path / "other"), 3).restore(abstract(WIDTH + 2))
    assert sorted(os.listdir(tmp_path / "other")) == ["checkpoints"]
    like = abstract(WIDTH)
    with pytest.raises(InputError, match=r"step 2 in .* is damaged"):
        checkpoints.restore_parameters(2, like.params, like.frozen, ema=False)
    checkpoints.close()


def test_nothing_else_is_said_of_damage(run, tmp_path):
    """What asyncio would say of the parts that were being read, it says when Python tidies up."""
    for number, how in enumerate((cut, blank)):
        damage(shutil.copytree(run, tmp_path / str(number)), 3, "training", how, "d/*")
    program = (
        "import pathlib, sys; sys.path[:0] = sys.argv[1:2]; from test_checkpoints import *\n"
        "for path in map(pathlib.Path, sys.argv[2:]): Checkpoints(path, 3).restore(abstract(WIDTH))"
    )
    arguments = [os.path.dirname(__file__), str(tmp_path / "0"), str(tmp_path / "1")]
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout.count("going on from step 2") == 2


def test_training_ends_as_if_nothing_had_been_damaged(tmp_path, capsys):
    whole = fit(tmp_path / "whole", Line(), 6, checkpoint_every=2)
    fit(tmp_path / "run", Line(), 4, checkpoint_every=2)
    damage(tmp_path / "run", 4, "model", blank, "manifest.ocdbt")
    capsys.readouterr()
    resumed = Line()
    np.testing.assert_array_equal(fit(tmp_path / "run", resumed, 6, checkpoint_every=2), whole)
    assert resumed.started == [2 * BATCH]
    said = capsys.readouterr().out
    assert "going on from step 2\n" in said
    assert "resuming at step 2\n" in said
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)
    assert {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()} >= {"4", "6"}
