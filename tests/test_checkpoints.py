import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

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
    with pytest.raises(InputError, match="does not fit this config; use another --workdir"):
        checkpoints.restore(abstract(width=6))
    checkpoints.close()


def test_a_workdir_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write to workdir"):
        Checkpoints(tmp_path / "file" / "run", 2)
