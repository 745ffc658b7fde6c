"""What all configs share: frozen dataclasses that gin may build and that travel with weights as JSON.

A config stands beside what it configures; here are the notes' and the network's, which many parts read. The defaults
are the paper's base model with context (Hawthorne et al. 2022, arXiv 2206.05408). They are so whatever gin binds: only
the classes that a gin file names, as in `@ModelConfig()`, see its bindings, or weights read while training would be
taken for what the config is.
"""

import dataclasses
import typing
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import gin

from spectrodiff.errors import InputError

WINDOW_FRAMES = 256  # 5.12 s at 50 frames a second: what the model writes at a time
PROGRAM_MAPS = ("full", "midi_class", "flat", "slakh")
DTYPES = ("float32", "bfloat16")
MAX_SIZE = 2**20  # of widths and lengths, far above any use: what is larger is a mistake, and overflows elsewhere
MAX_LAYERS = 2**10


def is_whole(value: Any, low: int = 1, high: int = MAX_SIZE) -> bool:
    """Whether `value` is an integer from `low` to `high`; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def is_share(value: Any) -> bool:
    """Whether `value` is a number from 0 up to, not including, 1; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1


def check_whole(config: Any, low: int, high: int, *names: str) -> None:
    """Raises InputError for the first field of `names` that is no integer from `low` to `high`."""
    for name in names:
        if not is_whole(value := getattr(config, name), low, high):
            raise InputError(f"{name} is {value!r}; choose {low} to {high}")


def check_choice(config: Any, name: str, choices: Iterable[str]) -> None:
    """Raises InputError where the field `name` is none of `choices`."""
    if (value := getattr(config, name)) not in choices:
        raise InputError(f"{name} is {value!r}; choose one of {', '.join(choices)}")


class Choice:
    """The base of configs that stand for one another in a field; in JSON, `kind` tells which of them it is.

    A field's type is a subclass, such as `Objective`, whose own subclasses have a `kind` each. One that is defined
    anywhere, in a user's file as well, can be read back once its module is imported.
    """

    kind: ClassVar[str]

    @classmethod
    def kinds(cls) -> dict[str, type]:
        """All subclasses that have a `kind`, by it."""
        below = cls.__subclasses__()
        found = {kind: some for sub in below for kind, some in sub.kinds().items()}
        return found | {sub.__dict__["kind"]: sub for sub in below if "kind" in sub.__dict__}


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
        check_whole(self, 1, 127, "velocity_bins")
        check_whole(self, 2, MAX_SIZE, "max_tokens")  # a window without a note needs two
        check_choice(self, "program_map", PROGRAM_MAPS)


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
    # Whether notes attend to notes alone, or to the padding after them too, as in the paper's autoregressive models.
    mask_padding: bool = True
    with_context: bool = True
    # Ours. Each note event becomes one token: pitch, program, velocity and time are added embeddings.
    compact_notes: bool = False
    # Ours. Tokens carry the position of their time on the frame axis; compact ones those of onset and offset.
    event_times: bool = False
    # Ours. Notes, laid onto frames by fixed kernels of their onset and offset, give a first sketch of the mel, which
    # the decoder sees, and corrects where its objective is about it. Needs compact_notes.
    note_roll: bool = False
    # Room for compact notes is the number of tokens over this: fewer notes a window, less to compute. Windows with more
    # are passed over in training and padded further in synthesis.
    tokens_per_note: int = 2

    def __post_init__(self):
        check_whole(self, 1, MAX_SIZE, "width", "heads", "head_dim", "mlp_width", "vocabulary_rows", "max_tokens")
        check_whole(self, 1, MAX_SIZE, "tokens_per_note")
        check_whole(self, 1, MAX_LAYERS, "note_layers", "decoder_layers")
        check_whole(self, int(self.with_context), MAX_LAYERS, "context_layers")
        if not is_share(self.dropout):
            raise InputError(f"dropout is {self.dropout!r}; choose a number from 0 to below 1")
        check_choice(self, "dtype", DTYPES)
        if self.note_roll and not self.compact_notes:
            raise InputError("ModelConfig.note_roll = True needs ModelConfig.compact_notes = True")


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain JSON values, each `Choice` with its kind."""
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    plain = {name: to_dict(value) if dataclasses.is_dataclass(value) else value for name, value in values.items()}
    return {"kind": config.kind, **plain} if isinstance(config, Choice) else plain


def from_dict(cls: type, values: Any, where: str = "config") -> Any:
    """The config of class `cls`, or of the kind of `cls` that is named, that `to_dict` wrote.

    Raises:
      InputError: a field is unknown, of another type, or out of range, or `values` is no dict; the message names it and
        `where`. Missing ones, newer than the file, are defaults.
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
        reason = str(error).splitlines()[0]  # what follows is gin's account of calls
        raise InputError(f"{where}: {reason}") from error


def _is_choice(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, Choice)


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
