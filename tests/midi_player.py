"""FluidSynth's own player of MIDI files, through the C library: what a synthesizer makes of a file's bytes."""

import ctypes

import numpy as np

from spectrodiff.data import soundfont

RATE, BLOCK = soundfont.SYNTH_RATE, 64


def play(data: bytes, seconds: float) -> np.ndarray | None:
    """The file's sound, float32 mono at RATE, or None where FluidSynth cannot read the file."""
    call = _functions()
    settings = call["new_fluid_settings"]()
    for name in (b"synth.reverb.active", b"synth.chorus.active"):
        call["fluid_settings_setint"](settings, name, 0)
    call["fluid_settings_setnum"](settings, b"synth.sample-rate", RATE)
    call["fluid_settings_setnum"](settings, b"synth.gain", soundfont.GAIN)
    synth = call["new_fluid_synth"](settings)
    call["fluid_synth_sfload"](synth, soundfont.SOUNDFONT.encode(), 1)
    player = call["new_fluid_player"](synth)
    call["fluid_player_add_mem"](player, data, len(data))
    call["fluid_player_play"](player)
    stereo = np.zeros((2, int(seconds * RATE) // BLOCK * BLOCK), np.float32)
    left, right = (side.ctypes.data for side in stereo)
    readable = True
    for at in range(0, stereo.shape[1], BLOCK):
        call["fluid_synth_write_float"](synth, BLOCK, left, at, 1, right, at, 1)
        if at == 0:  # a file that cannot be read is done at once
            readable = call["fluid_player_get_status"](player) == 1
    call["delete_fluid_player"](player)
    call["delete_fluid_synth"](synth)
    call["delete_fluid_settings"](settings)
    return stereo.mean(axis=0) if readable else None


def _functions() -> dict:
    pointer, number, text = ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p
    signatures = {
        "new_fluid_settings": (pointer,),
        "fluid_settings_setint": (number, pointer, text, number),
        "fluid_settings_setnum": (number, pointer, text, ctypes.c_double),
        "new_fluid_synth": (pointer, pointer),
        "fluid_synth_sfload": (number, pointer, text, number),
        "new_fluid_player": (pointer, pointer),
        "fluid_player_add_mem": (number, pointer, text, ctypes.c_size_t),
        "fluid_player_play": (number, pointer),
        "fluid_player_get_status": (number, pointer),
        "fluid_synth_write_float": (number, pointer, number, *(pointer, number, number) * 2),
        "delete_fluid_player": (None, pointer),
        "delete_fluid_synth": (None, pointer),
        "delete_fluid_settings": (None, pointer),
    }
    library = ctypes.CDLL(soundfont.require_fluidsynth().lib)
    for name, (result, *arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return {name: getattr(library, name) for name in signatures}
