"""Reading and writing the folder layout of diffusers; tests/peers compares with the library itself."""

import dataclasses
import json

import ml_dtypes
import numpy as np
import pytest
from inputs import PAPER
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from torch_writer import write_torch
from weights import random_arrays

from spectrodiff.config import TokenizerConfig
from spectrodiff.diffusion.objective import X0, V
from spectrodiff.diffusion.process import Process
from spectrodiff.errors import InputError
from spectrodiff.models.autoregressive_decoder import AutoregressiveConfig
from spectrodiff.models.diffusion_decoder import DiffusionConfig
from spectrodiff.models.spectrogram_model import SpectrogramConfig
from spectrodiff.pretrained import diffusers

MODEL = dataclasses.replace(PAPER.model, heads=3, head_dim=8, note_layers=2, decoder_layers=3)
CONFIG = SpectrogramConfig(TokenizerConfig(1, "slakh", MODEL.max_tokens), MODEL)
ARRAYS = random_arrays(CONFIG)
STACKS = ("notes_encoder", "continuous_encoder", "decoder")
WEIGHTS = "diffusion_pytorch_model.safetensors"


def write(folder, config=CONFIG, arrays=ARRAYS, with_vocoder=False):
    folder.mkdir()
    diffusers.write(folder, config, arrays, with_vocoder=with_vocoder)


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "pipeline")
    return tmp_path / "pipeline"


def edit_config(folder, stack, **values):
    path = folder / stack / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def edit_weights(folder, stack, edit):
    arrays = load_file(folder / stack / WEIGHTS)
    edit(arrays)
    save_file(arrays, folder / stack / WEIGHTS)


def convert_to_bin(folder):
    """Replaces the safetensors by the pickles that older releases saved."""
    for stack in STACKS:
        write_torch(folder / stack / "diffusion_pytorch_model.bin", load_file(folder / stack / WEIGHTS))
        (folder / stack / WEIGHTS).unlink()


# ---- round trips


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_weights_round_trip_exactly(folder, kind):
    if kind == "bin":
        convert_to_bin(folder)
    config, arrays = diffusers.read(folder)
    assert config == CONFIG
    assert arrays.keys() == ARRAYS.keys()
    for name, array in arrays.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, ARRAYS[name])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_16_bit_dtypes_are_kept(tmp_path, dtype):
    halves = {name: array.astype(dtype) for name, array in ARRAYS.items()}
    write(tmp_path / "pipeline", arrays=halves)
    _, arrays = diffusers.read(tmp_path / "pipeline")
    for name, array in arrays.items():
        assert array.dtype == dtype
        np.testing.assert_array_equal(array, halves[name])


def test_safetensors_take_precedence_over_pickles(folder):
    for stack in STACKS:
        (folder / stack / "diffusion_pytorch_model.bin").write_bytes(b"never read")
    np.testing.assert_array_equal(diffusers.read(folder)[1]["decoder.out.kernel"], ARRAYS["decoder.out.kernel"])


def test_only_linear_weights_are_transposed(folder):
    """They are [out, in] in diffusers. The model's width is 32, its heads have 24 in all, its MLPs 64."""
    decoder, notes = (load_file(folder / stack / WEIGHTS) for stack in ("decoder", "notes_encoder"))
    assert notes["encoders.1.layer.1.DenseReluDense.wo.weight"].shape == (32, 64)
    assert decoder["decoders.2.layer.0.attention.to_q.weight"].shape == (24, 32)
    assert decoder["decoders.2.layer.0.attention.to_out.0.weight"].shape == (32, 24)
    assert decoder["conditioning_emb.0.weight"].shape == (128, 32)
    assert notes["token_embedder.weight"].shape == (1536, 32)
    assert decoder["position_encoding.weight"].shape == (256, 32)
    np.testing.assert_array_equal(
        decoder["decoders.1.layer.2.film.scale_bias.weight"], ARRAYS["decoder.blocks.1.film_mlp.project.kernel"].T
    )
    np.testing.assert_array_equal(notes["position_encoding.weight"], ARRAYS["note_encoder.positions.table"])


def test_written_configs_have_the_arguments_of_diffusers(folder):
    """As documented for diffusers 0.42.1; the published configs have the same keys."""
    sizes = {"d_model": 32, "num_heads": 3, "d_kv": 8, "d_ff": 64, "dropout_rate": 0.1}
    encoder = sizes | {"feed_forward_proj": "gated-gelu", "is_decoder": False}
    expected = {
        "notes_encoder": encoder | {"num_layers": 2, "max_length": 128, "vocab_size": 1536},
        "continuous_encoder": encoder | {"num_layers": 1, "input_dims": 128, "targets_context_length": 256},
        "decoder": sizes
        | {"num_layers": 3, "input_dims": 128, "targets_length": 256, "max_decoder_noise_time": 20000.0},
    }
    for stack, config in expected.items():
        written = json.loads((folder / stack / "config.json").read_text())
        del written["_class_name"]
        assert written == config


@pytest.mark.parametrize("with_vocoder", [False, True])
def test_model_index_names_the_components(tmp_path, with_vocoder):
    write(tmp_path / "pipeline", with_vocoder=with_vocoder)
    index = json.loads((tmp_path / "pipeline" / "model_index.json").read_text())
    assert index.pop("_class_name") == "SpectrogramDiffusionPipeline"
    assert index.pop("scheduler") == ["diffusers", "DDPMScheduler"]
    assert {stack: index[stack] for stack in STACKS} == {
        "notes_encoder": ["spectrogram_diffusion", "SpectrogramNotesEncoder"],
        "continuous_encoder": ["spectrogram_diffusion", "SpectrogramContEncoder"],
        "decoder": ["diffusers", "T5FilmDecoder"],
    }
    assert index.keys() == {*STACKS, "melgan"}
    assert (index["melgan"] == ["diffusers", "OnnxRuntimeModel"]) == with_vocoder
    scheduler = json.loads((tmp_path / "pipeline" / "scheduler" / "scheduler_config.json").read_text())
    assert scheduler == {
        "_class_name": "DDPMScheduler",
        "beta_schedule": "squaredcos_cap_v2",
        "variance_type": "fixed_large",
        "num_train_timesteps": 1000,
    }


def test_safetensors_have_the_format_metadata_of_diffusers(folder):
    """The library refuses safetensors without it."""
    for stack in STACKS:
        with safe_open(folder / stack / WEIGHTS, "np") as file:
            assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize(
    ("part", "options"),
    [
        ("tokenizer", {"velocity_bins": 127}),
        ("tokenizer", {"program_map": "midi_class"}),
        ("tokenizer", {"ghost_ties": False}),
        ("tokenizer", {"max_tokens": 64}),
        ("decoder", {"mean": -0.3}),
        ("decoder", {"std": 0.4}),
        ("model", {"with_context": False}),
        ("model", {"event_times": True}),
        ("model", {"compact_notes": True}),
        ("model", {"mask_padding": False}),
    ],
    ids=str,
)
def test_settings_unknown_to_diffusers_are_refused(tmp_path, part, options):
    config = dataclasses.replace(CONFIG, **{part: dataclasses.replace(getattr(CONFIG, part), **options)})

    ((name, value),) = options.items()
    with pytest.raises(InputError, match=f"{name} = {value!r}"):
        diffusers.write(tmp_path, config, {}, with_vocoder=False)
    assert list(tmp_path.iterdir()) == []


def test_note_roll_is_refused(tmp_path):
    model = dataclasses.replace(MODEL, compact_notes=True, note_roll=True)
    config = SpectrogramConfig(CONFIG.tokenizer, model, DiffusionConfig(process=Process(X0())))
    with pytest.raises(InputError, match=r"\b(compact_notes|note_roll) = True"):
        diffusers.write(tmp_path, config, {}, with_vocoder=False)


@pytest.mark.parametrize(
    ("decoder", "message"),
    [
        (DiffusionConfig(process=Process(V())), r"\bv\b.*\bdiffusers\b.*\beps$"),
        (AutoregressiveConfig(), r"\bkind = 'autoregressive'.*'diffusion'$"),
    ],
    ids=["v", "autoregressive"],
)
def test_other_decoders_and_predictions_are_refused(tmp_path, decoder, message):
    with pytest.raises(InputError, match=message):
        diffusers.write(tmp_path, dataclasses.replace(CONFIG, decoder=decoder), {}, with_vocoder=False)
    assert list(tmp_path.iterdir()) == []


# ---- invalid folders


@pytest.mark.parametrize(
    ("stack", "values", "message"),
    [
        ("notes_encoder", {"d_model": 64}, "d_model 64.* 32"),
        ("continuous_encoder", {"num_heads": 4}, "num_heads 4.* 3"),
        ("decoder", {"max_decoder_noise_time": 2000.0}, "max_decoder_noise_time 2000.0"),
        ("decoder", {"targets_length": 128}, "targets_length 128.* 256"),
        ("continuous_encoder", {"input_dims": 80}, "input_dims 80.* 128"),
        ("notes_encoder", {"feed_forward_proj": "relu"}, "feed_forward_proj 'relu'"),
        ("notes_encoder", {"vocab_size": "1536"}, "vocab_size '1536'.* 1048576"),
        ("decoder", {"num_layers": 0}, "num_layers 0"),
        ("decoder", {"d_kv": None}, "d_kv None"),
        ("decoder", {"d_model": 1e20}, r"d_model 1e\+20"),
        ("decoder", {"d_model": 10**20}, "d_model 1" + "0" * 20),
        ("decoder", {"num_heads": True}, "num_heads True"),
        *[("decoder", {"dropout_rate": rate}, f"dropout_rate {rate!r}")
          for rate in ("0.1", float("nan"), 7, -1, True)],
        ("notes_encoder", {"is_decoder": True}, "is_decoder True.* False"),
    ],
)  # fmt: skip
def test_config_of_another_network_raises_input_error(folder, stack, values, message):
    edit_config(folder, stack, **values)
    with pytest.raises(InputError, match=rf"{stack}.config\.json .*{message}"):
        diffusers.read(folder)


@pytest.mark.parametrize("stack", STACKS)
def test_missing_is_decoder_means_the_default(folder, stack):
    path = folder / stack / "config.json"
    values = json.loads(path.read_text())
    values.pop("is_decoder", None)
    path.write_text(json.dumps(values))
    assert diffusers.read(folder)[0] == CONFIG


def test_other_pipeline_class_is_named(folder):
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    with pytest.raises(InputError, match=r"model_index\.json .*'StableDiffusionPipeline'"):
        diffusers.read(folder)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prediction_type": "v_prediction"}, "prediction_type 'v_prediction'.* 'epsilon'"),
        ({"beta_schedule": "linear"}, "beta_schedule 'linear'.* 'squaredcos_cap_v2'"),
        (None, "beta_schedule 'linear'"),
    ],
)
def test_other_scheduler_settings_raise_input_error(folder, values, message):
    """The last case, without settings, has the library's default schedule; without the file ours is assumed."""
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({} if values is None else json.loads(path.read_text()) | values))
    with pytest.raises(InputError, match=rf"scheduler_config\.json .*{message}"):
        diffusers.read(folder)
    path.unlink()
    assert diffusers.read(folder)[0] == CONFIG


@pytest.mark.parametrize("content", [None, "", "{", "3", "[1]", "[" * 200_000],
                         ids=["missing", "empty", "cut", "number", "list", "deep"])  # fmt: skip
def test_missing_or_damaged_config_is_named(folder, content):
    path = folder / "decoder" / "config.json"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(InputError, match=r"decoder.config\.json"):
        diffusers.read(folder)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda a: a.pop("spec_out.weight"), r"parameter decoder\.spec_out\.weight$"),
        (lambda a: a.update(bias=np.zeros(1, np.float32)), r"parameter decoder\.bias$"),
    ],
    ids=["missing", "extra"],
)
def test_missing_or_unknown_parameters_are_named(folder, kind, edit, message):
    edit_weights(folder, "decoder", edit)
    if kind == "bin":
        convert_to_bin(folder)
    with pytest.raises(InputError, match=message):
        diffusers.read(folder)


def test_weights_of_missing_layers_are_named(folder):
    edit_config(folder, "notes_encoder", num_layers=3)
    with pytest.raises(InputError, match=r"parameter notes_encoder\.encoders\.2\."):
        diffusers.read(folder)


def test_missing_or_truncated_safetensors_are_named(folder):
    path = folder / "continuous_encoder" / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=rf"continuous_encoder.{WEIGHTS}: "):
        diffusers.read(folder)
    path.unlink()
    with pytest.raises(InputError, match=rf"continuous_encoder .*{WEIGHTS}.*diffusion_pytorch_model\.bin$"):
        diffusers.read(folder)


def test_truncated_pickle_is_named(folder):
    convert_to_bin(folder)
    path = folder / "continuous_encoder" / "diffusion_pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"continuous_encoder.diffusion_pytorch_model\.bin"):
        diffusers.read(folder)
