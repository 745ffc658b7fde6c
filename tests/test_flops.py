"""Operations counted by hand, by XLA for convolutions, and by formula for whole models."""

import json

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
from spectrodiff.training.flops import count_flops, datasheet_peak, peak_flops, step_flops
from spectrodiff.training.optimizers import adamw
from spectrodiff.training.spectrogram import SpectrogramTask
from spectrodiff.training.steps import Others
from spectrodiff.training.throughput import ThroughputMeter


def of(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


X, W = of(3, 4), of(4, 4)
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
def test_products_are_counted_wherever_they_are(function, expected):
    assert count_flops(function, X, W) == expected


UNCOUNTABLE = {
    "while": lambda x, w: jax.lax.while_loop(lambda c: c.sum() < 9, lambda c: c @ w, x),
    "shard_map": jax.shard_map(
        lambda x, w: x @ w,
        mesh=jax.sharding.AbstractMesh((3,), ("data",)),
        in_specs=(jax.P("data"), jax.P()),
        out_specs=jax.P("data"),
    ),
    "pallas_call": lambda x, w: pallas.pallas_call(
        lambda x, w, out: out.__setitem__(..., x[...] @ w[...]), out_shape=of(3, 4), interpret=True
    )(x, w),
}


@pytest.mark.parametrize("name", UNCOUNTABLE)
def test_what_cannot_be_counted(name, capsys):
    """Training, which asks for a step's operations, has to do without them; it is told why, in one line."""
    with pytest.raises(ValueError, match=f"cannot count the operations of a {name}"):
        count_flops(UNCOUNTABLE[name], X, W)
    assert step_flops(UNCOUNTABLE[name], X, W) is None
    (line,) = capsys.readouterr().err.splitlines()
    assert name in line


def test_an_error_of_the_loss_is_not_kept_from_its_caller():
    def failing(x, w):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        step_flops(failing, X, W)


class Searching(Line):
    """Has products in its loss of which nobody knows how many there are."""

    def loss(self, model, batch, key, others):
        x = jax.lax.stop_gradient(batch["x"])
        jax.lax.while_loop(lambda c: jnp.abs(c).max() > 1.0, lambda c: 0.1 * c @ jnp.eye(c.shape[1]), x)
        return super().loss(model, batch, key, others)


def test_a_run_goes_on_without_its_utilisation(tmp_path, capsys):
    task = Searching()
    loop.train(tmp_path, task=task, optimizer=adamw(0.1), steps=3, log_every=1)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "examples_per_second" in row]
    assert [row["step"] for row in steps] == [1, 2, 3]
    assert not any("utilisation" in row for row in steps)
    assert len(task.saved) == 1
    assert capsys.readouterr().err.count("utilisation is unknown: cannot count the operations of a while") == 1


@pytest.mark.parametrize(("flops", "figures"), [(6, {"utilisation"}), (0, {"utilisation"}), (None, set())])
def test_utilisation_is_left_out_where_it_is_unknown(flops, figures):
    speed = ThroughputMeter(peak=1e9)
    assert "utilisation" not in speed.read(1, 4)
    speed.flops = flops
    assert speed.read(1, 4).keys() == {"examples_per_second", "waiting"} | figures


def test_a_step_is_three_times_its_loss():
    """Which is what the gradient of everything takes, the input included."""

    def loss(x, w, v):
        return jnp.square(jnp.tanh(x @ w) @ v).sum()

    args = of(5, 7), of(7, 11), of(11, 3)
    assert step_flops(loss, *args) == 3 * 2 * 5 * 11 * (7 + 3)
    assert step_flops(loss, *args) == count_flops(jax.grad(loss, argnums=(0, 1, 2)), *args)


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
def test_convolutions_are_counted_as_xla_counts_them(options):
    def convolve(x, kernel):
        defaults = {"window_strides": (1,), "dimension_numbers": ("NTC", "TIO", "NTC")}
        return jax.lax.conv_general_dilated(x, kernel, **(defaults | options))

    args = of(2, 31, 6), of(7, 6 // options.get("feature_group_count", 1), 9)
    theirs = jax.jit(convolve).lower(*args).cost_analysis()["flops"]
    assert count_flops(convolve, *args) == theirs


def transformer(layers, n, cfg, cross=0):
    """Of one example: `layers` blocks over n places, each with an MLP and, attending to `cross` others, attention."""
    inner = cfg.heads * cfg.head_dim
    attention = 4 * n * cfg.width * inner + 2 * n * n * inner
    if cross:
        attention += 2 * (n + cross) * cfg.width * inner + 2 * n * cross * inner
    return 2 * layers * (attention + 3 * n * cfg.width * cfg.mlp_width)


def decoder(cfg, memory, projections):
    noise = 2 * (cfg.width * 4 * cfg.width + (4 * cfg.width) ** 2)
    film = cfg.decoder_layers * 2 * 2 * 4 * cfg.width * 2 * cfg.width
    in_and_out = projections * 2 * 256 * 128 * cfg.width
    return noise + film + in_and_out + transformer(cfg.decoder_layers, 256, cfg, cross=memory)


def forward_flops(config, size, tokens):
    task = SpectrogramTask(config=config)
    model = nnx.eval_shape(lambda: SpectrogramModel(config, rngs=nnx.Rngs(0)))
    graph, params, buffers = states.split(model)
    batch = {"tokens": of(size, tokens, dtype=jnp.int32)}
    for name in ("target", "context"):
        batch |= {name: of(size, 256, 128), f"{name}_mask": of(size, 256, dtype=jnp.bool_)}

    def loss(params, buffers, batch):
        model = nnx.merge(graph, params, buffers)
        return task.loss(model, batch, jax.random.key(0), Others(lambda: model, {}))

    return count_flops(loss, params, buffers, batch)


def test_the_papers_base_model():
    """But for its depth, which takes long to trace."""
    cfg = ModelConfig(note_layers=1, context_layers=2, decoder_layers=3)
    context = 2 * 256 * 128 * 768 + transformer(2, 256, cfg)
    one = transformer(1, 2048, cfg) + context + decoder(cfg, 2048 + 256, projections=2)
    assert forward_flops(SpectrogramConfig(model=cfg), 2, 2048) == 2 * one


def test_the_papers_autoregressive_baseline():
    """All frames at once: what the causal mask hides is computed all the same."""
    cfg = ModelConfig(note_layers=1, context_layers=0, decoder_layers=3, with_context=False, mask_padding=False)
    in_and_out = 2 * 256 * 128 * 768 + 2 * 256 * 768 * 8 * (1 + 2 * 128)
    one = transformer(1, 2048, cfg) + in_and_out + transformer(3, 256, cfg, cross=2048)
    config = SpectrogramConfig(model=cfg, decoder=AutoregressiveConfig(components=8))
    assert forward_flops(config, 2, 2048) == 2 * one


def test_our_demo_model():
    sizes = {"width": 128, "heads": 4, "head_dim": 32, "mlp_width": 512}
    layers = {"note_layers": 2, "context_layers": 1, "decoder_layers": 3}
    ours = {"compact_notes": True, "event_times": True, "note_roll": True, "tokens_per_note": 4, "dropout": 0.0}
    cfg = ModelConfig(**sizes, **layers, **ours)
    config = SpectrogramConfig(TokenizerConfig(velocity_bins=32), cfg, DiffusionConfig(process=Process(X0())))
    notes, kernels = 640 // 4, 20
    roll = 2 * notes * 128 * kernels * 128 + 2 * 256 * (notes * kernels) * 128
    context = 2 * 256 * 128 * 128 + transformer(1, 256, cfg)
    one = transformer(2, notes, cfg) + context + roll + decoder(cfg, notes + 256, projections=3)
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
def test_known_peaks(kind, dtype, expected):
    assert datasheet_peak(kind, dtype) == expected


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("NVIDIA L40S", "bfloat16"),
        ("NVIDIA A10G", "float32"),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "float32"),
        ("Tesla T4", "bfloat16"),  # which it can only imitate
        ("NVIDIA H100 80GB HBM3", "float64"),
        ("cpu", "float32"),
    ],
)
def test_unknown_peaks(kind, dtype):
    assert datasheet_peak(kind, dtype) is None


def test_this_machine_is_measured_once():
    (device, *_) = jax.devices("cpu")
    peak = peak_flops(device, jnp.float32)
    assert 1e8 < peak < 1e15
    assert peak_flops(device, jnp.float32) == peak
