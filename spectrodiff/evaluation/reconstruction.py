"""Measures of the similarity of a reconstructed waveform to its reference.

The mel and spectral distances and the chroma correlation are hardly sensitive to phase; the onset correlation and the
tone similarity are, so that a vocoder should be judged by all of them. A measure that is undefined is None, never NaN:
of a silent reference, all are but the distances. The correlations and similarities of silent audio with a reference
that is not silent are 0.
"""

from collections.abc import Sequence

import numpy as np
import scipy.signal
from jaxtyping import Float

from spectrodiff.audio.mel import SAMPLE_RATE, hann, log_mel_on_host

Audio = Float[np.ndarray, " s"]
RESOLUTIONS = (256, 512, 1024, 2048)  # samples: 16 to 128 ms
QUIET = 1e-4  # relative to the reference's loudest bin: what is 80 dB below it is inaudible, and not compared
TONES = 8192  # samples of the frames in which tones are compared: half a second, with a resolution of 2 Hz


def magnitudes(audio: Audio, window: int, hop: int) -> Float[np.ndarray, "t f"]:
    """Computes STFT magnitudes, scaled so that a full-scale sine peaks at 1.

    `window` and `hop` are in samples. Zeros are added at both ends, so that every sample counts.
    """
    padded = np.pad(audio, (window // 2, window))
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop]
    return np.abs(scipy.fft.rfft(frames * hann(window).astype(np.float32))) / (window / 4)


def mel_distance(audio: Audio, reference: Audio) -> float:
    """Computes the mean absolute difference of the log-mels, in nats."""
    # On the host: `log_mel` would be compiled anew for every length of song.
    return float(np.abs(log_mel_on_host(audio) - log_mel_on_host(reference)).mean())


def roughness(audio: Audio, reference: Audio) -> float | None:
    """Computes the mean absolute second difference of the log-mel over frames, relative to that of the reference.

    Below 1, the audio is blurred in time. The ratio is None if that of the reference is 0.
    """
    ours, theirs = (float(np.abs(np.diff(log_mel_on_host(x), 2, axis=0)).sum()) for x in (audio, reference))
    return ours / theirs if theirs else None


def spectral_distance(audio: Audio, reference: Audio) -> float:
    """Computes the mean absolute difference of the log magnitudes of STFTs at all RESOLUTIONS, in nats.

    Magnitudes below QUIET times the reference's loudest are taken to be at that floor.
    """
    distances = []
    for window in RESOLUTIONS:
        ours, theirs = (magnitudes(x, window, window // 4) for x in (audio, reference))
        floor = max(QUIET * theirs.max(), 1e-12)
        distances.append(np.abs(np.log(np.maximum(ours, floor)) - np.log(np.maximum(theirs, floor))).mean())
    return float(np.mean(distances))


def onset_envelope(audio: Audio) -> Float[np.ndarray, " t"]:
    """Computes the spectral flux every 5 ms: the rises of the log magnitudes, in nats, summed over bins."""
    levels = magnitudes(audio, 320, 80)
    levels = np.log(np.maximum(levels, max(10 * QUIET * levels.max(), 1e-12)))
    return np.maximum(np.diff(levels, axis=0), 0.0).sum(axis=1)


def onset_correlation(audio: Audio, reference: Audio) -> float | None:
    """Computes the correlation of the onset envelopes, which is 1 if every attack is at its time.

    It is None if the reference has no attacks.
    """
    ours, theirs = onset_envelope(audio), onset_envelope(reference)
    if not theirs.std():
        return None
    return float(np.corrcoef(ours, theirs)[0, 1]) if ours.std() else 0.0


def tone_similarity(audio: Audio, reference: Audio) -> float | None:
    """Computes the mean cosine similarity of magnitudes from 40 to 1500 Hz in frames of half a second.

    It is 1 if every partial is in tune and its phase continuous. Frames in which the reference is 60 dB below its
    loudest bin are left out. If the whole reference is silent, the similarity is None.
    """
    low, high = (round(hz * TONES / SAMPLE_RATE) for hz in (40, 1500))
    ours, theirs = _audible_frames(audio, reference, slice(low, high))
    return float(_cosines(ours, theirs).mean()) if len(theirs) else None


def chroma_correlation(audio: Audio, reference: Audio) -> float | None:
    """Computes the mean correlation of the magnitudes of the twelve pitch classes.

    It is 1 if the harmonies are right, whichever instruments play them. Magnitudes are those from 100 to 2000 Hz, where
    the resolution is finer than a semitone and notes are stronger than their overtones. Frames are left out, and the
    correlation is None, as in `tone_similarity`.
    """
    low, high = (round(hz * TONES / SAMPLE_RATE) for hz in (100, 2000))
    hz = np.arange(low, high) * SAMPLE_RATE / TONES
    classes = np.eye(12)[np.round(12 * np.log2(hz / 440)).astype(int) % 12]
    ours, theirs = (frames @ classes for frames in _audible_frames(audio, reference, slice(low, high)))
    centred = (frames - frames.mean(axis=1, keepdims=True) for frames in (ours, theirs))
    return float(_cosines(*centred).mean()) if len(theirs) else None


def _audible_frames(audio: Audio, reference: Audio, bins: slice) -> list[Float[np.ndarray, "t f"]]:
    """Computes magnitudes of both, a frame every 128 ms, without frames in which the reference is inaudible.

    These are frames in which it is 60 dB below its loudest bin.
    """
    ours, theirs = (magnitudes(x, TONES, TONES // 4)[:, bins] for x in (audio, reference))
    audible = theirs.max(axis=1) > max(10 * QUIET * theirs.max(), 1e-12)
    return [ours[audible], theirs[audible]]


def _cosines(a: Float[np.ndarray, "t f"], b: Float[np.ndarray, "t f"]) -> Float[np.ndarray, " t"]:
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return (a * b).sum(axis=1) / np.maximum(norms, 1e-12)


def embedding_distance(embedded: Float[np.ndarray, "n d"], reference: Float[np.ndarray, "m d"]) -> float | None:
    """Computes the mean over frames of the Euclidean distance, which is the paper's reconstruction measure.

    The longer of the two is cut to the length of the shorter. The distance is None if there are no frames.
    """
    frames = min(len(embedded), len(reference))
    differences = embedded[:frames].astype(np.float64) - reference[:frames]
    return float(np.linalg.norm(differences, axis=1).mean()) if frames else None


def compare(audio: Float[np.ndarray, " s"], reference: Float[np.ndarray, " r"]) -> dict[str, float | None]:
    """Computes all measures of `audio` against `reference`, both float32 at SAMPLE_RATE, by name.

    The longer of the two is cut to the shorter. Measures that are undefined are None.
    """
    length = min(len(audio), len(reference))
    audio, reference = audio[:length], reference[:length]
    measures = {
        "mel": mel_distance,
        "roughness": roughness,
        "msd": spectral_distance,
        "onset": onset_correlation,
        "tone": tone_similarity,
        "chroma": chroma_correlation,
    }
    return {name: measure(audio, reference) if length else None for name, measure in measures.items()}


def mean_scores(scores: Sequence[dict[str, float | None]]) -> dict[str, float | None]:
    """Computes the mean of each measure over the songs for which it is defined, or None if there are none."""
    known = {name: [song[name] for song in scores if song[name] is not None] for name in (scores[0] if scores else ())}
    return {name: float(np.mean(values)) if values else None for name, values in known.items()}
