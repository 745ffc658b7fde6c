"""Every hyperparameter, in frozen dataclasses that gin may build and that travel with weights as JSON.

The defaults are the paper's base model with context (Hawthorne et al. 2022, arXiv 2206.05408). They are so whatever
gin binds: only the classes that a gin file names, as in `@ModelConfig()`, see its bindings, or weights read while
training would be taken for what the config is.
"""

import dataclasses
import math
import typing
from collections.abc import Sequence
from typing import Any

import gin

from spectrodiff.errors import InputError

WINDOW_FRAMES = 256  # 5.12 s at 50 frames a second: what the model writes at a time
PROGRAM_MAPS = ("full", "midi_class", "flat", "slakh")
SAMPLERS = ("ddpm", "ddim", "dpmpp")
DTYPES = ("float32", "bfloat16")
MAX_SIZE = 2**20  # of widths and lengths, far above any use: what is larger is a mistake, and overflows elsewhere
MAX_LAYERS = 2**10
MAX_STEPS = 1000
MAX_GUIDANCE = 20.0
MAX_REACH = 100  # frames that a refiner may wait for before it says anything


def is_whole(value: Any, low: int = 1, high: int = MAX_SIZE) -> bool:
    """Whether `value` is an integer from `low` to `high`; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def is_share(value: Any) -> bool:
    """Whether `value` is a number from 0 up to, not including, 1; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1


def _check_whole(config: Any, low: int, high: int, *names: str) -> None:
    for name in names:
        if not is_whole(value := getattr(config, name), low, high):
            raise InputError(f"{name} is {value!r}; choose {low} to {high}")


def _check_choice(config: Any, name: str, choices: Sequence[str]) -> None:
    if (value := getattr(config, name)) not in choices:
        raise InputError(f"{name} is {value!r}; choose one of {', '.join(choices)}")


@gin.register
@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """How notes become tokens. `velocity_bins` is the vocabulary's V: 1 is on/off, 127 keeps every velocity."""

    velocity_bins: int = 1
    program_map: str = "full"  # full | midi_class | flat | slakh
    max_tokens: int = 2048
    # As published: a window after the last event lists as sounding what sounded just before that event. Off, nothing.
    ghost_ties: bool = True
    own_programs: Sequence[int] = ()  # what the program map leaves as it is: instruments learnt later
    # Whether volume and expression of a MIDI file's channels are folded into velocities, which is off as published.
    channel_volume: bool = False

    def __post_init__(self):
        object.__setattr__(self, "own_programs", tuple(self.own_programs))  # JSON has only lists
        for program in self.own_programs:
            if not is_whole(program, 0, 127):
                raise InputError(f"own_programs has {program!r}; choose programs from 0 to 127")
        if self.own_programs and self.program_map == "flat":
            raise InputError("own_programs need a program_map other than 'flat', which drops every program")
        _check_whole(self, 1, 127, "velocity_bins")
        _check_whole(self, 2, MAX_SIZE, "max_tokens")  # a window without a note needs two
        _check_choice(self, "program_map", PROGRAM_MAPS)


@gin.register
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
    # What activations are computed in: float32 | bfloat16. Parameters are float32, as are the logits and softmax of
    # attention, statistics of norms, the note roll's sums, the output, and all of diffusion.
    dtype: str = "float32"
    # Whether training computes each block again in the backward pass instead of keeping it: less memory, more time. XLA
    # undoes it on a CPU.
    remat: bool = False
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
        _check_whole(self, 1, MAX_SIZE, "width", "heads", "head_dim", "mlp_width", "vocabulary_rows", "max_tokens")
        _check_whole(self, 1, MAX_SIZE, "tokens_per_note")
        _check_whole(self, 1, MAX_LAYERS, "note_layers", "decoder_layers")
        _check_whole(self, int(self.with_context), MAX_LAYERS, "context_layers")
        if not is_share(self.dropout):
            raise InputError(f"dropout is {self.dropout!r}; choose a number from 0 to below 1")
        _check_choice(self, "dtype", DTYPES)
        if self.note_roll and not self.compact_notes:
            raise InputError("ModelConfig.note_roll = True needs ModelConfig.compact_notes = True")


@gin.register
@dataclasses.dataclass(frozen=True)
class DiffusionConfig:
    """What the network predicts, and the space the noise is added in: x = (scaled mel - mean) / std."""

    prediction: str = "eps"  # eps | v | x0
    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self):
        _check_choice(self, "prediction", ("eps", "v", "x0"))
        if not math.isfinite(self.mean):
            raise InputError(f"mean is {self.mean!r}; choose a finite number")
        if not 0 < self.std < math.inf:
            raise InputError(f"std is {self.std!r}; choose a number above 0")


@gin.register
@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How to sample from these weights when nothing else is asked for. Guidance 1 is none."""

    sampler: str = "dpmpp"  # ddpm | ddim | dpmpp
    steps: int = 20
    guidance: float = 2.0

    def __post_init__(self):
        _check_choice(self, "sampler", SAMPLERS)
        _check_whole(self, 1, MAX_STEPS, "steps")
        if not 0.0 <= self.guidance <= MAX_GUIDANCE:
            raise InputError(f"guidance is {self.guidance}; choose 0 to {MAX_GUIDANCE:g} (1 is none)")


@gin.register
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


@gin.register
@dataclasses.dataclass(frozen=True)
class GeneratorConfig:
    """The MelGAN generator: channels halve at every upsampling; the factors multiply to the 320 samples of a frame."""

    channels: int = 512
    factors: Sequence[int] = (8, 5, 4, 2)
    dilations: Sequence[int] = (1, 3, 9)
    # What it hears besides the mel. From a steady mel alone, a network that treats all frames alike can make nothing
    # but multiples of the frame rate.
    excitation: str = "none"  # none | noise

    def __post_init__(self):
        object.__setattr__(self, "factors", tuple(self.factors))  # JSON has only lists
        object.__setattr__(self, "dilations", tuple(self.dilations))
        _check_whole(self, 1, MAX_SIZE, "channels")
        _check_choice(self, "excitation", ("none", "noise"))
        for name in ("factors", "dilations"):
            if not all(map(is_whole, getattr(self, name))):
                raise InputError(f"{name} is {getattr(self, name)}; choose whole numbers from 1 to {MAX_SIZE}")


@gin.register
@dataclasses.dataclass(frozen=True)
class DiscriminatorConfig:
    """What a generator is trained against: waveforms at `scales` rates, each half the last, and STFTs of `windows`."""

    scales: int = 3
    wave_channels: int = 16
    windows: Sequence[int] = (512, 1024, 2048)
    spectrum_channels: int = 32

    def __post_init__(self):
        object.__setattr__(self, "windows", tuple(self.windows))
        _check_whole(self, 0, 16, "scales")
        _check_whole(self, 1, MAX_SIZE, "wave_channels", "spectrum_channels")
        if self.wave_channels % 4:
            raise InputError(f"wave_channels is {self.wave_channels}; choose a multiple of 4, as a group has four")
        if not all(is_whole(window, 16) and window % 4 == 0 for window in self.windows):
            raise InputError(f"windows is {self.windows}; choose multiples of 4 samples, 16 or more")
        if not self.scales and not self.windows:
            raise InputError("there is no discriminator: choose scales above 0, or windows")


@gin.register
@dataclasses.dataclass(frozen=True)
class RefinerConfig:
    """The network that gives Griffin-Lim its magnitudes: `layers` blocks, each of which looks at `kernel` frames."""

    width: int = 384
    layers: int = 6
    kernel: int = 7
    # Iterations by which its magnitudes are made to have the mel they were made from; 0 leaves them as they are, for
    # refiners that learnt to mend predicted mels.
    agreement: int = 16

    def __post_init__(self):
        _check_whole(self, 1, MAX_SIZE, "width", "kernel")
        _check_whole(self, 1, MAX_LAYERS, "layers")
        _check_whole(self, 0, MAX_STEPS, "agreement")
        if self.kernel % 2 == 0:
            raise InputError(f"kernel is {self.kernel}; choose an odd number, as many frames before as after")
        if self.layers * (self.kernel // 2) > MAX_REACH:
            raise InputError(
                f"{self.layers} layers of kernel {self.kernel} see more than {MAX_REACH} frames to either side; "
                "choose fewer"
            )


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain JSON values."""
    return dataclasses.asdict(config)


def from_dict(kind: type, values: Any, where: str = "config") -> Any:
    """The config of class `kind` that `to_dict` wrote.

    Raises:
      InputError: a field is unknown, of another type, or out of range, or `values` is no dict; the message names it and
        `where`. Missing ones, newer than the file, are defaults.
    """
    if not isinstance(values, dict):
        raise InputError(f"{where} is {values!r:.80}; expected a dict of settings")
    hints = typing.get_type_hints(kind)
    fields = {}
    for name, value in values.items():
        if name not in hints:
            raise InputError(
                f"{where} has the unknown field {name!r}: it was written by a newer spectrodiff; upgrade it"
            )
        if dataclasses.is_dataclass(hints[name]):
            value = from_dict(hints[name], value, f"{where}.{name}")
        elif expected := misfit(value, hints[name]):
            raise InputError(f"{where}.{name} is {value!r:.80}, which is no {expected}")
        fields[name] = float(value) if hints[name] is float else value
    try:
        return kind(**fields)
    except InputError as error:
        reason = str(error).splitlines()[0]  # what follows is gin's account of calls
        raise InputError(f"{where}: {reason}") from error


def misfit(value: Any, hint: Any) -> str | None:
    """What `value` should be by the type `hint`, where it is something else. An int will do for a float, a bool not."""
    from beartype import BeartypeConf
    from beartype.door import is_bearable

    fits = is_bearable(value, hint, conf=BeartypeConf(is_pep484_tower=True))
    if isinstance(value, bool) and hint in (int, float):
        fits = False
    if fits and typing.get_origin(hint) is Sequence:  # of which beartype looks at one only
        (member,) = typing.get_args(hint)
        fits = not any(misfit(item, member) for item in value)
    return None if fits else getattr(hint, "__name__", str(hint))
