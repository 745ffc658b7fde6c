"""FLOPs against counts by hand, XLA's counts of convolutions, and formulas for whole models."""

import json
import re
import time

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.experimental import pallas
from line import Line

from spectrodiff.config import ModelConfig, TokenizerConfig
from spectrodiff.diffusion.objective import X0
from spectrodiff.diffusion.process import Process
from spectrodiff.models.autoregressive_decoder import AutoregressiveConfig
from spectrodiff.models.diffusion_decoder import DiffusionConfig
from spectrodiff.models.spectrogram_model import SpectrogramConfig, SpectrogramModel
from spectrodiff.training import loop
from spectrodiff.training import state as states
from spectrodiff.training.flops import datasheet_peak, peak_flops, step_flops
from spectrodiff.training.optimizers import adamw
from spectrodiff.training.spectrogram import SpectrogramTask
from spectrodiff.training.steps import Others
from spectrodiff.training.throughput import ThroughputMeter


def shape_of(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


X, W = shape_of(3, 4), shape_of(4, 4)
ONCE = 2 * 3 * 4 * 4


@jax.custom_vjp
def _custom(x, w):
    return x @ w


_custom.defvjp(lambda x, w: (x @ w, (x, w)), lambda kept, g: (g, g))


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x, w: jnp.tanh(x @ w) + x.sum(), ONCE),
        (jax.jit(lambda x, w: x @ w), ONCE),
        (jax.checkpoint(lambda x, w: x @ w @ w), 2 * ONCE),
        (_custom, ONCE),
        (lambda x, w: jax.nn.relu(x @ w), ONCE),  # custom_jvp
        (lambda x, w: jax.lax.scan(lambda c, _: (c @ w, None), x, length=5)[0], 5 * ONCE),
        (lambda x, w: jax.lax.map(lambda row: jax.lax.fori_loop(0, 7, lambda _, r: r @ w, row), x), 7 * ONCE),
        (lambda x, w: jax.lax.cond(x[0, 0] > 0, lambda: x, lambda: x @ w @ w), 2 * ONCE),
        (lambda x, w: jnp.einsum("ab,cd->abcd", x, w), 2 * 3 * 4 * 4 * 4),
        (lambda x, w: jnp.einsum("bi,bij->bj", x, jnp.stack([w] * 3)), ONCE),
        (lambda x, w: jax.lax.while_loop(lambda c: c.sum() < 9, lambda c: c + 1, x), 0),
    ],
)
def test_matrix_products_are_counted_in_nested_functions(function, expected):
    assert step_flops(function, X, W) == 3 * expected


UNCOUNTABLE = {
    "while": lambda x, w: jax.lax.while_loop(lambda c: c.sum() < 9, lambda c: c @ w, x),
    "shard_map": jax.shard_map(
        lambda x, w: x @ w,
        mesh=jax.sharding.AbstractMesh((3,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)),
        in_specs=(jax.P("data"), jax.P()),
        out_specs=jax.P("data"),
    ),
    "pallas_call": lambda x, w: pallas.pallas_call(
        lambda x, w, out: out.__setitem__(..., x[...] @ w[...]), out_shape=shape_of(3, 4), interpret=True
    )(x, w),
}


@pytest.mark.parametrize("name", UNCOUNTABLE)
def test_uncountable_operations_give_a_warning_and_no_flops(name, capsys):
    assert step_flops(UNCOUNTABLE[name], X, W) is None
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(rf"\b{name}\b", line)


def test_step_flops_propagates_errors_of_the_loss():
    def failing(x, w):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        step_flops(failing, X, W)


class UncountableLoss(Line):
    """Its loss has a while loop with matrix products, whose number is unknown before it runs."""

    def loss(self, model, batch, key, others):
        x = jax.lax.stop_gradient(batch["x"])
        jax.lax.while_loop(lambda c: jnp.abs(c).max() > 1.0, lambda c: 0.1 * c @ jnp.eye(c.shape[1]), x)
        return super().loss(model, batch, key, others)


def test_training_runs_without_utilisation_if_flops_are_unknown(tmp_path, capsys):
    task = UncountableLoss()
    loop.train(tmp_path, task=task, optimizer=adamw(0.1), steps=3, log_every=1)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "examples_per_second" in row]
    assert [row["step"] for row in steps] == [1, 2, 3]
    assert not any("utilisation" in row for row in steps)
    assert len(task.saved) == 1
    assert capsys.readouterr().err.count("utilisation is unknown: cannot count the operations of a while") == 1


@pytest.mark.parametrize(("flops", "figures"), [(6, {"utilisation"}), (0, {"utilisation"}), (None, set())])
def test_throughput_meter_omits_unknown_utilisation(flops, figures):
    speed = ThroughputMeter(peak=1e9)
    assert "utilisation" not in speed.read(1, 4)
    speed.flops = flops
    assert speed.read(1, 4).keys() == {"examples_per_second", "waiting"} | figures


def test_throughput_meter_does_not_count_pauses():
    speed = ThroughputMeter(peak=1e9)
    with speed.paused():
        time.sleep(0.5)
    time.sleep(0.01)
    assert speed.read(1, 4)["examples_per_second"] > 4 / 0.4


def test_step_flops_are_three_times_the_loss():
    """That equals the count of the gradient with respect to all arguments, including the input."""

    def loss(x, w, v):
        return jnp.square(jnp.tanh(x @ w) @ v).sum()

    args = shape_of(5, 7), shape_of(7, 11), shape_of(11, 3)
    assert step_flops(loss, *args) == 3 * 2 * 5 * 11 * (7 + 3)
    assert 3 * step_flops(loss, *args) == step_flops(jax.grad(loss, argnums=(0, 1, 2)), *args)


@pytest.mark.parametrize(
    "options",
    [
        {"padding": "VALID"},
        {"padding": "SAME"},
        {"padding": [(5, 0)], "window_strides": (3,)},
        {"padding": "SAME", "rhs_dilation": (4,)},
        {"padding": [(6, 7)], "lhs_dilation": (4,)},  # transposed
        {"padding": [(2, 3)], "lhs_dilation": (3,), "rhs_dilation": (2,), "window_strides": (2,)},
        {"padding": "SAME", "feature_group_count": 3},
    ],
)
def test_convolution_flops_equal_xla(options):
    def convolve(x, kernel):
        defaults = {"window_strides": (1,), "dimension_numbers": ("NTC", "TIO", "NTC")}
        return jax.lax.conv_general_dilated(x, kernel, **(defaults | options))

    args = shape_of(2, 31, 6), shape_of(7, 6 // options.get("feature_group_count", 1), 9)
    theirs = jax.jit(convolve).lower(*args).cost_analysis()["flops"]
    assert step_flops(convolve, *args) == 3 * theirs


def transformer_flops(layers, n, cfg, cross=0):
    """FLOPs of `layers` blocks for one example of n positions, with cross-attention if there are `cross` others."""
    inner = cfg.heads * cfg.head_dim
    attention = 4 * n * cfg.width * inner + 2 * n * n * inner
    if cross:
        attention += 2 * (n + cross) * cfg.width * inner + 2 * n * cross * inner
    return 2 * layers * (attention + 3 * n * cfg.width * cfg.mlp_width)


def decoder_flops(cfg, memory, projections):
    noise = 2 * (cfg.width * 4 * cfg.width + (4 * cfg.width) ** 2)
    film = cfg.decoder_layers * 2 * 2 * 4 * cfg.width * 2 * cfg.width
    in_and_out = projections * 2 * 256 * 128 * cfg.width
    return noise + film + in_and_out + transformer_flops(cfg.decoder_layers, 256, cfg, cross=memory)


def forward_flops(config, size, tokens):
    task = SpectrogramTask(config=config)
    model = nnx.eval_shape(lambda: SpectrogramModel(config, rngs=nnx.Rngs(0)))
    graph, params, buffers = states.split(model)
    batch = {"tokens": shape_of(size, tokens, dtype=jnp.int32)}
    for name in ("target", "context"):
        batch |= {name: shape_of(size, 256, 128), f"{name}_mask": shape_of(size, 256, dtype=jnp.bool_)}

    def loss(params, buffers, batch):
        model = nnx.merge(graph, params, buffers)
        return task.loss(model, batch, jax.random.key(0), Others(lambda: model, {}))

    flops, rest = divmod(step_flops(loss, params, buffers, batch), 3)
    assert not rest
    return flops


def test_flops_of_the_paper_base_model():
    """With fewer layers, as tracing all of them takes long."""
    cfg = ModelConfig(note_layers=1, context_layers=2, decoder_layers=3)
    context = 2 * 256 * 128 * 768 + transformer_flops(2, 256, cfg)
    one = transformer_flops(1, 2048, cfg) + context + decoder_flops(cfg, 2048 + 256, projections=2)
    assert forward_flops(SpectrogramConfig(model=cfg), 2, 2048) == 2 * one


def test_flops_of_the_paper_autoregressive_baseline():
    """All frames are computed in parallel, including the products that the causal mask hides."""
    cfg = ModelConfig(note_layers=1, context_layers=0, decoder_layers=3, with_context=False, mask_padding=False)
    in_and_out = 2 * 256 * 128 * 768 + 2 * 256 * 768 * 8 * (1 + 2 * 128)
    one = transformer_flops(1, 2048, cfg) + in_and_out + transformer_flops(3, 256, cfg, cross=2048)
    config = SpectrogramConfig(model=cfg, decoder=AutoregressiveConfig(components=8))
    assert forward_flops(config, 2, 2048) == 2 * one


def test_flops_of_the_demo_model():
    sizes = {"width": 128, "heads": 4, "head_dim": 32, "mlp_width": 512}
    layers = {"note_layers": 2, "context_layers": 1, "decoder_layers": 3}
    ours = {"compact_notes": True, "event_times": True, "note_roll": True, "tokens_per_note": 4, "dropout": 0.0}
    cfg = ModelConfig(**sizes, **layers, **ours)
    config = SpectrogramConfig(TokenizerConfig(velocity_bins=32), cfg, DiffusionConfig(process=Process(X0())))
    notes, kernels = 640 // 4, 20
    roll = 2 * notes * 128 * kernels * 128 + 2 * 256 * (notes * kernels) * 128
    context = 2 * 256 * 128 * 128 + transformer_flops(1, 256, cfg)
    one = transformer_flops(2, notes, cfg) + context + roll + decoder_flops(cfg, notes + 256, projections=3)
    assert forward_flops(config, 8, 640) == 8 * one


@pytest.mark.parametrize(
    ("kind", "dtype", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989e12),
        ("NVIDIA H100 80GB HBM3", "float32", 494e12),
        ("NVIDIA H100 PCIe", "bfloat16", 756e12),
        ("NVIDIA GH200 480GB", "float16", 989e12),
        ("NVIDIA A100-SXM4-40GB", "float32", 156e12),
        ("NVIDIA L4", "bfloat16", 121e12),
        ("Tesla T4", "float32", 8.1e12),
        ("TPU v3", "float32", 61.5e12),
        ("TPU v5 lite", "bfloat16", 197e12),
        ("TPU v5", "bfloat16", 459e12),
    ],
)
def test_datasheet_peaks_of_known_devices(kind, dtype, expected):
    assert datasheet_peak(kind, dtype) == expected


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("NVIDIA L40S", "bfloat16"),
        ("NVIDIA A10G", "float32"),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "float32"),
        ("Tesla T4", "bfloat16"),  # emulated, not supported in hardware
        ("NVIDIA H100 80GB HBM3", "float64"),
        ("cpu", "float32"),
    ],
)
def test_unknown_devices_have_no_datasheet_peak(kind, dtype):
    assert datasheet_peak(kind, dtype) is None


def test_peak_of_an_unknown_device_is_measured_once():
    (device, *_) = jax.devices("cpu")
    peak = peak_flops(device, jnp.float32)
    assert 1e8 < peak < 1e15
    assert peak_flops(device, jnp.float32) == peak
