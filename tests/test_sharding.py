"""A state on eight devices is the state on one, cut to pieces."""

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, PartitionSpec
from processes import finish, losses, start, start_python
from run_training import train

from spectrodiff.errors import InputError
from spectrodiff.training.sharding import check_batch, make_mesh, partition_spec

MESH = AbstractMesh((4, 2), ("data", "model"))


@pytest.mark.parametrize(
    ("path", "shape", "spec"),
    [
        ("params.decoder.blocks.3.self_attention.query.kernel.value", (64, 32), ("data", "model")),
        ("params.decoder.blocks.3.self_attention.out.kernel.value", (32, 64), ("model", "data")),
        ("average.note_encoder.encoder.blocks.0.mlp.wi_0.kernel.value", (64, 128), ("data", "model")),
        ("optimizer.0.mu.note_encoder.encoder.blocks.0.mlp.wo.kernel.value", (128, 64), ("model", "data")),
        ("params.note_encoder.embedding.embedding.value", (1001, 64), (None, "data")),
        ("params.decoder.noise_out.kernel.value", (64, 64), ("data", None)),
        ("params.decoder.norm.scale.value", (64,), ()),
        ("optimizer.0.v_row.decoder.blocks.0.mlp.wo.kernel.value", (128,), ()),
        ("params.decoder.blocks.3.self_attention.query.kernel.value", (6, 3), (None, None)),
        ("step", (), ()),
    ],
)
def test_rules_go_by_name_and_spare_what_does_not_divide(path, shape, spec):
    assert partition_spec(path, shape, MESH) == PartitionSpec(*spec)


@pytest.mark.parametrize("model", [0, 2])
def test_a_process_has_to_hold_whole_groups(model):
    with pytest.raises(InputError, match=rf"train\.model_parallel is {model}\b"):
        make_mesh(model)


@pytest.mark.parametrize(
    ("size", "parts", "message"),
    [
        (6, 1, r"\b6 examples.*multiple of 4\b"),
        (12, 2, r"\b12 examples.*multiple of 8\b.* 2 parts"),
        (8, 0, r"train\.accumulate is 0"),
    ],
)
def test_a_batch_has_to_divide(size, parts, message):
    check_batch(16, MESH, 2)
    with pytest.raises(InputError, match=message):
        check_batch(size, MESH, parts)


@pytest.mark.trial
def test_eight_devices_learn_what_one_does(corpus, tmp_path):
    """Data parallel, tensor parallel, and both with a batch in two parts."""
    for parts in (1, 2):
        train(corpus, tmp_path / f"one{parts}", steps=4, accumulate=parts)
    ways = [(1, 1), (8, 1), (2, 2)]
    runs = [{"model_parallel": n, "accumulate": k, "workdir": str(tmp_path / f"eight{n}{k}")} for n, k in ways]
    finish(start(corpus, tmp_path, [{"steps": 4, **run} for run in runs], devices=8))
    alone = {parts: losses(tmp_path / f"one{parts}") for parts in (1, 2)}
    assert sorted(alone[1]) == [1, 2, 3, 4]
    assert alone[1][4] != alone[1][1]
    assert alone[1] != pytest.approx(alone[2], rel=1e-4)  # each part draws its own dropout
    for n, k in ways:
        assert losses(tmp_path / f"eight{n}{k}") == pytest.approx(alone[k], rel=1e-4)


SHARE = """
import functools, jax
from flax import nnx
from inputs import PAPER
from spectrodiff.models.spectrogram_model import SpectrogramModel
from spectrodiff.training import state as states
from spectrodiff.training.optimizers import adamw
from spectrodiff.training.sharding import distribute, make_mesh, shardings

parts = states.split(SpectrogramModel(PAPER, rngs=nnx.Rngs(0)))[1:]
create = functools.partial(states.create, optimizer=adamw())
layout = shardings(jax.eval_shape(create, *parts), make_mesh(2))
state = jax.jit(create, out_shardings=layout)(*distribute(list(parts), [layout.params, layout.frozen]))
for part in (state.params, state.ema, state.optimizer):
    leaves = [leaf for leaf in jax.tree.leaves(part) if leaf.ndim == 2]
    print("share", sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves) / sum(leaf.nbytes for leaf in leaves))
"""


def test_a_device_holds_its_share_of_the_matrices_their_average_and_their_moments():
    """An eighth of those of blocks, and of embeddings, inputs and outputs, which `model` does not cut, a quarter."""
    shares = [float(line.split()[1]) for line in finish(start_python("-c", SHARE, devices=8)).splitlines()]
    assert len(shares) == 3
    assert all(1 / 8 < share < 1 / 4 for share in shares)


@pytest.mark.trial
def test_a_run_goes_on_with_other_devices(corpus, tmp_path):
    train(corpus, tmp_path / "whole", steps=4)
    finish(start(corpus, tmp_path / "moved", {"steps": 2, "model_parallel": 2}, devices=8))
    train(corpus, tmp_path / "moved", steps=4)
    assert losses(tmp_path / "moved") == pytest.approx(losses(tmp_path / "whole"), rel=1e-4)
    assert jax.device_count() == 1
    assert np.isfinite(list(losses(tmp_path / "moved").values())).all()
