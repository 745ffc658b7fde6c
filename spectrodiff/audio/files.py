"""Reading audio files as mono at SAMPLE_RATE, and writing audio files."""

import math
import os

import numpy as np
import soundfile
from jaxtyping import Float

from spectrodiff.audio.loudness import level_gain
from spectrodiff.audio.mel import SAMPLE_RATE, check_audio
from spectrodiff.errors import InputError, reason
from spectrodiff.files import check_writable, local_path, replacing

# Suffixes of audio files that libsndfile can read, and of those that it cannot.
READABLE = (
    *(".wav", ".wave", ".rf64", ".w64", ".flac", ".mp3", ".ogg", ".oga", ".opus"),
    *(".aif", ".aiff", ".aifc", ".au", ".snd", ".caf"),
)
UNREADABLE = (
    *(".m4a", ".m4b", ".mp4", ".aac", ".alac", ".wma", ".asf", ".ape", ".wv", ".tta", ".tak", ".ac3", ".dts", ".mka"),
    *(".ra", ".amr", ".dsf", ".dff", ".mpc", ".spx", ".webm", ".mov", ".mkv", ".avi"),
)
# Formats and subtypes of the files that are written; libsndfile writes MP3 since 1.1.
FORMATS = {".wav": ("WAV", "PCM_16"), ".flac": ("FLAC", "PCM_16"), ".ogg": ("OGG", "VORBIS")}
if "MP3" in soundfile.available_formats():
    FORMATS[".mp3"] = ("MP3", "MPEG_LAYER_III")
# Channels cancel if the power of their mean is below this share of what uncorrelated channels would give: two channels
# that correlate by less than -0.8.
_CANCELS = 0.2


def read_audio(path: str | os.PathLike) -> Float[np.ndarray, " s"]:
    """Reads an audio file (wav, flac, ogg, mp3, aiff, ...; any sample rate) as float32 mono at SAMPLE_RATE.

    Mono is the mean of the channels or, if they cancel each other, the loudest channel.

    Raises:
      InputError: there is no such file, it is a folder or not audio, or it has no samples or samples that are not
        finite.
    """
    path = local_path(path)
    try:
        if path.is_dir():
            raise InputError(f"cannot read {path}: it is a folder; name an audio file")
        if not path.exists():
            raise InputError(f"cannot read {path}: no such file")
        channels, rate = soundfile.read(
            os.fsencode(path), dtype="float32", always_2d=True
        )  # file names may have any encoding
    except (soundfile.SoundFileError, OSError, TypeError) as error:  # TypeError: formats without a header, such as .raw
        raise InputError(f"cannot read {path} as audio; give a wav, flac, ogg or mp3 file ({reason(error)})") from error
    if not channels.size:
        raise InputError(f"cannot use {path}: it holds no samples")
    if not np.isfinite(channels).all():
        raise InputError(f"cannot use {path}: it holds samples that are not numbers; export it again")
    mono = _mono(channels)
    if rate != SAMPLE_RATE:
        import scipy.signal  # a second, which synthesis need not spend

        common = math.gcd(rate, SAMPLE_RATE)
        mono = scipy.signal.resample_poly(mono, SAMPLE_RATE // common, rate // common)
    return mono.astype(np.float32)


def _mono(channels: Float[np.ndarray, "s c"]) -> Float[np.ndarray, " s"]:
    mono = channels.mean(axis=1)
    power = np.einsum("sc,sc->c", channels, channels, dtype=np.float64)
    if len(power) > 1 and np.einsum("s,s->", mono, mono, dtype=np.float64) * len(power) ** 2 < _CANCELS * power.sum():
        return channels[:, np.argmax(power)]
    return mono


def check_audio_path(path: str | os.PathLike, seconds: float = 0.0) -> None:
    """Checks, before long work, that `seconds` of audio can be written to `path`; raises InputError if not."""
    path = local_path(path)
    if path.suffix.lower() not in FORMATS:
        if path.is_dir():
            raise InputError(f"cannot write {path}: it is a folder; name a file in it, such as {path / 'song.wav'}")
        raise InputError(f"cannot write {path}: give it one of the suffixes {', '.join(FORMATS)}")
    size = round(2 * SAMPLE_RATE * seconds) if path.suffix.lower() == ".wav" else 0  # the other formats are compressed
    check_writable(path, size)


def write_audio(path: str | os.PathLike, audio: Float[np.ndarray, " s"], level: str = "raw") -> None:
    """Writes mono audio [samples] at SAMPLE_RATE as wav, flac (both 16-bit), ogg or mp3, by the suffix of `path`.

    `level` is "raw" (audio that peaks above 1 is scaled down to a peak of 1), "peak" or, as the command line writes
    files, "loudness"; see `audio.loudness.level_gain`. An existing file is replaced once the new one is complete.

    Raises:
      InputError: the suffix or the level is another one, the place cannot be written, or the audio is not what
        `check_audio` wants.
    """
    path = local_path(path)
    check_audio_path(path)
    kind, subtype = FORMATS[path.suffix.lower()]
    try:
        audio = np.asarray(check_audio(audio), np.float32)
    except InputError as error:
        raise InputError(f"cannot write {path}: {error}") from error
    gain = level_gain(level, float(np.abs(audio).max(initial=0.0)), lambda: [audio])
    with replacing(path) as temporary:
        try:
            soundfile.write(os.fsencode(temporary), np.float32(gain) * audio, SAMPLE_RATE, format=kind, subtype=subtype)
        except soundfile.SoundFileError as error:
            raise InputError(f"cannot write {path}: {error}") from error
