import dataclasses
import re

import pytest
from inputs import PAPER
from weights import random_arrays

from spectrodiff.pretrained.names import names

NO_CONTEXT = dataclasses.replace(PAPER, model=dataclasses.replace(PAPER.model, with_context=False))
UNEQUAL = dataclasses.replace(
    PAPER, model=dataclasses.replace(PAPER.model, note_layers=3, context_layers=1, decoder_layers=2)
)
# Parameter names of a network with one layer per stack, in the released T5X checkpoints and in diffusers.
T5X = sorted(re.findall(r"\S+", """
token_encoder.token_embedder.embedding token_encoder.Embed_0.embedding
token_encoder.layers_0.pre_attention_layer_norm.scale
token_encoder.layers_0.attention.query.kernel token_encoder.layers_0.attention.key.kernel
token_encoder.layers_0.attention.value.kernel token_encoder.layers_0.attention.out.kernel
token_encoder.layers_0.pre_mlp_layer_norm.scale
token_encoder.layers_0.mlp.wi_0.kernel token_encoder.layers_0.mlp.wi_1.kernel token_encoder.layers_0.mlp.wo.kernel
token_encoder.encoder_norm.scale
continuous_encoder.input_proj.kernel continuous_encoder.Embed_0.embedding
continuous_encoder.layers_0.pre_attention_layer_norm.scale
continuous_encoder.layers_0.attention.query.kernel continuous_encoder.layers_0.attention.key.kernel
continuous_encoder.layers_0.attention.value.kernel continuous_encoder.layers_0.attention.out.kernel
continuous_encoder.layers_0.pre_mlp_layer_norm.scale continuous_encoder.layers_0.mlp.wi_0.kernel
continuous_encoder.layers_0.mlp.wi_1.kernel continuous_encoder.layers_0.mlp.wo.kernel
continuous_encoder.encoder_norm.scale
decoder.time_emb_dense0.kernel decoder.time_emb_dense1.kernel decoder.Embed_0.embedding
decoder.continuous_inputs_projection.kernel
decoder.layers_0.pre_self_attention_layer_norm.scale decoder.layers_0.FiLMLayer_0.DenseGeneral_0.kernel
decoder.layers_0.self_attention.query.kernel decoder.layers_0.self_attention.key.kernel
decoder.layers_0.self_attention.value.kernel decoder.layers_0.self_attention.out.kernel
decoder.layers_0.pre_cross_attention_layer_norm.scale
decoder.layers_0.MultiHeadDotProductAttention_0.query.kernel decoder.layers_0.MultiHeadDotProductAttention_0.key.kernel
decoder.layers_0.MultiHeadDotProductAttention_0.value.kernel decoder.layers_0.MultiHeadDotProductAttention_0.out.kernel
decoder.layers_0.pre_mlp_layer_norm.scale decoder.layers_0.FiLMLayer_1.DenseGeneral_0.kernel
decoder.layers_0.mlp.wi_0.kernel decoder.layers_0.mlp.wi_1.kernel decoder.layers_0.mlp.wo.kernel
decoder.decoder_norm.scale decoder.spec_out_dense.kernel
"""))  # fmt: skip
DIFFUSERS = sorted(re.findall(r"\S+", """
notes_encoder.token_embedder.weight notes_encoder.position_encoding.weight
notes_encoder.encoders.0.layer.0.layer_norm.weight
notes_encoder.encoders.0.layer.0.SelfAttention.q.weight notes_encoder.encoders.0.layer.0.SelfAttention.k.weight
notes_encoder.encoders.0.layer.0.SelfAttention.v.weight notes_encoder.encoders.0.layer.0.SelfAttention.o.weight
notes_encoder.encoders.0.layer.1.layer_norm.weight notes_encoder.encoders.0.layer.1.DenseReluDense.wi_0.weight
notes_encoder.encoders.0.layer.1.DenseReluDense.wi_1.weight notes_encoder.encoders.0.layer.1.DenseReluDense.wo.weight
notes_encoder.layer_norm.weight
continuous_encoder.input_proj.weight continuous_encoder.position_encoding.weight
continuous_encoder.encoders.0.layer.0.layer_norm.weight
continuous_encoder.encoders.0.layer.0.SelfAttention.q.weight
continuous_encoder.encoders.0.layer.0.SelfAttention.k.weight
continuous_encoder.encoders.0.layer.0.SelfAttention.v.weight
continuous_encoder.encoders.0.layer.0.SelfAttention.o.weight
continuous_encoder.encoders.0.layer.1.layer_norm.weight
continuous_encoder.encoders.0.layer.1.DenseReluDense.wi_0.weight
continuous_encoder.encoders.0.layer.1.DenseReluDense.wi_1.weight
continuous_encoder.encoders.0.layer.1.DenseReluDense.wo.weight
continuous_encoder.layer_norm.weight
decoder.conditioning_emb.0.weight decoder.conditioning_emb.2.weight decoder.position_encoding.weight
decoder.continuous_inputs_projection.weight
decoder.decoders.0.layer.0.layer_norm.weight decoder.decoders.0.layer.0.FiLMLayer.scale_bias.weight
decoder.decoders.0.layer.0.attention.to_q.weight decoder.decoders.0.layer.0.attention.to_k.weight
decoder.decoders.0.layer.0.attention.to_v.weight decoder.decoders.0.layer.0.attention.to_out.0.weight
decoder.decoders.0.layer.1.layer_norm.weight
decoder.decoders.0.layer.1.attention.to_q.weight decoder.decoders.0.layer.1.attention.to_k.weight
decoder.decoders.0.layer.1.attention.to_v.weight decoder.decoders.0.layer.1.attention.to_out.0.weight
decoder.decoders.0.layer.2.layer_norm.weight decoder.decoders.0.layer.2.film.scale_bias.weight
decoder.decoders.0.layer.2.DenseReluDense.wi_0.weight decoder.decoders.0.layer.2.DenseReluDense.wi_1.weight
decoder.decoders.0.layer.2.DenseReluDense.wo.weight
decoder.decoder_norm.weight decoder.spec_out.weight
"""))  # fmt: skip


def test_names_match_t5x_and_diffusers_parameter_names():
    table = names(PAPER.model)
    assert sorted(name.t5x for name in table) == T5X
    assert sorted(name.diffusers for name in table) == DIFFUSERS


@pytest.mark.parametrize("config", [PAPER, NO_CONTEXT, UNEQUAL], ids=["paper", "no context", "unequal depths"])
def test_every_parameter_has_one_t5x_and_one_diffusers_name(config):
    table, arrays = names(config.model), random_arrays(config)
    assert sorted(name.ours for name in table) == sorted(arrays)
    assert len({name.t5x for name in table}) == len({name.diffusers for name in table}) == len(table)
    for name in table:
        assert name.linear == (arrays[name.ours].ndim == 2 and name.ours.endswith(".kernel"))


@pytest.mark.parametrize(
    ("ours", "t5x", "diffusers"),
    [
        ("decoder.blocks.1.norm_memory.scale", "layers_1.pre_cross_attention_layer_norm", "1.layer.1.layer_norm"),
        ("decoder.blocks.0.cross_attention.out.kernel", "MultiHeadDotProductAttention_0.out", "1.attention.to_out.0"),
        ("decoder.blocks.0.self_attention.value.kernel", "layers_0.self_attention.value", "0.layer.0.attention.to_v"),
        ("decoder.blocks.1.film_mlp.project.kernel", "FiLMLayer_1.DenseGeneral_0", "layer.2.film.scale_bias"),
        ("decoder.noise_out.kernel", "time_emb_dense1", "conditioning_emb.2"),
        ("note_encoder.encoder.blocks.2.mlp.wi_1.kernel", "layers_2.mlp.wi_1", "2.layer.1.DenseReluDense.wi_1"),
        ("context_encoder.positions.table", "continuous_encoder.Embed_0", "continuous_encoder.position_encoding"),
        ("context_encoder.encoder.norm.scale", "continuous_encoder.encoder_norm", "continuous_encoder.layer_norm"),
    ],
)  # fmt: skip
def test_names_map_to_the_corresponding_parameters(ours, t5x, diffusers):
    """Equal sets of names are not enough, since two names could be swapped."""
    (name,) = (name for name in names(UNEQUAL.model) if name.ours == ours)
    assert name.t5x.rpartition(".")[0].endswith(t5x)
    assert name.diffusers.rpartition(".")[0].endswith(diffusers)


def test_t5x_note_encoder_is_called_encoder_without_context():
    t5x = {name.t5x for name in names(NO_CONTEXT.model)}
    assert "encoder.token_embedder.embedding" in t5x
    assert not any(name.startswith(("token_encoder", "continuous_encoder")) for name in t5x)
