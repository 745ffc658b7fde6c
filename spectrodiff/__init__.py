"""MIDI in, music out: spectrogram diffusion in JAX."""

from spectrodiff.audio.mel import log_mel
from spectrodiff.errors import InputError
from spectrodiff.mel_sampler import MelSampler
from spectrodiff.notes.tokenizer import NoteTokenizer
from spectrodiff.synthesizer import Synthesizer

__version__ = "0.1.0"
__all__ = ["InputError", "MelSampler", "NoteTokenizer", "Synthesizer", "log_mel"]
