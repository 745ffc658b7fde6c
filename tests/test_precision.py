"""Computing in bfloat16, and again in the backward pass: how a model is run, and not what it is."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from inputs import OURS, PAPER, jitted, windows_of
from jax.test_util import check_grads

from spectrodiff.config import ModelConfig
from spectrodiff.errors import InputError
from spectrodiff.models.layers import Attention
from spectrodiff.models.spectrogram_model import SpectrogramModel
from spectrodiff.notes.tokenizer import NoteTokenizer
from spectrodiff.training.spectrogram import SpectrogramTask

FRAMES, TOKENS, KEYS = 24, 128, jax.random.split(jax.random.key(0), 3)
Z = jax.random.normal(KEYS[0], (3, FRAMES, 128))
LOGSNR = jnp.array([-6.0, -1.0, 3.0])
PAST = jax.random.uniform(KEYS[1], (3, 16, 128), minval=-1.0)
PAST_MASK = jnp.arange(16) < jnp.array([[16], [5], [0]])


def run_as(config, **options):
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **options))


def given(config):
    return jnp.asarray(windows_of(NoteTokenizer(config.tokenizer), TOKENS)), PAST, PAST_MASK


def loss_of(config):
    """The mean square of the network's output, and that output, of parameters; and the parameters."""
    graph, params, rest = nnx.split(SpectrogramModel(config, rngs=nnx.Rngs(0)), nnx.Param, ...)

    def loss(params):
        model, rngs = nnx.merge(graph, params, rest), nnx.Rngs(dropout=KEYS[2])
        output = model(*given(config), Z, LOGSNR, rngs=rngs)
        return (output**2).mean(), output

    return loss, params


def jaxpr_of(config):
    loss, params = loss_of(config)
    return jax.make_jaxpr(jax.grad(loss, has_aux=True))(params).jaxpr


def learnt_from(config):
    """The gradient and the output."""
    loss, params = loss_of(config)
    return jax.jit(jax.grad(loss, has_aux=True))(params)


def difference(a, b):
    """Euclidean, of all arrays of two trees, relative to the first."""
    a, b = (np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]) for tree in (a, b))
    return np.linalg.norm(a - b) / np.linalg.norm(a)


def equations(jaxpr):
    """All of a jaxpr, those of the jaxprs inside it too, as (name, types of the inputs)."""
    for equation in jaxpr.eqns:
        yield equation.primitive.name, [str(x.aval.dtype) for x in equation.invars]
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


@pytest.fixture(params=[PAPER, OURS], ids=["paper", "ours"])
def config(request):
    return request.param


def test_only_activations_are_bfloat16():
    """Rounding to 8 bits moves outputs and gradients by a percent or so."""
    rounding = run_as(OURS, dtype="bfloat16")
    (gradient, output), (rounded_gradient, rounded_output) = learnt_from(OURS), learnt_from(rounding)
    for tree in (loss_of(rounding)[1], rounded_gradient, rounded_output):
        assert {leaf.dtype for leaf in jax.tree.leaves(tree)} == {jnp.dtype("float32")}
    assert 1e-4 < difference(output, rounded_output) < 0.02
    assert 1e-4 < difference(gradient, rounded_gradient) < 0.04


def test_matrix_products_take_bfloat16_and_what_needs_more_takes_float32(config):
    """Float32 are the projection to mel bins (3 products with its gradient's) and the note roll's sums (6)."""
    found = list(equations(jaxpr_of(run_as(config, dtype="bfloat16"))))
    products = [types for name, types in found if name == "dot_general"]
    assert products.count(["float32"] * 2) == (9 if config.model.note_roll else 3)
    assert products.count(["bfloat16"] * 2) == len(products) - products.count(["float32"] * 2) > 50
    for name in ("exp", "rsqrt", "reduce_max"):  # of softmax and norms
        types = {tuple(types) for kind, types in found if kind == name}
        assert types == {("float32",)}


def test_in_float32_there_is_nothing_else(config):
    assert not any("bfloat16" in types for _, types in equations(jaxpr_of(config)))


def test_mels_sampled_in_bfloat16_are_close_to_those_of_float32():
    """With blocks to be computed again, too, of which a sampler's scan has no need."""

    @jitted
    def sample(model, *arrays):
        return model.decoder.sample(model.encode(*arrays, FRAMES), FRAMES, KEYS, options)

    options = OURS.decoder.sampled(sampler="dpmpp", steps=3, guidance=2.0).options()

    mels, rounded = (
        sample(SpectrogramModel(run_as(OURS, **options), rngs=nnx.Rngs(0)), *given(OURS))
        for options in ({}, {"dtype": "bfloat16", "remat": True})
    )
    assert rounded.dtype == jnp.float32
    assert np.isfinite(rounded).all()
    assert 1e-4 < difference(mels, rounded) < 0.02


def test_blocks_computed_again_are_those_computed_before():
    """With the same dropout: the gradient tells."""
    assert PAPER.model.dropout == 0.1
    (gradient, output), (gradient_again, output_again) = learnt_from(PAPER), learnt_from(run_as(PAPER, remat=True))
    assert difference(output, output_again) < 1e-5
    assert difference(gradient, gradient_again) < 1e-5


def test_less_is_kept_of_blocks_that_are_computed_again():
    kept = []
    for remat in (False, True):
        layers = {"note_layers": 3, "context_layers": 3, "decoder_layers": 3}
        loss, params = loss_of(run_as(PAPER, **layers, dtype="bfloat16", remat=remat))
        backward = jax.eval_shape(lambda params, loss=loss: jax.vjp(loss, params, has_aux=True)[1], params)
        kept.append(sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(backward)))
    assert kept[1] < kept[0] / 3  # attention weights are kept in neither


def test_gradients_of_attention_by_finite_differences():
    attention = Attention(ModelConfig(width=8, heads=2, head_dim=4), rngs=nnx.Rngs(0))
    x, memory = (jax.random.normal(KEYS[i], (2, 3 + i, 8)) for i in (0, 1))
    mask = jnp.array([[True, True, True, False], [True, False, True, True]])

    def attend(x, memory):
        return attention(x, attention.keys_values(memory), mask)

    check_grads(jax.jit(attend), (x, memory), order=1, modes=["fwd", "rev"], atol=1e-2, rtol=1e-2)


def test_weights_may_be_trained_on_another_way(checkpoint, our_model):
    config = run_as(OURS, dtype="bfloat16", remat=True)
    model = SpectrogramTask(config=config).load(str(checkpoint))
    assert model.decoder.dtype == "bfloat16"
    jax.tree.map(np.testing.assert_array_equal, nnx.state(model, nnx.Param), nnx.state(our_model, nnx.Param))


def test_types_that_there_are():
    with pytest.raises(InputError, match=r"'float16'.*float32, bfloat16"):
        ModelConfig(dtype="float16")
