import dataclasses
import json

import gin
import pytest
from inputs import OURS

from spectrodiff.config import GeneratorConfig, ModelConfig, SpectrogramConfig, from_dict, to_dict
from spectrodiff.errors import InputError


@pytest.mark.parametrize("config", [SpectrogramConfig(), OURS, GeneratorConfig(64, (10, 32), (1,))])
def test_a_config_comes_back_from_json(config):
    assert from_dict(type(config), json.loads(json.dumps(to_dict(config)))) == config


def test_what_is_unknown_is_named_with_its_place():
    values = to_dict(OURS)
    values["model"]["colour"] = "red"
    with pytest.raises(InputError, match=r"weights\.json\.model has the unknown field 'colour'"):
        from_dict(SpectrogramConfig, values, "weights.json")


def test_what_older_files_lack_is_the_default():
    values = to_dict(OURS)
    del values["tokenizer"]["ghost_ties"]
    assert from_dict(SpectrogramConfig, values).tokenizer.ghost_ties is True


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
        assert SpectrogramConfig().model == dataclasses.replace(ModelConfig(), width=96)
        with pytest.raises(ValueError, match="colour"):
            gin.parse_config("ModelConfig.colour = 'red'")
    finally:
        gin.clear_config()
