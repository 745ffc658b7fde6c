"""Random weights, written in every format that is read."""

import pathlib
from collections.abc import Mapping

import numpy as np
from t5x_writer import write_t5x

from spectrodiff.models.spectrogram_model import SpectrogramConfig
from spectrodiff.pretrained import diffusers, kinds, native
from spectrodiff.pretrained.names import names

FORMATS = ("spectrodiff", "diffusers", "t5x", "t5x_inline")


def random_arrays(config: SpectrogramConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """Every parameter by our name, float32."""
    rng = np.random.default_rng(seed)
    shapes = native.shapes_of(kinds.SPECTROGRAM, config)
    return {name: 0.05 * rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def write_weights(folder: pathlib.Path, kind: str, config: SpectrogramConfig, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes `arrays`, by our names, into the new `folder`; "t5x" into one of its own in there, with a config.gin."""
    folder.mkdir()
    if kind == "spectrodiff":
        native.write(folder, kinds.SPECTROGRAM, arrays, config, {})
    elif kind == "diffusers":
        diffusers.write(folder, config, arrays, with_vocoder=False)
    else:
        theirs = {name.t5x: arrays[name.ours] for name in names(config.model)}
        inline = {"inline": lambda name, array: True} if kind == "t5x_inline" else {}
        write_t5x(folder / "checkpoint_500000", theirs, **inline)
        (folder / "config.gin").write_text(gin_text(config))


def gin_text(config: SpectrogramConfig) -> str:
    """The bindings that T5X writes beside its checkpoints, as far as they say what the network is."""
    model = config.model
    return f"""from __gin__ import dynamic_registration
import __main__ as train_script
from music_spectrogram_diffusion.models.diffusion import network

# Macros:
# ==============================================================================
NUM_VELOCITY_BINS = {config.tokenizer.velocity_bins}
TASK_FEATURE_LENGTHS = {{'inputs': {model.max_tokens}, 'targets': 256, 'targets_context': 256}}

# Parameters for network.T5Config:
# ==============================================================================
network.T5Config.context_positions = 'terminal_relative'
network.T5Config.decoder_cross_attend_style = 'concat_encodings'
network.T5Config.dropout_rate = {model.dropout}
network.T5Config.dtype = 'float32'
network.T5Config.emb_dim = {model.width}
network.T5Config.head_dim = {model.head_dim}
network.T5Config.mlp_activations = ('gelu', 'linear')
network.T5Config.mlp_dim = {model.mlp_width}
network.T5Config.num_decoder_layers = {model.decoder_layers}
network.T5Config.num_encoder_layers = {model.note_layers}
network.T5Config.num_heads = {model.heads}
network.T5Config.vocab_size = @vocabularies.num_embeddings()

# Parameters for vocabularies.VocabularyConfig:
# ==============================================================================
vocabularies.VocabularyConfig.num_velocity_bins = %NUM_VELOCITY_BINS
"""
