import dataclasses
import json

import gin
import pytest
from inputs import OURS

from spectrodiff.config import SAMPLERS, ModelConfig, TokenizerConfig, from_dict, to_dict
from spectrodiff.diffusion.samplers import STEPS
from spectrodiff.errors import InputError
from spectrodiff.models.spectrogram_model import SpectrogramConfig
from spectrodiff.vocoder.generator import GeneratorConfig


@pytest.mark.parametrize(
    "config",
    [
        SpectrogramConfig(),
        OURS,
        SpectrogramConfig(TokenizerConfig(own_programs=[98, 99])),
        GeneratorConfig(64, (10, 32), (1,)),
    ],
)
def test_a_config_comes_back_from_json(config):
    assert from_dict(type(config), json.loads(json.dumps(to_dict(config)))) == config


def test_what_is_unknown_is_named_with_its_place():
    values = to_dict(OURS)
    values["model"]["colour"] = "red"
    with pytest.raises(InputError, match=r"weights\.json\.model has the unknown field 'colour'"):
        from_dict(SpectrogramConfig, values, "weights.json")


def test_what_older_files_lack_is_the_default():
    """Whatever gin binds for those that it builds: weights were not trained with what a config of today says."""
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
        ("model", None, 3, r"\.model is 3; expected a dict of settings"),
        ("model", None, None, r"\.model is None; expected a dict"),
        ("tokenizer", None, [], r"\.tokenizer is \[\]; expected a dict"),
        ("model", "width", "32", r"\.model\.width is '32', which is no int"),
        ("model", "width", 32.0, r"\.model\.width is 32\.0, which is no int"),
        ("model", "width", 1e12, r"\.model\.width is 1000000000000\.0, which is no int"),
        ("model", "width", 10**12, r"\.model: width is 1000000000000; choose 1 to 1048576"),
        ("model", "width", 0, r"\.model: width is 0; choose 1 to"),
        ("model", "mlp_width", -3, r"\.model: mlp_width is -3; choose 1 to"),
        ("model", "heads", None, r"\.model\.heads is None, which is no int"),
        ("model", "heads", True, r"\.model\.heads is True, which is no int"),
        ("model", "note_layers", "1", r"\.model\.note_layers is '1', which is no int"),
        ("model", "note_layers", 10**6, r"\.model: note_layers is 1000000; choose 1 to 1024"),
        ("model", "context_layers", 0, r"\.model: context_layers is 0; choose 1 to 1024"),
        ("model", "vocabulary_rows", "1536", r"\.model\.vocabulary_rows is '1536', which is no int"),
        ("model", "tokens_per_note", 0, r"\.model: tokens_per_note is 0; choose 1 to"),
        ("model", "with_context", 1, r"\.model\.with_context is 1, which is no bool"),
        ("model", "dropout", 1.0, r"\.model: dropout is 1\.0; choose a number from 0 to below 1"),
        ("model", "dropout", float("nan"), r"\.model: dropout is nan; choose"),
        ("model", "dropout", True, r"\.model\.dropout is True, which is no float"),
        ("tokenizer", "velocity_bins", "1", r"\.tokenizer\.velocity_bins is '1', which is no int"),
        ("tokenizer", "velocity_bins", None, r"\.tokenizer\.velocity_bins is None, which is no int"),
        ("tokenizer", "velocity_bins", 0, r"\.tokenizer: velocity_bins is 0; choose 1 to 127"),
        ("tokenizer", "velocity_bins", 128, r"\.tokenizer: velocity_bins is 128; choose 1 to 127"),
        ("tokenizer", "program_map", "slakhs", r"\.tokenizer: program_map is 'slakhs'; choose one of full, midi_"),
        ("tokenizer", "max_tokens", 1, r"\.tokenizer: max_tokens is 1; choose 2 to"),
        ("tokenizer", "own_programs", [128], r"\.tokenizer: own_programs has 128; choose programs from 0 to 127"),
        ("tokenizer", "own_programs", ["98"], r"\.tokenizer\.own_programs is \['98'\], which is no Sequence"),
        ("diffusion", "prediction", "y", r"\.diffusion: prediction is 'y'; choose one of eps, v, x0$"),
        ("diffusion", "std", "a", r"\.diffusion\.std is 'a', which is no float"),
        ("diffusion", "std", 0, r"\.diffusion: std is 0\.0; choose a number above 0"),
        ("diffusion", "std", float("inf"), r"\.diffusion: std is inf; choose a number above 0"),
        ("diffusion", "mean", float("nan"), r"\.diffusion: mean is nan; choose a finite number"),
        ("sampling", "steps", "x", r"\.sampling\.steps is 'x', which is no int"),
        ("sampling", "steps", 0, r"\.sampling: steps is 0; choose 1 to 1000"),
        ("sampling", "sampler", "euler", r"\.sampling: sampler is 'euler'; choose one of ddpm, ddim, dpmpp$"),
        ("sampling", "guidance", float("nan"), r"\.sampling: guidance is nan; choose 0 to 20"),
    ],
)  # fmt: skip
def test_values_that_cannot_be_are_named(part, field, value, message):
    values = to_dict(SpectrogramConfig())
    if field is None:
        values[part] = value
    else:
        values[part][field] = value
    with pytest.raises(InputError, match=rf"^weights\.json{message}"):
        from_dict(SpectrogramConfig, values, "weights.json")


@pytest.mark.parametrize(
    ("field", "value"),
    [("channels", 0), ("channels", "16"), ("factors", [8, 5, "4", 2]), ("factors", 320), ("dilations", [0]),
     ("dilations", [True])],
)  # fmt: skip
def test_a_generator_that_cannot_be(field, value):
    with pytest.raises(InputError, match=rf"^vocoder\.json.*{field} is "):
        from_dict(GeneratorConfig, to_dict(GeneratorConfig()) | {field: value}, "vocoder.json")


def test_the_samplers_are_those_there_are():
    assert tuple(STEPS) == SAMPLERS


def test_without_context_there_may_be_no_layers_for_it():
    assert ModelConfig(with_context=False, context_layers=0).context_layers == 0


def test_options_that_need_others_say_so():
    with pytest.raises(InputError, match="compact_notes"):
        ModelConfig(note_roll=True)
    with pytest.raises(InputError, match="prediction = 'x0'"):
        SpectrogramConfig(model=ModelConfig(note_roll=True, compact_notes=True))


def test_configs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        OURS.model.width = 3


def test_gin_builds_them():
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


def test_flat_programs_leave_none_of_ones_own():
    with pytest.raises(InputError, match="own_programs need a program_map other than 'flat'"):
        TokenizerConfig(program_map="flat", own_programs=(98,))
