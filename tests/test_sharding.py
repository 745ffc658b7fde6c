"""A state on eight devices is the state on one, cut to pieces."""

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, PartitionSpec
from processes import finish, losses, start
from run_training import train

from spectrodiff.errors import InputError
from spectrodiff.training.sharding import check_batch, make_mesh, spec_of

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
    assert spec_of(path, shape, MESH) == PartitionSpec(*spec)


@pytest.mark.parametrize("model", [0, 2])
def test_a_process_has_to_hold_whole_groups(model):
    with pytest.raises(InputError, match=f"train.model_parallel is {model}; choose a divisor of 1"):
        make_mesh(model)


@pytest.mark.parametrize(
    ("size", "parts", "message"),
    [
        (6, 1, "a batch has 6 examples; choose a multiple of 4: 4 shares of devices"),
        (12, 2, "a batch has 12 examples; choose a multiple of 8: 4 shares of devices, in 2 parts"),
        (8, 0, "train.accumulate is 0; choose 1 or more"),
    ],
)
def test_a_batch_has_to_divide(size, parts, message):
    check_batch(16, MESH, 2)
    with pytest.raises(InputError) as error:
        check_batch(size, MESH, parts)
    assert str(error.value) == message


@pytest.mark.slow
def test_eight_devices_learn_what_one_does(corpus, tmp_path):
    """Data parallel, tensor parallel and both; and the same in two parts, but for the parts' randomness."""
    train(corpus, tmp_path / "one", steps=4)
    runs = [{"steps": 4, "model_parallel": n, "workdir": str(tmp_path / f"model{n}")} for n in (1, 2, 8)]
    finish(start(corpus, tmp_path, runs, devices=8))
    alone = losses(tmp_path / "one")
    assert sorted(alone) == [1, 2, 3, 4]
    assert alone[4] != alone[1]
    for run in runs:
        assert losses(tmp_path / f"model{run['model_parallel']}") == pytest.approx(alone, rel=1e-4)


@pytest.mark.slow
def test_a_run_goes_on_with_other_devices(corpus, tmp_path):
    train(corpus, tmp_path / "whole", steps=4)
    finish(start(corpus, tmp_path / "moved", {"steps": 2, "model_parallel": 2}, devices=8))
    train(corpus, tmp_path / "moved", steps=4)
    assert losses(tmp_path / "moved") == pytest.approx(losses(tmp_path / "whole"), rel=1e-4)
    assert jax.device_count() == 1
    assert np.isfinite(list(losses(tmp_path / "moved").values())).all()
