"""Sharding of the training state over devices."""

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
def test_partition_spec_follows_names_and_divisibility(path, shape, spec):
    assert partition_spec(path, shape, MESH) == PartitionSpec(*spec)


@pytest.mark.parametrize("model", [0, 2])
def test_invalid_model_parallel_raises_input_error(model):
    with pytest.raises(InputError, match=rf"train\.model_parallel is {model}\b"):
        make_mesh(model)


@pytest.mark.parametrize(
    ("size", "parts", "message"),
    [
        (6, 1, r"\b6 examples\b.*\b4\b"),
        (12, 2, r"\b12 examples\b.*\b8\b.* 2 parts"),
        (8, 0, r"train\.accumulate is 0"),
    ],
)
def test_indivisible_batch_raises_input_error(size, parts, message):
    check_batch(16, MESH, 2)
    with pytest.raises(InputError, match=message):
        check_batch(size, MESH, parts)


@pytest.mark.trial
def test_losses_on_eight_devices_match_one_device(corpus, tmp_path):
    """This covers data parallelism, tensor parallelism, and both with gradient accumulation."""
    for parts in (1, 2):
        train(corpus, tmp_path / f"one{parts}", steps=4, accumulate=parts)
    layouts = [(1, 1), (8, 1), (2, 2)]
    runs = [{"model_parallel": n, "accumulate": k, "workdir": str(tmp_path / f"eight{n}{k}")} for n, k in layouts]
    finish(start(corpus, tmp_path, [{"steps": 4, **run} for run in runs], devices=8))
    alone = {parts: losses(tmp_path / f"one{parts}") for parts in (1, 2)}
    assert sorted(alone[1]) == [1, 2, 3, 4]
    assert alone[1][4] != alone[1][1]
    assert alone[1] != pytest.approx(alone[2], rel=1e-4)  # each part has its own dropout mask
    for n, k in layouts:
        assert losses(tmp_path / f"eight{n}{k}") == pytest.approx(alone[k], rel=1e-4)


PRINT_SHARES = """
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


def test_matrices_averages_and_moments_are_sharded():
    """A device holds an eighth of block matrices, and a quarter of embeddings and input and output projections."""
    shares = [float(line.split()[1]) for line in finish(start_python("-c", PRINT_SHARES, devices=8)).splitlines()]
    assert len(shares) == 3
    assert all(1 / 8 < share < 1 / 4 for share in shares)


@pytest.mark.trial
def test_run_resumes_on_another_number_of_devices(corpus, tmp_path):
    train(corpus, tmp_path / "whole", steps=4)
    finish(start(corpus, tmp_path / "moved", {"steps": 2, "model_parallel": 2}, devices=8))
    train(corpus, tmp_path / "moved", steps=4)
    assert losses(tmp_path / "moved") == pytest.approx(losses(tmp_path / "whole"), rel=1e-4)
    assert jax.device_count() == 1
    assert np.isfinite(list(losses(tmp_path / "moved").values())).all()
