import dataclasses
import functools
import json

import gin
import pytest
from inputs import OURS

from spectrodiff.config import ModelConfig, TokenizerConfig, from_dict, to_dict
from spectrodiff.diffusion.objective import Preconditioned
from spectrodiff.diffusion.process import Process
from spectrodiff.diffusion.samplers import STEPS
from spectrodiff.diffusion.schedule import Karras, LogNormal
from spectrodiff.errors import InputError
from spectrodiff.models.autoregressive_decoder import AutoregressiveConfig, AutoregressiveSamplingConfig
from spectrodiff.models.decoder import DecoderConfig
from spectrodiff.models.diffusion_decoder import DiffusionConfig, SamplingConfig
from spectrodiff.models.spectrogram_model import SpectrogramConfig
from spectrodiff.vocoder.generator import GeneratorConfig


@pytest.mark.parametrize(
    "config",
    [
        SpectrogramConfig(),
        OURS,
        SpectrogramConfig(TokenizerConfig(own_programs=[98, 99])),
        SpectrogramConfig(
            decoder=DiffusionConfig(std=0.5, process=Process(Preconditioned(0.3), LogNormal(), Karras()))
        ),
        SpectrogramConfig(decoder=AutoregressiveConfig(components=8, sampling=AutoregressiveSamplingConfig(0.05))),
        GeneratorConfig(64, (10, 32), (1,)),
    ],
)
def test_configs_round_trip_through_json(config):
    assert from_dict(type(config), json.loads(json.dumps(to_dict(config)))) == config


def test_json_stores_the_kind_of_decoder():
    """Field names alone would not tell the decoders apart, as both have a mean, a deviation and `sampling`."""
    for decoder, kind in ((DiffusionConfig(), "diffusion"), (AutoregressiveConfig(), "autoregressive")):
        values = to_dict(SpectrogramConfig(decoder=decoder))
        assert values["decoder"]["kind"] == kind
        assert type(from_dict(SpectrogramConfig, values).decoder) is type(decoder)
    assert from_dict(SpectrogramConfig, {"decoder": {"kind": "autoregressive"}}).decoder == AutoregressiveConfig()


def test_unknown_fields_are_named_with_their_path():
    values = to_dict(OURS)
    values["model"]["colour"] = "red"
    with pytest.raises(InputError, match=r"weights\.json\.model .*'colour'"):
        from_dict(SpectrogramConfig, values, "weights.json")


def test_fields_missing_from_older_files_get_the_default():
    """The default is the class's, not a gin binding: stored weights were not trained with the current config."""
    values = to_dict(OURS)
    del values["tokenizer"]["ghost_ties"], values["tokenizer"]["own_programs"]
    try:
        gin.parse_config(["TokenizerConfig.ghost_ties = False", "TokenizerConfig.own_programs = (98,)"])
        gin.parse_config("SpectrogramConfig.tokenizer = @TokenizerConfig()")
        tokenizer = from_dict(SpectrogramConfig, values).tokenizer
    finally:
        gin.clear_config()
    assert (tokenizer.ghost_ties, tokenizer.own_programs) == (True, ())


@pytest.mark.parametrize(
    ("part", "field", "value", "message"),
    [
        ("model", None, 3, r"\.model is 3"),
        ("model", None, None, r"\.model is None"),
        ("tokenizer", None, [], r"\.tokenizer is \[\]"),
        ("model", "width", "32", r"\.model\.width is '32'.* int"),
        ("model", "width", 32.0, r"\.model\.width is 32\.0.* int"),
        ("model", "width", 1e12, r"\.model\.width is 1000000000000\.0.* int"),
        ("model", "width", 10**12, r"\.model: width is 1000000000000"),
        ("model", "width", 0, r"\.model: width is 0"),
        ("model", "mlp_width", -3, r"\.model: mlp_width is -3"),
        ("model", "heads", None, r"\.model\.heads is None.* int"),
        ("model", "heads", True, r"\.model\.heads is True.* int"),
        ("model", "note_layers", "1", r"\.model\.note_layers is '1'.* int"),
        ("model", "note_layers", 10**6, r"\.model: note_layers is 1000000"),
        ("model", "context_layers", 0, r"\.model: context_layers is 0"),
        ("model", "vocabulary_rows", "1536", r"\.model\.vocabulary_rows is '1536'.* int"),
        ("model", "tokens_per_note", 0, r"\.model: tokens_per_note is 0"),
        ("model", "with_context", 1, r"\.model\.with_context is 1.* bool"),
        ("model", "dropout", 1.0, r"\.model: dropout is 1\.0"),
        ("model", "dropout", float("nan"), r"\.model: dropout is nan"),
        ("model", "dropout", True, r"\.model\.dropout is True.* float"),
        ("tokenizer", "velocity_bins", "1", r"\.tokenizer\.velocity_bins is '1'.* int"),
        ("tokenizer", "velocity_bins", None, r"\.tokenizer\.velocity_bins is None.* int"),
        ("tokenizer", "velocity_bins", 0, r"\.tokenizer: velocity_bins is 0"),
        ("tokenizer", "velocity_bins", 128, r"\.tokenizer: velocity_bins is 128"),
        ("tokenizer", "program_map", "slakhs", r"\.tokenizer: program_map is 'slakhs'"),
        ("tokenizer", "max_tokens", 1, r"\.tokenizer: max_tokens is 1"),
        ("tokenizer", "own_programs", [128], r"\.tokenizer: own_programs .*128"),
        ("tokenizer", "own_programs", ["98"], r"\.tokenizer\.own_programs is \['98'\].* Sequence"),
        ("decoder", None, "diffusion", r"\.decoder is 'diffusion'"),
        ("decoder", "kind", "y", r"\.decoder .*\bkind 'y'"),
        ("decoder", "kind", None, r"\.decoder .*\bkind None"),
        ("decoder", "prediction", "v", r"\.decoder .*'prediction'"),
        ("decoder", "std", "a", r"\.decoder\.std is 'a'.* float"),
        ("decoder", "std", 0, r"\.decoder: std is 0\.0"),
        ("decoder", "std", float("inf"), r"\.decoder: std is inf"),
        ("decoder", "mean", float("nan"), r"\.decoder: mean is nan"),
        ("decoder", "condition_drop", 1.0, r"\.decoder: condition_drop is 1\.0"),
        ("decoder.process", None, [], r"\.decoder\.process is \[\]"),
        ("decoder.process.objective", "kind", "y", r"\.decoder\.process\.objective .*\bkind 'y'"),
        ("decoder.sampling", "steps", "x", r"\.decoder\.sampling\.steps is 'x'.* int"),
        ("decoder.sampling", "steps", 0, r"\.decoder\.sampling: steps is 0"),
        ("decoder.sampling", "sampler", "euler", r"\.decoder\.sampling: sampler is 'euler'"),
        ("decoder.sampling", "guidance", float("nan"), r"\.decoder\.sampling: guidance is nan"),
        ("decoder.sampling", "dither", 0.1, r"\.decoder\.sampling .*'dither'"),
    ],
)  # fmt: skip
def test_invalid_values_are_named_with_their_path(part, field, value, message):
    values = to_dict(SpectrogramConfig())
    *above, last = (*part.split("."), *([] if field is None else [field]))
    functools.reduce(dict.__getitem__, above, values)[last] = value
    with pytest.raises(InputError, match=rf"^weights\.json{message}") as error:
        from_dict(SpectrogramConfig, values, "weights.json")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"components": -1}, r": components is -1"),
        ({"components": 2.0}, r"\.components is 2\.0.* int"),
        ({"condition_drop": 0.1}, r" .*'condition_drop'"),
        ({"sampling": {"dither": -0.1}}, r"\.sampling: dither is -0\.1"),
        ({"sampling": {"dither": float("nan")}}, r"\.sampling: dither is nan"),
        ({"sampling": {"steps": 3}}, r"\.sampling .*'steps'"),
        ({"std": -1.0}, r": std is -1\.0"),
    ],
)
def test_invalid_autoregressive_decoder_raises_input_error(values, message):
    with pytest.raises(InputError, match=rf"^weights\.json{message}"):
        from_dict(DecoderConfig, {"kind": "autoregressive", **values}, "weights.json")


@pytest.mark.parametrize(
    ("field", "value"),
    [("channels", 0), ("channels", "16"), ("factors", [8, 5, "4", 2]), ("factors", 320), ("dilations", [0]),
     ("dilations", [True])],
)  # fmt: skip
def test_invalid_generator_raises_input_error(field, value):
    with pytest.raises(InputError, match=rf"^vocoder\.json.*{field} is "):
        from_dict(GeneratorConfig, to_dict(GeneratorConfig()) | {field: value}, "vocoder.json")


@pytest.mark.parametrize("name", STEPS)
def test_sampler_names_select_their_step_function(name):
    assert DiffusionConfig(sampling=SamplingConfig(name)).options().step.func is STEPS[name]


def test_sampled_replaces_sampling_options_of_a_decoder():
    decoder = DiffusionConfig(std=0.5, sampling=SamplingConfig("ddim", 7, 3.0))
    assert decoder.sampled() == decoder.sampled(steps=None, guidance=None) == decoder
    assert decoder.sampled(steps=9, guidance=1) == DiffusionConfig(std=0.5, sampling=SamplingConfig("ddim", 9, 1.0))
    dithered = AutoregressiveConfig(components=2, sampling=AutoregressiveSamplingConfig(0.1))
    assert AutoregressiveConfig(components=2).sampled(dither=0.1) == dithered
    for some, asked, message in (
        (decoder, {"steps": 0}, r"^options: steps is 0"),
        (decoder, {"steps": 2.5}, r"^options\.steps is 2\.5.* int$"),
        (decoder, {"dither": 0.1}, r"\bdiffusion\b.*\bdither\b"),
        (dithered, {"steps": 3}, r"\bautoregressive\b.*\bsteps\b"),
        (dithered, {"steps": 3, "guidance": 1.0}, r"\bautoregressive\b.*\bguidance\b.*\bsteps\b"),
    ):
        with pytest.raises(InputError, match=message):
            some.sampled(**asked)


def test_sampling_options_of_a_decoder_have_an_overlap():
    @dataclasses.dataclass(frozen=True)
    class WithoutOverlap(DecoderConfig):
        kind = "without_overlap"
        sampling: TokenizerConfig = TokenizerConfig()

        def build(self, model, *, rngs):
            raise NotImplementedError

    assert DiffusionConfig().sampled(overlap=8).sampling.overlap == 8
    with pytest.raises(InputError, match="SongSampling"):
        WithoutOverlap()


def test_zero_context_layers_are_valid_without_context():
    assert ModelConfig(with_context=False, context_layers=0).context_layers == 0


def test_options_name_the_options_they_require():
    with pytest.raises(InputError, match="compact_notes"):
        ModelConfig(note_roll=True)
    with pytest.raises(InputError, match="note_roll"):
        ModelConfig(compact_notes=True, continuation=True)


def test_configs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        OURS.model.width = 3


def test_configs_are_gin_configurables():
    gin.clear_config()
    try:
        gin.parse_config(["ModelConfig.width = 96", "SpectrogramConfig.model = @ModelConfig()"])
        built = gin.get_configurable("SpectrogramConfig")()
        assert built == SpectrogramConfig(model=ModelConfig(width=96))
        assert SpectrogramConfig().model.width == ModelConfig().width == 768
        with pytest.raises(ValueError, match="colour"):
            gin.parse_config("ModelConfig.colour = 'red'")
    finally:
        gin.clear_config()


def test_flat_program_map_excludes_own_programs():
    with pytest.raises(InputError, match=r"own_programs .*program_map .*'flat'"):
        TokenizerConfig(program_map="flat", own_programs=(98,))
