"""MIDI in, music out: spectrogram diffusion in JAX.

The names in `__all__` are imported when they are first used, so that the command line's help takes 0.1 s, not 1.9 s.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spectrodiff.audio.mel import log_mel
    from spectrodiff.errors import InputError
    from spectrodiff.mel_sampler import MelSampler
    from spectrodiff.notes.tokenizer import NoteTokenizer
    from spectrodiff.synthesizer import Synthesizer

__version__ = "0.1.0"
__all__ = ["InputError", "MelSampler", "NoteTokenizer", "Synthesizer", "log_mel"]

_MODULES = {
    "InputError": "spectrodiff.errors",
    "MelSampler": "spectrodiff.mel_sampler",
    "NoteTokenizer": "spectrodiff.notes.tokenizer",
    "Synthesizer": "spectrodiff.synthesizer",
    "log_mel": "spectrodiff.audio.mel",
}


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
