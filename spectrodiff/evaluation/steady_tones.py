"""A test of vocoders on steady sinusoids between the multiples of the frame rate.

A network that sees only frames generates the same waveform in each frame of a steady mel, so that all of its energy is
at multiples of the frame rate, 50 Hz.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from spectrodiff.audio.mel import FRAMES_PER_SECOND, SAMPLE_RATE, hann, log_mel_on_host

FREQUENCIES = (225, 475, 975, 1975, 3975)  # Hz, halfway between multiples of the frame rate
SECONDS = 3
AMPLITUDE = 0.1
_NEAR = FRAMES_PER_SECOND / 4  # Hz, within which a frequency counts as that of the tone or of a multiple


def steady_tone(frequency: int) -> Float[np.ndarray, " s"]:
    """Returns SECONDS of a sinusoid of AMPLITUDE, float32 at SAMPLE_RATE."""
    times = np.arange(SECONDS * SAMPLE_RATE) / SAMPLE_RATE
    return (AMPLITUDE * np.sin(2 * np.pi * frequency * times)).astype(np.float32)


def energy_shares(audio: Float[np.ndarray, " s"], frequency: int) -> dict[str, float] | None:
    """Returns how much of the energy of audio, which should be a sinusoid of `frequency` Hz, is at other frequencies.

    `tone leak` is the share of the energy that is farther than a quarter of the frame rate (12.5 Hz) from `frequency`,
    and `frame rate leak` the share that is nearer than that to a multiple of the frame rate, other than 0. Both are
    measured in the power spectrum of the middle second with a Hann window. Returns None if that is silent.
    """
    middle = (len(audio) - SAMPLE_RATE) // 2
    power = np.abs(np.fft.rfft(audio[middle : middle + SAMPLE_RATE] * hann(SAMPLE_RATE))) ** 2  # a bin per Hz
    hz = np.arange(len(power))
    multiple = np.round(hz / FRAMES_PER_SECOND)
    near_multiple = (np.abs(hz - FRAMES_PER_SECOND * multiple) < _NEAR) & (multiple > 0)
    if not power.sum():
        return None
    return {
        "tone leak": float(power[np.abs(hz - frequency) > _NEAR].sum() / power.sum()),
        "frame rate leak": float(power[near_multiple].sum() / power.sum()),
    }


def tone_leaks(vocoder: Callable[[np.ndarray], np.ndarray]) -> dict[str, float]:
    """Returns the means of `energy_shares` over FREQUENCIES that a vocoder decodes from their mels.

    For tones that the vocoder decodes to silence, the shares count as 1.
    """
    shares = [energy_shares(vocoder(log_mel_on_host(steady_tone(hz))), hz) for hz in FREQUENCIES]
    return {
        name: float(np.mean([1.0 if share is None else share[name] for share in shares]))
        for name in ("tone leak", "frame rate leak")
    }
