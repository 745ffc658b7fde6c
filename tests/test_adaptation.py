"""Fine-tuning rules (everything, only, lora): splitting and merging a model, and the parameters that a step updates."""

import gin
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from inputs import OURS

from spectrodiff.errors import InputError
from spectrodiff.models.layers import Buffer, Dense
from spectrodiff.models.spectrogram_model import SpectrogramModel
from spectrodiff.pretrained.native import flatten
from spectrodiff.training import state as states
from spectrodiff.training.adaptation import everything, lora, only

TABLE = "note_encoder.embedding.embedding"
PROGRAM, ROW = 98, 3 + 1001 + 128 + 2 + 1 + 98  # row of that program in a vocabulary with on/off velocities
RULES = {
    "everything": everything(),
    "only": only("decoder"),
    "only with a row": only(r"decoder\.blocks", programs=(PROGRAM,)),
    "lora": lora(),
    "lora with a row": lora("attention|note_encoder", rank=2, scale=4.0, programs=(PROGRAM,)),
}


def arrays_of(model):
    return flatten(nnx.state(model, nnx.Any(nnx.Param, Buffer)))


def differing_names(model, other):
    ours, theirs = arrays_of(model), arrays_of(other)
    assert ours.keys() == theirs.keys()
    return {name for name in ours if not np.array_equal(ours[name], theirs[name])}


def sgd_step(rule, model, loss):
    """The model after one SGD step on the trained parameters, and the gradients of these."""
    graph, trained, frozen = rule.split(model, nnx.Rngs(0))
    optimizer = optax.sgd(1.0)
    gradients = jax.jit(jax.grad(lambda trained: loss(rule.merge(graph, trained, frozen))))(trained)
    updates, _ = optimizer.update(gradients, optimizer.init(trained))
    return rule.merge(graph, optax.apply_updates(trained, updates), frozen), gradients


def dense_loss(model):
    """A loss with a nonzero gradient in every parameter, different for each of them."""
    leaves = jax.tree.leaves(nnx.state(model, nnx.Param))
    return sum(jnp.sum(leaf**2 + 0.3 * (i + 1) * leaf) for i, leaf in enumerate(leaves))


@pytest.mark.parametrize("name", RULES)
def test_split_then_merge_restores_the_model(name, paper_model):
    rule = RULES[name]
    graph, trained, frozen = rule.split(paper_model, nnx.Rngs(0))
    assert differing_names(rule.merge(graph, trained, frozen), paper_model) == set()
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(trained))


def test_everything_splits_like_training_from_scratch(paper_model):
    graph, *parts = everything().split(paper_model, nnx.Rngs(0))
    expected_graph, *expected = states.split(paper_model)
    assert graph == expected_graph
    assert jax.tree.structure(parts) == jax.tree.structure(expected)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (everything(), lambda name: "positions" not in name),
        (only("decoder"), lambda name: name.startswith("decoder") and "positions" not in name),
        (only(r"^note_encoder\.emb|mlp\.wo"), lambda name: name == TABLE or "mlp.wo." in name),
        (
            lora(),
            lambda name: (
                any(f"attention.{part}." in name for part in ("query", "key", "value", "out")) and "norm" not in name
            ),
        ),
        (lora("decoder.*norm|decoder.out"), lambda name: name == "decoder.out.kernel"),
    ],
    ids=["everything", "decoder", "pattern", "attention", "a matrix alone"],
)
def test_only_selected_parameters_get_gradients_and_updates(rule, expected, paper_model):
    moved, gradients = sgd_step(rule, paper_model, dense_loss)
    names = {name for name in arrays_of(paper_model) if expected(name)}
    assert names
    assert differing_names(moved, paper_model) == names
    size = sum(leaf.size for leaf in jax.tree.leaves(gradients))
    shapes = {name: array.shape for name, array in arrays_of(paper_model).items() if name in names}
    low_rank = "low_rank" in gradients
    assert size == sum(8 * sum(shape) if low_rank else int(np.prod(shape)) for shape in shapes.values())


@pytest.mark.parametrize("rule", [RULES["only with a row"], lora(programs=(PROGRAM,))], ids=["only", "lora"])
def test_only_the_row_of_the_program_is_updated(rule, paper_model):
    moved, gradients = sgd_step(rule, paper_model, dense_loss)
    assert TABLE in differing_names(moved, paper_model)
    before, after = (arrays_of(model)[TABLE] for model in (paper_model, moved))
    assert np.flatnonzero((before != after).any(1)).tolist() == [ROW]
    assert {name: leaf.shape for name, leaf in gradients["rows"].items()} == {str(ROW): (32,)}


def test_row_of_a_trained_table_is_not_trained_twice(paper_model):
    for rule in (only("embedding", programs=(PROGRAM,)), lora("embedding", programs=(PROGRAM,))):
        _, trained, _ = rule.split(paper_model, nnx.Rngs(0))
        assert trained["rows"] == {}


def test_lora_update_has_the_given_rank_and_scale():
    """An SGD step of size 1 from b = 0 adds -(scale / rank)^2 a @ a^T @ G, with G the gradient of the full matrix."""
    model = Dense(6, 5, rngs=nnx.Rngs(1))
    target = jnp.arange(30.0).reshape(6, 5)
    rule = lora("kernel", rank=2, scale=3.0)
    trained = rule.split(model, nnx.Rngs(0))[1]
    moved, _ = sgd_step(rule, model, lambda model: jnp.sum(model.kernel[...] * target))
    a = trained["low_rank"]["kernel"]["a"]
    assert (a.shape, trained["low_rank"]["kernel"]["b"].shape) == ((6, 2), (2, 5))
    change = moved.kernel[...] - model.kernel[...]
    np.testing.assert_allclose(change, -((3 / 2) ** 2) * a @ a.T @ target, rtol=1e-4)
    assert np.linalg.matrix_rank(np.asarray(change), tol=1e-3) == 2


def test_lora_a_is_seeded_and_initialized_with_unit_gain():
    model = Dense(4000, 8, rngs=nnx.Rngs(1))
    first, again, other = (
        lora("kernel").split(model, nnx.Rngs(seed))[1]["low_rank"]["kernel"]["a"] for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert float(jnp.std(first)) == pytest.approx(1 / np.sqrt(4000), rel=0.02)


def test_rules_split_abstract_models():
    """Resuming needs the structure of the trained parameters without computing their values."""

    def trained(config):
        model = SpectrogramModel(config, rngs=nnx.Rngs(0))
        return lora(programs=(3,)).split(model, nnx.Rngs(0))[1]

    abstract = jax.eval_shape(lambda: trained(OURS))
    assert jax.tree.structure(abstract) == jax.tree.structure(trained(OURS))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: only("decodr"), r"only\.pattern 'decodr' .*decoder\.blocks"),
        (lambda: lora("scale"), r"lora\.pattern 'scale' "),
        (lambda: only("("), r"only\.pattern '\(' "),
        (lambda: lora(rank=0), r"lora\.rank is 0"),
        (lambda: lora(scale=float("nan")), r"lora\.scale is nan"),
        (lambda: lora(programs=(128,)), r"\bprograms .*\b128\b"),
        (lambda: only("decoder", programs=(-1,)), r"\bprograms .*-1\b"),
    ],
)
def test_invalid_rules_raise_input_error(make, message, paper_model):
    with pytest.raises(InputError, match=message):
        make().split(paper_model, nnx.Rngs(0))


def test_program_rows_need_a_network_with_programs():
    with pytest.raises(InputError, match="`programs`"):
        only("kernel", programs=(3,)).split(Dense(2, 3, rngs=nnx.Rngs(0)), nnx.Rngs(0))


def test_rules_are_gin_configurables():
    try:
        gin.parse_config(["lora.rank = 3", "only.pattern = 'kernel'"])
        model = Dense(4, 4, rngs=nnx.Rngs(0))
        made = (
            gin.get_configurable("everything")(),
            gin.get_configurable("only")(),
            gin.get_configurable("lora")("ker"),
        )
        trained = [rule.split(model, nnx.Rngs(0))[1] for rule in made]
    finally:
        gin.clear_config()
    assert [sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in trained] == [16, 16, 2 * 4 * 3]
