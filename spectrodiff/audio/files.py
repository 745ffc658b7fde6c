"""Reading any recording as mono at the model's rate, and writing what was made."""

import math
import os
import pathlib

import numpy as np
import scipy.signal
import soundfile
from jaxtyping import Float

from spectrodiff.audio.mel import SAMPLE_RATE
from spectrodiff.errors import InputError
from spectrodiff.files import check_writable, replacing

_FORMATS = {".wav": ("WAV", "PCM_16"), ".flac": ("FLAC", "PCM_16"), ".ogg": ("OGG", "VORBIS")}


def read_audio(path: str | os.PathLike) -> Float[np.ndarray, " s"]:
    """A recording (wav, flac, ogg, mp3, aiff, ...; any rate, any channels) as float32 mono at SAMPLE_RATE.

    Raises:
      InputError: no such file, a folder, not audio, no samples, or samples that are not numbers.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        raise InputError(f"cannot read {path}: it is a folder; name an audio file")
    if not path.exists():
        raise InputError(f"cannot read {path}: no such file")
    try:
        channels, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError, TypeError) as error:  # TypeError: headerless formats such as .raw
        raise InputError(f"cannot read {path} as audio; give a wav, flac, ogg or mp3 file ({error})") from error
    if not channels.size:
        raise InputError(f"cannot use {path}: it holds no samples")
    if not np.isfinite(channels).all():
        raise InputError(f"cannot use {path}: it holds samples that are not numbers; export it again")
    mono = channels.mean(axis=1)
    if rate != SAMPLE_RATE:
        common = math.gcd(rate, SAMPLE_RATE)
        mono = scipy.signal.resample_poly(mono, SAMPLE_RATE // common, rate // common)
    return mono.astype(np.float32)


def check_audio_path(path: str | os.PathLike) -> None:
    """Finds out before long work whether `write_audio` could write there; raises InputError if not."""
    path = pathlib.Path(path)
    if path.suffix.lower() not in _FORMATS:
        raise InputError(f"cannot write {path}: give it one of the suffixes {', '.join(_FORMATS)}")
    check_writable(path)


def write_audio(path: str | os.PathLike, audio: Float[np.ndarray, " s"]) -> None:
    """Writes mono audio at SAMPLE_RATE, all of it or nothing; the suffix picks wav, flac (both 16 bit) or ogg.

    Audio that peaks above 1 is turned down as a whole until it fits: its balance stays and nothing distorts.

    Raises:
      InputError: another suffix, a place that cannot be written, or samples that are not numbers.
    """
    path = pathlib.Path(path)
    check_audio_path(path)
    kind, subtype = _FORMATS[path.suffix.lower()]
    audio = np.asarray(audio, np.float32)
    if not np.isfinite(audio).all():
        raise InputError(f"cannot write {path}: the audio holds samples that are not numbers")
    audio = audio / max(1.0, np.abs(audio).max(initial=0.0))
    with replacing(path) as temporary:
        try:
            soundfile.write(temporary, audio, SAMPLE_RATE, format=kind, subtype=subtype)
        except soundfile.SoundFileError as error:
            raise InputError(f"cannot write {path}: {error}") from error
