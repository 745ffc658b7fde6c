"""MIDI in, music out: spectrogram diffusion in JAX.

The names in `__all__` are imported when they are first used, so that the command line's help takes 0.1 s, not 1.9 s.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spectrodiff.audio.files import read_audio, write_audio
    from spectrodiff.audio.mel import log_mel
    from spectrodiff.commands.common import keep_compiled_programs
    from spectrodiff.errors import InputError
    from spectrodiff.mel_sampler import MelSampler
    from spectrodiff.notes.midi import read_midi, write_midi
    from spectrodiff.notes.tokenizer import NoteTokenizer
    from spectrodiff.synthesizer import Synthesizer

__version__ = "0.1.0"
__all__ = [
    "InputError",
    "MelSampler",
    "NoteTokenizer",
    "Synthesizer",
    "keep_compiled_programs",
    "log_mel",
    "read_audio",
    "read_midi",
    "write_audio",
    "write_midi",
]

_MODULES = {
    "InputError": "spectrodiff.errors",
    "MelSampler": "spectrodiff.mel_sampler",
    "NoteTokenizer": "spectrodiff.notes.tokenizer",
    "Synthesizer": "spectrodiff.synthesizer",
    "keep_compiled_programs": "spectrodiff.commands.common",
    "log_mel": "spectrodiff.audio.mel",
    "read_audio": "spectrodiff.audio.files",
    "read_midi": "spectrodiff.notes.midi",
    "write_audio": "spectrodiff.audio.files",
    "write_midi": "spectrodiff.notes.midi",
}


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
