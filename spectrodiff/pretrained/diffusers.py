"""Weights in the layout of the diffusers library: a folder of three stacks, with transposed linear weights."""

import json
import pathlib
from collections.abc import Mapping

import numpy as np

from spectrodiff.audio.mel import MEL_BINS
from spectrodiff.config import (
    MAX_SIZE,
    WINDOW_FRAMES,
    ModelConfig,
    TokenizerConfig,
    from_dict,
    is_fraction,
    is_whole,
    to_dict,
)
from spectrodiff.errors import InputError
from spectrodiff.files import write_json
from spectrodiff.models.diffusion_decoder import DiffusionConfig
from spectrodiff.models.spectrogram_model import SpectrogramConfig
from spectrodiff.pretrained.arrays import LazyArrays, Renamed, SafetensorsArrays, Stacks, save_arrays
from spectrodiff.pretrained.names import names
from spectrodiff.pretrained.torch_file import TorchArrays

INDEX = "model_index.json"
ONNX_VOCODER = pathlib.PurePath("melgan", "model.onnx")
# Library and class of each stack as in the published index. Release 0.42.1 has moved the encoders; it finds them if
# `diffusers.pipelines.spectrogram_diffusion` is set to `diffusers.pipelines.deprecated.spectrogram_diffusion`.
_STACKS = {
    "notes_encoder": ["spectrogram_diffusion", "SpectrogramNotesEncoder"],
    "continuous_encoder": ["spectrogram_diffusion", "SpectrogramContEncoder"],
    "decoder": ["diffusers", "T5FilmDecoder"],
}
_PIPELINE = "SpectrogramDiffusionPipeline"
_SCHEDULER_CONFIG = pathlib.PurePath("scheduler", "scheduler_config.json")
_WEIGHTS = "diffusion_pytorch_model"
_CONFIG = "config.json"
# Ancestral sampling of the released models (Hawthorne et al. 2022) in diffusers' terms; the rest are its defaults.
_SCHEDULER = {"beta_schedule": "squaredcos_cap_v2", "variance_type": "fixed_large", "num_train_timesteps": 1000}


def read(folder: pathlib.Path) -> tuple[SpectrogramConfig, Mapping[str, np.ndarray]]:
    """Returns the config and the arrays, by our names, of a folder of diffusers' SpectrogramDiffusionPipeline.

    Raises:
      InputError: a file is missing or damaged, parameters are missing or unknown, or the network is another one.
    """
    kind = _read_json(folder / INDEX).get("_class_name")
    if kind != _PIPELINE:
        raise InputError(f"{folder / INDEX} is of {kind!r}; only weights of {_PIPELINE} can be used")
    _check_scheduler(folder / _SCHEDULER_CONFIG)
    model = _read_model(folder)
    table = names(model)
    arrays = Renamed(
        Stacks({stack: _read_weights(folder / stack) for stack in _STACKS}),
        {name.ours: name.diffusers for name in table},
        str(folder),
        linear=[name.ours for name in table if name.linear],
    )
    return SpectrogramConfig(tokenizer=_tokenizer(model), model=model), arrays


def pickle_fallbacks(folder: pathlib.Path) -> list[str]:
    """Returns the paths of pickled weights, relative to a folder, of the stacks without safetensors."""
    stacks = [stack for stack in _STACKS if not (folder / stack / f"{_WEIGHTS}.safetensors").is_file()]
    return [f"{stack}/{_WEIGHTS}.bin" for stack in stacks]


def write(
    folder: pathlib.Path, config: SpectrogramConfig, arrays: Mapping[str, np.ndarray], *, with_vocoder: bool
) -> None:
    """Writes `arrays`, by our names, into the empty `folder`, for diffusers' SpectrogramDiffusionPipeline.

    With lazy arrays, one stack at a time is in memory. `with_vocoder` says that there will be a vocoder at
    `ONNX_VOCODER`.

    Raises:
      InputError: the model has options that diffusers does not have; this is raised before arrays are read.
    """
    _refuse_options(config)
    table = names(config.model)
    for stack, stack_config in _stack_configs(config.model).items():
        (folder / stack).mkdir()
        theirs = (
            (name.diffusers.removeprefix(f"{stack}."), arrays[name.ours].T if name.linear else arrays[name.ours])
            for name in table
            if name.diffusers.startswith(f"{stack}.")
        )
        save_arrays(folder / stack / f"{_WEIGHTS}.safetensors", theirs, {"format": "pt"})  # as diffusers itself does
        write_json(folder / stack / _CONFIG, {"_class_name": _STACKS[stack][1], **stack_config})
    (folder / "scheduler").mkdir()
    write_json(folder / _SCHEDULER_CONFIG, {"_class_name": "DDPMScheduler", **_SCHEDULER})
    index = {
        "_class_name": _PIPELINE,
        **_STACKS,
        "scheduler": ["diffusers", "DDPMScheduler"],
        "melgan": ["diffusers", "OnnxRuntimeModel"] if with_vocoder else [None, None],
    }
    write_json(folder / INDEX, index)


def _tokenizer(model: ModelConfig) -> TokenizerConfig:
    """Returns the config of the only tokenizer that diffusers has."""
    return TokenizerConfig(velocity_bins=1, program_map="slakh", max_tokens=model.max_tokens, ghost_ties=True)


def _refuse_options(config: SpectrogramConfig) -> None:
    """Raises InputError if a model has options that diffusers does not have."""
    off = {"with_context": True, "compact_notes": False, "event_times": False, "note_roll": False, "mask_padding": True}
    paper, decoder = DiffusionConfig(), to_dict(config.decoder)
    known = {**off, **to_dict(_tokenizer(config.model)), "kind": paper.kind, "mean": paper.mean, "std": paper.std}
    found = {**to_dict(config.model), **to_dict(config.tokenizer), **decoder}
    for name, value in known.items():
        if found[name] != value:
            raise InputError(f"these weights have {name} = {found[name]!r}, but diffusers knows only {value!r}")
    if (objective := config.decoder.process.objective) != paper.process.objective:
        raise InputError(f"these weights predict {objective.kind}, but diffusers knows only eps")


def _read_model(folder: pathlib.Path) -> ModelConfig:
    """Returns the sizes in the configs of the three stacks, checked against each other and the paper's network."""
    configs = {stack: {"is_decoder": False} | _read_json(folder / stack / _CONFIG) for stack in _STACKS}

    def size(stack, name):
        value = configs[stack].get(name)
        if not is_whole(value):
            raise InputError(f"{folder / stack / _CONFIG} has {name} {value!r}; expected 1 to {MAX_SIZE}")
        return value

    dropout = configs["decoder"].get("dropout_rate")
    if not is_fraction(dropout):
        expected = "expected a number from 0 to below 1"
        raise InputError(f"{folder / 'decoder' / _CONFIG} has dropout_rate {dropout!r}; {expected}")
    sizes = {
        "width": size("decoder", "d_model"),
        "heads": size("decoder", "num_heads"),
        "head_dim": size("decoder", "d_kv"),
        "mlp_width": size("decoder", "d_ff"),
        "note_layers": size("notes_encoder", "num_layers"),
        "context_layers": size("continuous_encoder", "num_layers"),
        "decoder_layers": size("decoder", "num_layers"),
        "vocabulary_rows": size("notes_encoder", "vocab_size"),
        "max_tokens": size("notes_encoder", "max_length"),
    }
    model = from_dict(ModelConfig, {**sizes, "dropout": dropout}, str(folder))
    for stack, expected in _stack_configs(model).items():
        for name, value in expected.items():
            if configs[stack].get(name) != value:
                found = f"{name} {configs[stack].get(name)!r}"
                raise InputError(f"{folder / stack / _CONFIG} has {found}, but this network needs {value!r}")
    return model


def _stack_configs(model: ModelConfig) -> dict[str, dict]:
    """Returns the arguments of the stacks' constructors in diffusers 0.42.1."""
    sizes = {
        "d_model": model.width,
        "num_heads": model.heads,
        "d_kv": model.head_dim,
        "d_ff": model.mlp_width,
        "dropout_rate": model.dropout,
    }
    encoder = {**sizes, "feed_forward_proj": "gated-gelu", "is_decoder": False}
    return {
        "notes_encoder": {
            **encoder,
            "num_layers": model.note_layers,
            "max_length": model.max_tokens,
            "vocab_size": model.vocabulary_rows,
        },
        "continuous_encoder": {
            **encoder,
            "num_layers": model.context_layers,
            "input_dims": MEL_BINS,
            "targets_context_length": WINDOW_FRAMES,
        },
        "decoder": {
            **sizes,
            "num_layers": model.decoder_layers,
            "input_dims": MEL_BINS,
            "targets_length": WINDOW_FRAMES,
            "max_decoder_noise_time": 2e4,  # as published; the library's default is a tenth of it
        },
    }


def _read_weights(folder: pathlib.Path) -> LazyArrays:
    safe, pickled = (folder / f"{_WEIGHTS}{suffix}" for suffix in (".safetensors", ".bin"))
    if safe.is_file():
        return SafetensorsArrays(safe)
    if pickled.is_file():
        return TorchArrays(pickled)
    raise InputError(f"{folder} has neither {safe.name} nor {pickled.name}")


def _read_json(path: pathlib.Path) -> dict:
    try:
        return {**json.loads(path.read_text())}
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise InputError(f"cannot read {path}: it is missing or damaged") from error


def _check_scheduler(path: pathlib.Path) -> None:
    """Raises InputError for weights of another diffusion process than the paper's; the file may be missing."""
    if not path.is_file():
        return
    found = {"prediction_type": "epsilon", "beta_schedule": "linear"} | _read_json(path)  # the library's defaults
    for name, needed in {"prediction_type": "epsilon", "beta_schedule": _SCHEDULER["beta_schedule"]}.items():
        if found[name] != needed:
            raise InputError(f"{path} has {name} {found[name]!r}, but this network needs {needed!r}")
