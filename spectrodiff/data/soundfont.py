"""Plays notes through FluidSynth and a General MIDI SoundFont.

Only notes are played: no pedal (already in the note ends), no volume or pan controllers, no reverb unless asked for.
"""

import ctypes
import functools
import os
import pathlib
import types

import numpy as np
import scipy.signal
from jaxtyping import Float

from spectrodiff.audio.mel import SAMPLE_RATE
from spectrodiff.errors import InputError
from spectrodiff.notes.midi import Notes

SOUNDFONT = "/usr/share/sounds/sf3/FluidR3Mono_GM.sf3"
SYNTH_RATE = 44100  # that of the SoundFont's samples, so that none loses its top octave
GAIN = 0.3
TAIL = 1.5  # seconds after the last note's end, for its release
_BLOCK = 64  # samples; FluidSynth handles events once per block: 1.45 ms, far below a mel frame's 20 ms
_VOICES = 512  # polyphony: more than any piece needs, so that no voice is stolen
_DRUMS = 128  # the channel of the drum kit; channels 0 to 127 play the programs of the same number


def play(
    notes: Notes,
    soundfont: str | os.PathLike = SOUNDFONT,
    *,
    gain: float = GAIN,
    reverb: bool = False,
    chorus: bool = False,
    tail: float = TAIL,
) -> Float[np.ndarray, " samples"]:
    """Returns the notes played by a SoundFont: float32 mono at SAMPLE_RATE, `notes.total_time + tail` seconds.

    Notes start and end within 0.8 ms of their times. Loudness depends on velocity and `gain` only; the audio is neither
    clipped nor normalized. The synthesizer is kept for the next call, as loading a SoundFont takes over a second. No
    sound is left over from earlier calls, but FluidSynth starts voices slightly differently after other notes: the same
    notes give the same samples to about 1 part in 1000.

    Raises:
      InputError: FluidSynth, its Python binding or the SoundFont is missing; the message says what to install.
    """
    synth, write = _synthesizer(os.fspath(soundfont), gain, reverb, chorus)
    channel = np.where(notes.is_drum, _DRUMS, notes.program)
    blocks = int(np.ceil((notes.total_time + tail) * SYNTH_RATE / _BLOCK))
    blocks_per_second = SYNTH_RATE / _BLOCK
    starts = np.round(notes.start * blocks_per_second).astype(int)
    ends = np.maximum(np.round(notes.end * blocks_per_second).astype(int), starts + 1)
    # At equal times note-offs come first, so that a repeated note sounds again.
    offs = np.stack([ends, 0 * ends, channel, notes.pitch, 0 * ends], axis=1).tolist()
    ons = np.stack([starts, 1 + 0 * starts, channel, notes.pitch, notes.velocity], axis=1).tolist()

    stereo = np.zeros((2, blocks * _BLOCK), np.float32)
    done = 0
    for when, on, channel, pitch, velocity in [*sorted(offs + ons), [blocks, 0, _DRUMS, 0, 0]]:
        if when > done:
            write(stereo, done * _BLOCK, (when - done) * _BLOCK)
            done = when
        synth.noteon(channel, pitch, velocity) if on else synth.noteoff(channel, pitch)
    synth.all_sounds_off(-1)
    while synth.get_active_voice_count():
        write(np.zeros((2, _BLOCK), np.float32), 0, _BLOCK)  # silenced voices end over the next few blocks

    audio = scipy.signal.resample_poly(stereo.mean(axis=0), 160, 441)  # 44.1 kHz to 16 kHz
    return audio[: round((notes.total_time + tail) * SAMPLE_RATE)].astype(np.float32)


def require_fluidsynth(soundfont: str | os.PathLike = SOUNDFONT) -> types.ModuleType:
    """Returns the module `fluidsynth`; raises InputError if it, its library or the SoundFont is missing."""
    try:
        import fluidsynth
    except ModuleNotFoundError as error:
        raise InputError(
            "playing a SoundFont needs FluidSynth's Python binding: pip install --no-deps pyfluidsynth"
        ) from error
    except (ImportError, OSError) as error:  # the binding looks for the library when it is imported
        raise InputError(
            "playing a SoundFont needs the system library FluidSynth, which pip does not install: apt-get install "
            "libfluidsynth3, or on a Mac brew install fluid-synth"
        ) from error
    if not pathlib.Path(soundfont).is_file():
        raise InputError(f"no SoundFont at {soundfont}: apt-get install fluidr3mono-gm-soundfont, or name another")
    return fluidsynth


@functools.lru_cache(maxsize=1)
def _synthesizer(soundfont: str, gain: float, reverb: bool, chorus: bool):
    """Returns a synthesizer with each program on the channel of its number, and a function that writes its samples."""
    fluidsynth = require_fluidsynth(soundfont)
    settings = {
        "synth.reverb.active": int(reverb),
        "synth.chorus.active": int(chorus),
        "synth.polyphony": _VOICES,
    }
    synth = fluidsynth.Synth(gain=gain, samplerate=SYNTH_RATE, channels=144, **settings)
    font = synth.sfload(soundfont)
    if font < 0:
        raise InputError(f"FluidSynth cannot read {soundfont}: is it a SoundFont (.sf2, .sf3)?")
    for program in range(128):
        synth.program_select(program, font, 0, program)
    synth.program_select(_DRUMS, font, 128, 0)

    # The binding writes 16-bit samples, which clip; the library can write floats.
    number, pointer = ctypes.c_int, ctypes.c_void_p
    arguments = {"synth": pointer, "length": number}
    for side in ("left", "right"):
        arguments |= {side: pointer, f"{side}_offset": number, f"{side}_stride": number}
    write_float = fluidsynth.cfunc("fluid_synth_write_float", number, *((n, t, 1) for n, t in arguments.items()))

    def write(stereo: np.ndarray, offset: int, samples: int) -> None:
        left, right = (side.ctypes.data for side in stereo)
        write_float(synth.synth, samples, left, offset, 1, right, offset, 1)

    return synth, write
