"""How loud audio of any length is, and the gain that brings it to a level."""

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from jaxtyping import Float

from spectrodiff.audio.mel import SAMPLE_RATE
from spectrodiff.errors import InputError

LEVELS = ("loudness", "peak", "raw")
LOUDNESS = -16.0  # LUFS: what AES TD1008 recommends for music that is streamed
TRUE_PEAK = 10 ** (-1 / 20)  # -1 dBTP, the ceiling of EBU R 128
SAMPLE_PEAK = 0.9

# ITU-R BS.1770-4: gating blocks of 400 ms start every 100 ms. Those below -70 LUFS do not count, nor do those that are
# 10 LU below the loudness of the others. The two filters of the K-weighting are pyloudnorm's default.
_STEP, _STEPS = SAMPLE_RATE // 10, 4
_OFFSET = -0.691
_ABSOLUTE_GATE, _RELATIVE_GATE = 10 ** ((-70.0 - _OFFSET) / 10), 0.1  # of mean squares
_OVERSAMPLING = 4  # BS.1770-4, annex 2
_REACH = 10  # samples to either side that an interpolated sample depends on: resample_poly's filter


@functools.cache
def _sections() -> Float[np.ndarray, "2 6"]:
    """Returns the two filters of the K-weighting as second-order sections."""
    import pyloudnorm  # with scipy.signal, a third of all that synthesis imports, and needed only when audio is saved

    filters = (
        pyloudnorm.IIRfilter(4.0, math.sqrt(0.5), 1500.0, SAMPLE_RATE, "high_shelf"),
        pyloudnorm.IIRfilter(0.0, 0.5, 38.0, SAMPLE_RATE, "high_pass"),
    )
    return np.array([[*filter.b, *filter.a] for filter in filters])


def integrated_loudness(blocks: Iterable[Float[np.ndarray, " s"]]) -> float:
    """Returns the integrated loudness in LUFS (ITU-R BS.1770-4) of mono audio at SAMPLE_RATE, given in blocks.

    It is that of `pyloudnorm.Meter`, which needs the whole signal at once; here memory grows by 8 bytes per 0.1 s.
    Audio shorter than a gating block of 0.4 s is measured as if silence followed it. The loudness of audio of which
    nothing is above -70 LUFS is minus infinity.
    """
    energies, samples = [], 0
    for step in _steps(_weighted(blocks)):
        energies.append(np.square(step).sum())
        samples += len(step)
    count = max(1, round((samples / SAMPLE_RATE - 0.4) / 0.1) + 1)  # pyloudnorm's: the last may be half empty
    energies = np.pad(np.array(energies), (0, max(0, count + _STEPS - 1 - len(energies))))
    power = np.convolve(energies, np.ones(_STEPS), "valid")[:count] / (_STEPS * _STEP)
    power = power[power >= _ABSOLUTE_GATE]
    if not power.size:
        return -math.inf
    return _OFFSET + 10 * math.log10(power[power > _RELATIVE_GATE * power.mean()].mean())


def true_peak(blocks: Iterable[Float[np.ndarray, " s"]]) -> float:
    """Returns the largest absolute value of audio, given in blocks, once interpolated to four times its sample rate."""
    import scipy.signal

    silence = np.zeros(2 * _REACH, np.float32)
    before, peak = silence, 0.0
    for block in itertools.chain(blocks, [silence]):
        signal = np.concatenate([before, block])
        inner = slice(_REACH * _OVERSAMPLING, -_REACH * _OVERSAMPLING)  # where the filter does not see the ends
        fine = scipy.signal.resample_poly(signal, _OVERSAMPLING, 1)[inner]
        peak = max(peak, float(np.abs(fine).max(initial=0.0)))
        before = signal[-2 * _REACH :]
    return peak


def level_gain(level: str, peak: float, blocks: Callable[[], Iterable[Float[np.ndarray, " s"]]]) -> float:
    """Returns the factor that brings audio to one of LEVELS.

    `raw` is the audio as it is, scaled down to a peak of 1 only if it is above. `peak` is a peak of SAMPLE_PEAK.
    `loudness` is the integrated loudness LOUDNESS, or less, so that the true peak is at most TRUE_PEAK. `peak` is the
    audio's largest absolute value, and `blocks` returns an iterator of the audio, mono at SAMPLE_RATE.

    Raises:
      InputError: there is no such level.
    """
    match level:
        case "raw":
            return 1.0 / max(1.0, peak)
        case "peak":
            return SAMPLE_PEAK / max(peak, 1e-6)
        case "loudness":
            return loudness_gain(integrated_loudness(blocks()), true_peak(blocks()))
    raise InputError(f"level is {level!r}; choose one of {', '.join(LEVELS)}")


def loudness_gain(loudness: float, peak: float) -> float:
    """Returns the gain that brings audio from its loudness in LUFS to LOUDNESS, without its peak exceeding TRUE_PEAK.

    Audio whose loudness is minus infinity is not amplified.
    """
    wanted = 1.0 if loudness == -math.inf else 10 ** ((LOUDNESS - loudness) / 20)
    return min(wanted, TRUE_PEAK / peak) if peak > 0 else wanted


def _weighted(blocks: Iterable[Float[np.ndarray, " s"]]) -> Iterator[Float[np.ndarray, " s"]]:
    """Yields the blocks K-weighted, as the signal that they are part of would be."""
    import scipy.signal

    sections = _sections()
    state = np.zeros((len(sections), 2))
    for block in filter(len, blocks):  # SciPy refuses empty ones
        weighted, state = scipy.signal.sosfilt(sections, np.asarray(block, np.float64), zi=state)
        yield weighted


def _steps(blocks: Iterable[Float[np.ndarray, " s"]]) -> Iterator[Float[np.ndarray, " s"]]:
    """Yields the signal in pieces of _STEP samples; the last may be shorter."""
    rest = np.zeros(0)
    for block in blocks:
        rest = np.concatenate([rest, block])
        whole = len(rest) // _STEP * _STEP
        yield from rest[:whole].reshape(-1, _STEP)
        rest = rest[whole:]
    if rest.size:
        yield rest
