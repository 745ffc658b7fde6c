"""Configs: frozen dataclasses that gin can build and that are stored as JSON with the weights.

Most configs are defined in the module that they configure. This module holds the configs of the tokenizer and of the
networks, which several packages use, and the functions that validate configs and convert them to and from JSON. The
defaults are the paper's base model with context (Hawthorne et al. 2022, arXiv 2206.05408). gin's bindings apply only
where a gin file refers to the class, as in `@ModelConfig()`; otherwise weights that are loaded during a training run
would take missing settings from that run's config.
"""

import dataclasses
import typing
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import gin

from spectrodiff.errors import InputError

WINDOW_FRAMES = 256  # frames that the model generates at a time: 5.12 s at 50 frames a second
PROGRAM_MAPS = ("full", "midi_class", "flat", "slakh")
DTYPES = ("float32", "bfloat16")
MAX_SIZE = 2**20  # widths and lengths above this are taken to be mistakes; much larger ones would overflow elsewhere
MAX_LAYERS = 2**10


def is_whole(value: Any, low: int = 1, high: int = MAX_SIZE) -> bool:
    """Returns whether `value` is an integer from `low` to `high`. Booleans do not count as integers."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def is_fraction(value: Any) -> bool:
    """Returns whether `value` is a number in [0, 1). Booleans do not count as numbers."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1


def check_whole(config: Any, low: int, high: int, *names: str) -> None:
    """Raises InputError if one of the fields `names` of `config` is not an integer from `low` to `high`."""
    for name in names:
        if not is_whole(value := getattr(config, name), low, high):
            raise InputError(f"{name} is {value!r}; choose {low} to {high}")


def check_choice(config: Any, name: str, choices: Iterable[str]) -> None:
    """Raises InputError if the field `name` of `config` is not one of `choices`."""
    if (value := getattr(config, name)) not in choices:
        raise InputError(f"{name} is {value!r}; choose one of {', '.join(choices)}")


class Choice:
    """The base class of configs of which a field accepts several kinds, stored in JSON with a tag `kind`.

    The field's type is a direct subclass of `Choice`, such as `Objective`; each subclass of that one sets `kind`. A
    subclass may be defined in any module, and can be read from JSON once that module has been imported.
    """

    kind: ClassVar[str]

    @classmethod
    def kinds(cls) -> dict[str, type]:
        """Returns all subclasses that set `kind`, as a dict from kind to class."""
        below = cls.__subclasses__()
        found = {kind: some for sub in below for kind, some in sub.kinds().items()}
        return found | {sub.__dict__["kind"]: sub for sub in below if "kind" in sub.__dict__}


@gin.register
@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """The config of the tokenizer, which converts notes to tokens.

    With `velocity_bins` 1, tokens encode note-on and note-off only; with 127, they encode every MIDI velocity.
    """

    velocity_bins: int = 1
    program_map: str = "full"  # full | midi_class | flat | slakh
    max_tokens: int = 2048
    # If true, as in the published code, a window that starts after the last event begins with ties for the notes that
    # sounded just before that event. If false, it has no ties.
    ghost_ties: bool = True
    own_programs: Sequence[int] = ()  # programs exempt from the program map: instruments added by fine-tuning
    # Whether a MIDI file's channel volume and expression scale velocities. The published code ignores them.
    channel_volume: bool = False

    def __post_init__(self):
        object.__setattr__(self, "own_programs", tuple(self.own_programs))  # a list if read from JSON
        for program in self.own_programs:
            if not is_whole(program, 0, 127):
                raise InputError(f"own_programs has {program!r}; choose programs from 0 to 127")
        if self.own_programs and self.program_map == "flat":
            raise InputError("own_programs need a program_map other than 'flat', which drops every program")
        check_whole(self, 1, 127, "velocity_bins")
        check_whole(self, 2, MAX_SIZE, "max_tokens")  # a window without notes has two tokens
        check_choice(self, "program_map", PROGRAM_MAPS)


@gin.register
@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The config of the note encoder, the context encoder and the transformer of the decoder.

    The options after `with_context` are extensions of this project, which the paper's models do not use.
    """

    width: int = 768
    heads: int = 12
    head_dim: int = 64
    mlp_width: int = 2048
    note_layers: int = 12
    context_layers: int = 12
    decoder_layers: int = 12
    dropout: float = 0.1
    # The dtype of activations: float32 | bfloat16. Parameters, attention logits and softmax, normalisation statistics,
    # the note roll, the output and the diffusion process are always float32.
    dtype: str = "float32"
    # Whether the backward pass recomputes the activations of each block (gradient checkpointing), which takes less
    # memory and more time. On CPUs XLA removes the recomputation.
    remat: bool = False
    vocabulary_rows: int = 1536
    max_tokens: int = 2048
    # Whether padding is masked in the note encoder's self-attention. In the paper's autoregressive models it is not.
    mask_padding: bool = True
    with_context: bool = True
    # Whether the note encoder's sequence has one position per note, which embeds the sum of the embeddings of its
    # pitch, program, velocity and times, instead of one position per token.
    compact_notes: bool = False
    # Whether positions encode time on the decoder's frame axis: of each token, or of each compact note's onset and
    # offset.
    event_times: bool = False
    # Whether a note roll computes a sketch of the mel from the notes, as an input of the decoder and as the prior of
    # its objective. Needs compact_notes.
    note_roll: bool = False
    # Frames (of 20 ms) from a note's offset to the peak of the note roll's last release kernel, a power of 2. The
    # sketch has nothing of a note after twice as long.
    roll_release: int = 16
    # Whether the sketch continues from the context: what sounded before the window begins at the level that it had in
    # the last frames of the context, instead of one that is guessed from the notes.
    continuation: bool = False
    # The maximum number of compact notes in a window is its number of tokens divided by this. A larger value makes the
    # encoder faster; windows with more notes are skipped in training and padded to more tokens in synthesis.
    tokens_per_note: int = 2

    def __post_init__(self):
        check_whole(self, 1, MAX_SIZE, "width", "heads", "head_dim", "mlp_width", "vocabulary_rows", "max_tokens")
        check_whole(self, 1, MAX_SIZE, "tokens_per_note")
        check_whole(self, 1, MAX_LAYERS, "note_layers", "decoder_layers")
        check_whole(self, int(self.with_context), MAX_LAYERS, "context_layers")
        if self.width < 4 or self.width % 2:  # half sines and half cosines of two frequencies or more
            raise InputError(f"width is {self.width}; choose an even number from 4 on")
        if not is_fraction(self.dropout):
            raise InputError(f"dropout is {self.dropout!r}; choose a number from 0 to below 1")
        check_choice(self, "dtype", DTYPES)
        if self.roll_release not in (1, 2, 4, 8, 16, 32, 64, 128):
            raise InputError(f"roll_release is {self.roll_release!r}; choose a power of 2 from 1 to 128")
        for option, needed in (("note_roll", "compact_notes"), ("continuation", "note_roll")):
            if getattr(self, option) and not getattr(self, needed):
                raise InputError(f"ModelConfig.{option} = True needs ModelConfig.{needed} = True")


def to_dict(config: Any) -> dict[str, Any]:
    """Returns a config as a dict of JSON values, in which each `Choice` has its `kind`."""
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    plain = {name: to_dict(value) if dataclasses.is_dataclass(value) else value for name, value in values.items()}
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()}
    return {"kind": config.kind, **plain} if isinstance(config, Choice) else plain


def from_dict(cls: type, values: Any, where: str = "config") -> Any:
    """Builds the config that `to_dict` converted: a `cls`, or where that is a `Choice`, the subclass named by `kind`.

    Fields that `values` lacks, because they were added after it was written, take their defaults. `where` is the name
    of the config in error messages.

    Raises:
      InputError: `values` is not a dict, or a field is unknown, has the wrong type or is out of range.
    """
    if not isinstance(values, dict):
        raise InputError(f"{where} is {values!r:.80}; expected a dict of settings")
    if issubclass(cls, Choice):
        values, kinds = dict(values), cls.kinds() or {cls.kind: cls}
        if not isinstance(kind := values.pop("kind", None), str) or kind not in kinds:
            raise InputError(f"{where} has the kind {kind!r:.80}; known are {', '.join(sorted(kinds))}")
        cls = kinds[kind]
    hints = typing.get_type_hints(cls)
    fields = {}
    for name, value in values.items():
        if name not in hints:
            raise InputError(
                f"{where} has the unknown field {name!r}: it was written by a newer spectrodiff; upgrade it"
            )
        if dataclasses.is_dataclass(hints[name]) or _is_choice(hints[name]):
            value = from_dict(hints[name], value, f"{where}.{name}")
        elif expected := misfit(value, hints[name]):
            raise InputError(f"{where}.{name} is {value!r:.80}, which is no {expected}")
        fields[name] = float(value) if hints[name] is float else value
    try:
        return cls(**fields)
    except InputError as error:
        reason = str(error).splitlines()[0]  # gin appends its call stack
        raise InputError(f"{where}: {reason}") from error


def _is_choice(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, Choice)


def misfit(value: Any, hint: Any) -> str | None:
    """Returns the name of the type `hint` if `value` is not of that type, else None.

    An int is accepted as a float; a bool is accepted neither as an int nor as a float.
    """
    from beartype import BeartypeConf
    from beartype.door import is_bearable

    fits = is_bearable(value, hint, conf=BeartypeConf(is_pep484_tower=True))
    if isinstance(value, bool) and hint in (int, float):
        fits = False
    if fits and typing.get_origin(hint) is Sequence:  # beartype checks only one item of a sequence
        (member,) = typing.get_args(hint)
        fits = not any(misfit(item, member) for item in value)
    return None if fits else getattr(hint, "__name__", str(hint))
