"""Checks of whether notes belong to a recording, and with which time shift.

Note onsets are correlated with the rises of the log-mel.
"""

import dataclasses

import numpy as np
from jaxtyping import Float

from spectrodiff.audio.mel import FRAMES_PER_SECOND, HOP, log_mel_on_host
from spectrodiff.notes.sequence import Notes

MAX_LAG = FRAMES_PER_SECOND // 2  # frames: half a second
_MIN_NOTES = 8  # for a meaningful correlation
# A piece is flagged as unrelated below the correlation _UNRELATED, and as shifted if without a shift the correlation is
# below _SHIFTED times the largest. Of 902 pieces rendered with a SoundFont, these limits flag seven, all of a piccolo
# alone, which swells for 0.1 s. Notes of another piece correlate by 0.15 at most (76 pieces tried). Those of the piece
# itself have a median of 0.74, which falls to 0.05 if they are shifted by 40 ms.
_UNRELATED = 0.2
_SHIFTED = 0.7
_DYNAMICS = np.log(1000.0)  # 60 dB: rises of bins further below the loudest do not count as onsets
_CHUNK = 60 * FRAMES_PER_SECOND  # frames of mel at a time


@dataclasses.dataclass(frozen=True)
class Alignment:
    """The correlation of note onsets with those of the audio.

    `correlation` is that without a shift, and `best` the largest one. `lag` is the shift where it is the largest: the
    seconds, a multiple of 0.02, by which the audio is later than the notes.
    """

    correlation: float
    lag: float
    best: float


def align(audio: Float[np.ndarray, " s"], notes: Notes) -> Alignment:
    """Correlates notes with float32 audio at SAMPLE_RATE, at lags of up to MAX_LAG frames in both directions.

    Correlations are 0 if there are no onsets, or if the audio is shorter than the range of lags.
    """
    strength = _onset_strength(audio)
    if len(strength) <= 2 * MAX_LAG:
        return Alignment(0.0, 0.0, 0.0)
    # The rise to the frame in which a note starts has the index of the frame before it.
    frames = np.floor(notes.start * FRAMES_PER_SECOND).astype(int) - 1
    counts = np.bincount(frames[(frames >= 0) & (frames < len(strength))], minlength=len(strength))
    onsets = np.sqrt(counts)  # a chord is louder than a note, but less than in proportion to its notes
    blur = (0.5, 1.0, 0.5)  # part of an onset may be in the frame before
    strength, onsets = (np.convolve(series, blur, "same") for series in (strength, onsets))
    by_lag = {lag: _correlation(strength, onsets, lag) for lag in range(-MAX_LAG, MAX_LAG + 1)}
    lag = max(by_lag, key=lambda lag: (by_lag[lag], -abs(lag)))
    return Alignment(by_lag[0], lag / FRAMES_PER_SECOND, by_lag[lag])


def alignment_problems(audio: Float[np.ndarray, " s"], notes: Notes) -> list[str]:
    """Returns descriptions of what is suspicious in the alignment; none if notes and audio fit and are in time."""
    if len(notes) < _MIN_NOTES:
        return []
    found = align(audio, notes)
    if abs(found.lag) > 0.03 and found.best > _UNRELATED and found.correlation < _SHIFTED * found.best:
        return [
            f"the sound comes {abs(found.lag):.2f} s {'after' if found.lag > 0 else 'before'} the notes "
            f"(onsets correlate by {found.best:.2f} with that shift, and by {found.correlation:.2f} without)"
        ]
    if found.correlation < _UNRELATED:
        return [f"the sound hardly has the onsets of the notes (they correlate by {found.correlation:.2f})"]
    return []


def _onset_strength(audio: Float[np.ndarray, " s"]) -> Float[np.ndarray, " t"]:
    """Returns the rise of the log-mel from each frame to the next, summed over bins."""
    starts = range(0, len(audio), _CHUNK * HOP)
    mel = np.concatenate([log_mel_on_host(audio[at : at + (_CHUNK + 1) * HOP])[:_CHUNK] for at in starts])
    return np.maximum(np.diff(np.maximum(mel, mel.max() - _DYNAMICS), axis=0), 0.0).sum(axis=1)


def _correlation(strength: np.ndarray, onsets: np.ndarray, lag: int) -> float:
    length = len(strength) - abs(lag)
    strength, onsets = strength[max(lag, 0) :][:length], onsets[max(-lag, 0) :][:length]
    if not (strength.std() and onsets.std()):
        return 0.0
    return float(np.corrcoef(strength, onsets)[0, 1])
