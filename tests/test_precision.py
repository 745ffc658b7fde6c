"""The `dtype` and `remat` settings, which change how a model is computed but not its parameters."""

import dataclasses
import re

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


def with_options(config, **options):
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **options))


def model_inputs(config):
    return jnp.asarray(windows_of(NoteTokenizer(config.tokenizer), TOKENS)), PAST, PAST_MASK


def loss_of(config):
    """A function from parameters to the mean square of the network's output and that output; and the parameters."""
    graph, params, rest = nnx.split(SpectrogramModel(config, rngs=nnx.Rngs(0)), nnx.Param, ...)

    def loss(params):
        model, rngs = nnx.merge(graph, params, rest), nnx.Rngs(dropout=KEYS[2])
        output = model(*model_inputs(config), Z, LOGSNR, rngs=rngs)
        return (output**2).mean(), output

    return loss, params


def jaxpr_of(config):
    loss, params = loss_of(config)
    return jax.make_jaxpr(jax.grad(loss, has_aux=True))(params).jaxpr


def gradient_and_output(config):
    loss, params = loss_of(config)
    return jax.jit(jax.grad(loss, has_aux=True))(params)


def relative_distance(a, b):
    """The Euclidean distance between two trees of arrays, relative to the norm of the first."""
    a, b = (np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]) for tree in (a, b))
    return np.linalg.norm(a - b) / np.linalg.norm(a)


def nested(jaxpr):
    """The equations of a jaxpr and of those nested in it."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from nested(inner)


def equations(jaxpr):
    """The equations of a jaxpr and of those nested in it, as (name, types of the inputs)."""
    return ((equation.primitive.name, [str(x.aval.dtype) for x in equation.invars]) for equation in nested(jaxpr))


def sampling_jaxpr(config):
    options = config.decoder.sampled(steps=2, guidance=2.0).options()

    def sample(*arrays):
        model = SpectrogramModel(config, rngs=nnx.Rngs(0))
        return model.decoder.sample(model.encode(*arrays, FRAMES), FRAMES, KEYS, options)

    return jax.make_jaxpr(sample)(*model_inputs(config)).jaxpr


@pytest.fixture(params=[PAPER, OURS], ids=["paper", "ours"])
def config(request):
    return request.param


def test_bfloat16_applies_to_activations_only():
    """Rounding to 8 bits changes outputs and gradients by about one percent."""
    rounding = with_options(OURS, dtype="bfloat16")
    (gradient, output), (rounded_gradient, rounded_output) = gradient_and_output(OURS), gradient_and_output(rounding)
    for tree in (loss_of(rounding)[1], rounded_gradient, rounded_output):
        assert {leaf.dtype for leaf in jax.tree.leaves(tree)} == {jnp.dtype("float32")}
    assert 1e-4 < relative_distance(output, rounded_output) < 0.02
    assert 1e-4 < relative_distance(gradient, rounded_gradient) < 0.04


def test_matrix_products_use_bfloat16_except_where_listed(config):
    """The exceptions in float32 are the projection to mel bins (3 products with its gradient) and the note roll (6)."""
    found = list(equations(jaxpr_of(with_options(config, dtype="bfloat16"))))
    products = [types for name, types in found if name == "dot_general"]
    assert products.count(["float32"] * 2) == (9 if config.model.note_roll else 3)
    assert products.count(["bfloat16"] * 2) == len(products) - products.count(["float32"] * 2) > 50
    for name in ("exp", "rsqrt", "reduce_max"):  # softmax and norms
        types = {tuple(types) for kind, types in found if kind == name}
        assert types == {("float32",)}


def test_float32_model_uses_no_bfloat16(config):
    assert not any("bfloat16" in types for _, types in equations(jaxpr_of(config)))


def test_training_and_sampling_use_no_64_bits_and_no_host(config):
    """The types are those of all intermediate values; a callback would wait for the host within a step."""
    for jaxpr in (jaxpr_of(config), sampling_jaxpr(config)):
        found = list(nested(jaxpr))
        types = {str(x.aval.dtype) for equation in found for x in (*equation.invars, *equation.outvars)}
        assert "float32" in types
        assert not [name for name in types if "64" in name or "128" in name]
        assert not [e.primitive.name for e in found if re.search("callback|infeed|outfeed", e.primitive.name)]


def test_default_matmul_precision_applies_to_every_product(config):
    """On accelerators JAX's default rounds float32 products; JAX_DEFAULT_MATMUL_PRECISION changes that for all."""
    loss, params = loss_of(config)
    with jax.default_matmul_precision("highest"):
        traced = nested(jax.make_jaxpr(jax.grad(loss, has_aux=True))(params).jaxpr)
        found = [equation.params["precision"] for equation in traced if equation.primitive.name == "dot_general"]
    assert len(found) > 50
    assert set(found) == {(jax.lax.Precision.HIGHEST,) * 2}


def test_mels_sampled_in_bfloat16_are_close_to_float32():
    """`remat` is on as well, and has no effect on sampling."""

    @jitted
    def sample(model, *arrays):
        return model.decoder.sample(model.encode(*arrays, FRAMES), FRAMES, KEYS, options)

    options = OURS.decoder.sampled(sampler="dpmpp", steps=3, guidance=2.0).options()

    mels, rounded = (
        sample(SpectrogramModel(with_options(OURS, **options), rngs=nnx.Rngs(0)), *model_inputs(OURS))
        for options in ({}, {"dtype": "bfloat16", "remat": True})
    )
    assert rounded.dtype == jnp.float32
    assert np.isfinite(rounded).all()
    assert 1e-4 < relative_distance(mels, rounded) < 0.02


def test_remat_does_not_change_outputs_and_gradients():
    """Recomputed blocks use the same dropout mask, or the gradients would differ."""
    assert PAPER.model.dropout == 0.1
    (gradient, output), (gradient_again, output_again) = (
        gradient_and_output(PAPER),
        gradient_and_output(with_options(PAPER, remat=True)),
    )
    assert relative_distance(output, output_again) < 1e-5
    assert relative_distance(gradient, gradient_again) < 1e-5


def test_remat_reduces_memory_for_the_backward_pass():
    stored_bytes, scores = [], 3 * 2 * TOKENS**2  # of three examples and two heads
    for remat in (False, True):
        layers = {"note_layers": 3, "context_layers": 3, "decoder_layers": 3}
        loss, params = loss_of(with_options(PAPER, **layers, dtype="bfloat16", remat=remat))
        backward = jax.eval_shape(lambda params, loss=loss: jax.vjp(loss, params, has_aux=True)[1], params)
        stored_bytes.append(sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(backward)))
        assert max(leaf.size for leaf in jax.tree.leaves(backward)) < scores  # attention weights are never stored
    assert stored_bytes[1] < stored_bytes[0] / 3


def test_attention_gradients_match_finite_differences():
    attention = Attention(ModelConfig(width=8, heads=2, head_dim=4), rngs=nnx.Rngs(0))
    x, memory = (jax.random.normal(KEYS[i], (2, 3 + i, 8)) for i in (0, 1))
    mask = jnp.array([[True, True, True, False], [True, False, True, True]])

    def attend(x, memory):
        return attention(x, attention.keys_values(memory), mask)

    check_grads(jax.jit(attend), (x, memory), order=1, modes=["fwd", "rev"], atol=1e-2, rtol=1e-2)


def test_checkpoint_loads_with_other_dtype_and_remat(checkpoint, our_model):
    config = with_options(OURS, dtype="bfloat16", remat=True)
    model = SpectrogramTask(config=config).load(str(checkpoint))
    assert model.decoder.dtype == "bfloat16"
    jax.tree.map(np.testing.assert_array_equal, nnx.state(model, nnx.Param), nnx.state(our_model, nnx.Param))


def test_unsupported_dtype_raises_input_error():
    with pytest.raises(InputError, match=r"'float16'.*float32, bfloat16"):
        ModelConfig(dtype="float16")
