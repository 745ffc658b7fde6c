"""Every hyperparameter, in frozen dataclasses that gin may build and that travel with weights as JSON.

The defaults are the paper's base model with context (Hawthorne et al. 2022, arXiv 2206.05408).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import gin

from spectrodiff.errors import InputError

WINDOW_FRAMES = 256  # 5.12 s at 50 frames a second: what the model writes at a time


@gin.configurable
@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """How notes become tokens. `velocity_bins` is the vocabulary's V: 1 is on/off, 127 keeps every velocity."""

    velocity_bins: int = 1
    program_map: str = "full"  # full | midi_class | flat | slakh
    max_tokens: int = 2048
    # As published: a window after the last event lists as sounding what sounded just before that event. Off, nothing.
    ghost_ties: bool = True


@gin.configurable
@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Sizes of the three transformers, and our own options, which are off in the paper's models."""

    width: int = 768
    heads: int = 12
    head_dim: int = 64
    mlp_width: int = 2048
    note_layers: int = 12
    context_layers: int = 12
    decoder_layers: int = 12
    dropout: float = 0.1
    vocabulary_rows: int = 1536
    max_tokens: int = 2048
    with_context: bool = True
    # Ours. Each note event becomes one token: pitch, program, velocity and time are added embeddings.
    compact_notes: bool = False
    # Ours. Tokens carry the position of their time on the frame axis; compact ones those of onset and offset.
    event_times: bool = False
    # Ours. Notes, laid onto frames by fixed kernels of their onset and offset, give a first sketch of the mel, which
    # the decoder sees and corrects. Needs compact_notes, and the x0 prediction.
    note_roll: bool = False
    # Room for compact notes is the number of tokens over this: fewer notes a window, less to compute. Windows with more
    # are passed over in training and padded further in synthesis.
    tokens_per_note: int = 2

    def __post_init__(self):
        if self.note_roll and not self.compact_notes:
            raise InputError("ModelConfig.note_roll = True needs ModelConfig.compact_notes = True")


@gin.configurable
@dataclasses.dataclass(frozen=True)
class DiffusionConfig:
    """What the network predicts, and the space the noise is added in: x = (scaled mel - mean) / std."""

    prediction: str = "eps"  # eps | v | x0
    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self):
        if self.prediction not in ("eps", "v", "x0"):
            raise InputError(f"DiffusionConfig.prediction is {self.prediction!r}; choose one of eps, v, x0")


@gin.configurable
@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How to sample from these weights when nothing else is asked for. Guidance 1 is none."""

    sampler: str = "dpmpp"  # ddpm | ddim | dpmpp
    steps: int = 20
    guidance: float = 2.0


@gin.configurable
@dataclasses.dataclass(frozen=True)
class SpectrogramConfig:
    """Everything needed to rebuild a spectrogram model around its weights, and to play it."""

    tokenizer: TokenizerConfig = TokenizerConfig()
    model: ModelConfig = ModelConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    sampling: SamplingConfig = SamplingConfig()

    def __post_init__(self):
        if self.model.note_roll and self.diffusion.prediction != "x0":
            raise InputError("ModelConfig.note_roll = True needs DiffusionConfig.prediction = 'x0'")


@gin.configurable
@dataclasses.dataclass(frozen=True)
class GeneratorConfig:
    """The MelGAN generator: channels halve at every upsampling; the factors multiply to the 320 samples of a frame."""

    channels: int = 512
    factors: Sequence[int] = (8, 5, 4, 2)
    dilations: Sequence[int] = (1, 3, 9)

    def __post_init__(self):
        object.__setattr__(self, "factors", tuple(self.factors))  # JSON has only lists
        object.__setattr__(self, "dilations", tuple(self.dilations))


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain JSON values."""
    return dataclasses.asdict(config)


def from_dict(kind: type, values: dict[str, Any], where: str = "config") -> Any:
    """The config of class `kind` that `to_dict` wrote.

    Raises:
      InputError: a field is unknown; the message names it and `where`. Missing ones, newer than the file, are defaults.
    """
    fields = {field.name: field.type for field in dataclasses.fields(kind)}
    for name in sorted(values.keys() - fields.keys()):
        raise InputError(f"{where} has the unknown field {name!r}: it was written by a newer spectrodiff; upgrade it")
    return kind(
        **{
            name: from_dict(fields[name], value, f"{where}.{name}") if dataclasses.is_dataclass(fields[name]) else value
            for name, value in values.items()
        }
    )
