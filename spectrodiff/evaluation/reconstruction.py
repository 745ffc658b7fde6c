"""How near a rebuilt waveform comes to the one it was made from, by four measures that fail in different ways.

The first two barely hear phase; onsets and tones do, so a vocoder is judged by all four.
"""

import numpy as np
import scipy.signal
from jaxtyping import Float

from spectrodiff.audio.mel import SAMPLE_RATE, hann, log_mel

Audio = Float[np.ndarray, " s"]
RESOLUTIONS = (256, 512, 1024, 2048)  # samples: 16 to 128 ms
QUIET = 1e-4  # of the reference's loudest bin: what lies 80 dB under it is not heard, so it is not compared


def magnitudes(audio: Audio, window: int, hop: int) -> Float[np.ndarray, "t f"]:
    """STFT magnitudes on a scale where a full-scale sine peaks at 1; zeros are added so that every sample counts."""
    padded = np.pad(audio, (window // 2, window))
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop]
    return np.abs(scipy.fft.rfft(frames * hann(window).astype(np.float32))) / (window / 4)


def mel_distance(audio: Audio, reference: Audio) -> float:
    """Mean absolute difference of the log-mels, in nats."""
    return float(np.abs(np.asarray(log_mel(audio)) - np.asarray(log_mel(reference))).mean())


def spectral_distance(audio: Audio, reference: Audio) -> float:
    """Mean absolute difference of log magnitudes over RESOLUTIONS, in nats."""
    distances = []
    for window in RESOLUTIONS:
        ours, theirs = (magnitudes(x, window, window // 4) for x in (audio, reference))
        floor = max(QUIET * theirs.max(), 1e-12)
        distances.append(np.abs(np.log(np.maximum(ours, floor)) - np.log(np.maximum(theirs, floor))).mean())
    return float(np.mean(distances))


def onset_envelope(audio: Audio) -> Float[np.ndarray, " t"]:
    """How much louder the spectrum gets, in nats summed over bins, every 5 ms."""
    levels = magnitudes(audio, 320, 80)
    levels = np.log(np.maximum(levels, max(10 * QUIET * levels.max(), 1e-12)))
    return np.maximum(np.diff(levels, axis=0), 0.0).sum(axis=1)


def onset_correlation(audio: Audio, reference: Audio) -> float:
    """Correlation of the onset envelopes: 1 is every attack in place, 0 where one of them has no attacks at all."""
    ours, theirs = onset_envelope(audio), onset_envelope(reference)
    if not (ours.std() and theirs.std()):
        return 0.0
    return float(np.corrcoef(ours, theirs)[0, 1])


def tone_similarity(audio: Audio, reference: Audio) -> float:
    """Mean cosine of 8192-point magnitudes from 40 to 1500 Hz: is each partial in tune and whole for half a second?

    Frames in which the reference is 60 dB under its loudest are left out; 0 when it is silent throughout.
    """
    window = 8192
    low, high = (round(hz * window / SAMPLE_RATE) for hz in (40, 1500))
    ours, theirs = (magnitudes(x, window, window // 4)[:, low:high] for x in (audio, reference))
    heard = theirs.max(axis=1) > max(10 * QUIET * theirs.max(), 1e-12)
    if not heard.any():
        return 0.0
    ours, theirs = ours[heard], theirs[heard]
    norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    return float(((ours * theirs).sum(axis=1) / np.maximum(norms, 1e-12)).mean())


def compare(audio: Float[np.ndarray, " s"], reference: Float[np.ndarray, " r"]) -> dict[str, float]:
    """All four measures of `audio` against `reference`, float32 at SAMPLE_RATE; the longer is cut to the shorter."""
    length = min(len(audio), len(reference))
    audio, reference = audio[:length], reference[:length]
    return {
        "mel": mel_distance(audio, reference),
        "msd": spectral_distance(audio, reference),
        "onset": onset_correlation(audio, reference),
        "tone": tone_similarity(audio, reference),
    }
