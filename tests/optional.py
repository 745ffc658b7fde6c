"""Marks of tests that need what an installation may lack."""

import pytest

from spectrodiff.data.soundfont import require_fluidsynth
from spectrodiff.errors import InputError


def _has_fluidsynth() -> bool:
    try:
        require_fluidsynth()
    except InputError:
        return False
    return True


needs_synth = pytest.mark.skipif(not _has_fluidsynth(), reason="FluidSynth and its SoundFont are optional")
