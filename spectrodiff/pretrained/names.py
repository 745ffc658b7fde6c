"""The names of parameters in our format, T5X and diffusers."""

from collections.abc import Iterator
from typing import NamedTuple

from spectrodiff.config import ModelConfig


class Name(NamedTuple):
    """The dotted path of a parameter in each format; `linear` ones are [in, out], and [out, in] in diffusers."""

    ours: str
    t5x: str
    diffusers: str
    linear: bool


def _linear(ours: str, t5x: str, diffusers: str) -> Name:
    return Name(f"{ours}.kernel", f"{t5x}.kernel", f"{diffusers}.weight", linear=True)


def _norm(ours: str, t5x: str, diffusers: str) -> Name:
    return Name(f"{ours}.scale", f"{t5x}.scale", f"{diffusers}.weight", linear=False)


def _positions(ours: str, t5x: str, diffusers: str) -> Name:
    return Name(
        f"{ours}.positions.table", f"{t5x}.Embed_0.embedding", f"{diffusers}.position_encoding.weight", linear=False
    )


def _attention(ours: str, t5x: str, diffusers: str, parts: tuple[str, ...]) -> Iterator[Name]:
    for part, theirs in zip(("query", "key", "value", "out"), parts, strict=True):
        yield _linear(f"{ours}.{part}", f"{t5x}.{part}", f"{diffusers}.{theirs}")


def _mlp(ours: str, t5x: str, diffusers: str) -> Iterator[Name]:
    for part in ("wi_0", "wi_1", "wo"):
        yield _linear(f"{ours}.{part}", f"{t5x}.{part}", f"{diffusers}.DenseReluDense.{part}")


def _encoder(ours: str, t5x: str, diffusers: str, layers: int) -> Iterator[Name]:
    yield _positions(ours, t5x, diffusers)
    for i in range(layers):
        block, layer, sub = f"{ours}.encoder.blocks.{i}", f"{t5x}.layers_{i}", f"{diffusers}.encoders.{i}.layer"
        yield _norm(f"{block}.norm_attention", f"{layer}.pre_attention_layer_norm", f"{sub}.0.layer_norm")
        yield from _attention(
            f"{block}.attention", f"{layer}.attention", f"{sub}.0.SelfAttention", ("q", "k", "v", "o")
        )
        yield _norm(f"{block}.norm_mlp", f"{layer}.pre_mlp_layer_norm", f"{sub}.1.layer_norm")
        yield from _mlp(f"{block}.mlp", f"{layer}.mlp", f"{sub}.1")
    yield _norm(f"{ours}.encoder.norm", f"{t5x}.encoder_norm", f"{diffusers}.layer_norm")


def _decoder(layers: int) -> Iterator[Name]:
    # Both formats call this stack `decoder`, as we do.
    yield _linear("decoder.noise_in", "decoder.time_emb_dense0", "decoder.conditioning_emb.0")
    yield _linear("decoder.noise_out", "decoder.time_emb_dense1", "decoder.conditioning_emb.2")
    yield _linear("decoder.project", *["decoder.continuous_inputs_projection"] * 2)
    yield _positions("decoder", "decoder", "decoder")
    heads = ("to_q", "to_k", "to_v", "to_out.0")
    for i in range(layers):
        block, layer, sub = f"decoder.blocks.{i}", f"decoder.layers_{i}", f"decoder.decoders.{i}.layer"
        yield _norm(f"{block}.norm_attention", f"{layer}.pre_self_attention_layer_norm", f"{sub}.0.layer_norm")
        yield _linear(
            f"{block}.film_attention.project", f"{layer}.FiLMLayer_0.DenseGeneral_0", f"{sub}.0.FiLMLayer.scale_bias"
        )
        yield from _attention(f"{block}.self_attention", f"{layer}.self_attention", f"{sub}.0.attention", heads)
        yield _norm(f"{block}.norm_memory", f"{layer}.pre_cross_attention_layer_norm", f"{sub}.1.layer_norm")
        yield from _attention(
            f"{block}.cross_attention", f"{layer}.MultiHeadDotProductAttention_0", f"{sub}.1.attention", heads
        )
        yield _norm(f"{block}.norm_mlp", f"{layer}.pre_mlp_layer_norm", f"{sub}.2.layer_norm")
        yield _linear(f"{block}.film_mlp.project", f"{layer}.FiLMLayer_1.DenseGeneral_0", f"{sub}.2.film.scale_bias")
        yield from _mlp(f"{block}.mlp", f"{layer}.mlp", f"{sub}.2")
    yield _norm("decoder.norm", *["decoder.decoder_norm"] * 2)
    yield _linear("decoder.out", "decoder.spec_out_dense", "decoder.spec_out")


def names(model: ModelConfig) -> list[Name]:
    """Returns the names of all parameters of the paper's network with the number of layers in `model`.

    The released code calls the note encoder `encoder` if there is no context; diffusers has no such model.
    """
    notes = "token_encoder" if model.with_context else "encoder"
    table = [
        Name(
            "note_encoder.embedding.embedding",
            f"{notes}.token_embedder.embedding",
            "notes_encoder.token_embedder.weight",
            linear=False,
        ),
        *_encoder("note_encoder", notes, "notes_encoder", model.note_layers),
        *_decoder(model.decoder_layers),
    ]
    if model.with_context:
        table += [
            _linear("context_encoder.project", *["continuous_encoder.input_proj"] * 2),
            *_encoder("context_encoder", *["continuous_encoder"] * 2, model.context_layers),
        ]
    return table
