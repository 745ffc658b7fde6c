"""Transcription by basic-pitch (Bittner et al. 2022), a small network for any instruments, run by onnxruntime.

The network is read from the Python package basic-pitch, which has to be installed but is never imported. Decoding its
output into notes follows the package, except that the times of notes are those of the frames.
"""

import importlib.util
import os
import pathlib

import numpy as np
from jaxtyping import Float, Float64

from spectrodiff.errors import InputError
from spectrodiff.evaluation.embeddings import resample
from spectrodiff.notes.sequence import Notes
from spectrodiff.vocoder.onnx import open_session

RATE = 22050
HOP = 256
WINDOW = 2 * RATE - HOP  # samples of the network's input
OVERLAP = 30  # frames that neighbouring windows share; half of them are dropped on either side
LOWEST = 21  # MIDI pitch of the first of 88 keys
ONSET, SOUNDING = 0.5, 0.3  # least probabilities of an onset, and of a frame in which a note sounds
SHORTEST = 11  # frames, 128 ms: notes that are not longer are dropped
TOLERANCE = 11  # consecutive frames below SOUNDING after which a note has ended
_STEP = WINDOW - OVERLAP * HOP  # samples from window to window
_KEPT = 142  # frames of a window that are not dropped
_BATCH = 16  # windows
_MODEL = "saved_models/icassp_2022/nmp.onnx"

Activations = Float[np.ndarray, "t 88"]


class BasicPitch:
    """A transcriber of audio at SAMPLE_RATE. All notes are of program 0, and none are drums.

    Velocities are not those that were played: they are 127 times the mean activation of a note.
    """

    name = "basic-pitch"
    instruments = False

    def __init__(self, path: str | os.PathLike | None = None):
        """Loads the network from `path`, the package's nmp.onnx, which by default is looked for in the package.

        Raises:
          InputError: the file cannot be found or read, or onnxruntime is not installed.
        """
        if path is None:
            package = importlib.util.find_spec("basic_pitch")
            if package is None:
                raise InputError("transcription needs basic-pitch: pip install --no-deps basic-pitch")
            path = pathlib.Path(package.origin).parent / _MODEL
        self._session = open_session(path, "transcriber, basic-pitch's nmp")
        self._input = self._session.get_inputs()[0].name

    def __call__(self, audio: Float[np.ndarray, " s"]) -> Notes:
        """Returns the notes in audio; see `Transcriber`."""
        samples = resample(audio, RATE)
        sounding, onsets = self._activations(samples)
        rows = decode(sounding, onsets)
        start, end, pitch, activation = np.array(rows, np.float64).reshape(-1, 4).T
        times = frame_times(len(sounding) + 1)
        return Notes(
            start=times[start.astype(int)],
            end=times[end.astype(int)],
            pitch=pitch.astype(np.int32),
            velocity=np.clip(np.round(127 * activation), 1, 127).astype(np.int32),
            program=np.zeros(len(rows), np.int32),
            is_drum=np.zeros(len(rows), bool),
            total_time=float(max(len(samples) / RATE, times[-1])),
        )

    def _activations(self, samples: Float[np.ndarray, " s"]) -> tuple[Activations, Activations]:
        """Computes the probabilities that each key sounds, and that it begins to sound, at `frame_times`."""
        count = max(1, -(-len(samples) // _STEP))
        padded = np.zeros((count - 1) * _STEP + WINDOW, np.float32)
        before = OVERLAP // 2 * HOP
        padded[before : before + len(samples)] = samples[: len(padded) - before]
        windows = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::_STEP, :, None]
        outputs = [
            self._session.run(
                ["StatefulPartitionedCall:1", "StatefulPartitionedCall:2"],
                {self._input: np.ascontiguousarray(windows[start : start + _BATCH])},
            )
            for start in range(0, count, _BATCH)
        ]
        half = OVERLAP // 2
        kept = (np.concatenate(parts)[:, half:-half].reshape(-1, 88) for parts in zip(*outputs, strict=True))
        sounding, onsets = kept
        frames = int(np.searchsorted(frame_times(len(sounding)), len(samples) / RATE))
        return sounding[:frames], onsets[:frames]


def frame_times(count: int) -> Float64[np.ndarray, " count"]:
    """Returns the times of the first `count` frames, in seconds.

    Successive windows are a little less far apart than the frames that are kept of each, so that frames are not equally
    spaced. The package assumes that they are, corrects the error on average, and cuts off the last 0.7 % of the audio.
    """
    window, frame = np.divmod(np.arange(count), _KEPT)
    return (window * _STEP + frame * HOP) / RATE


def decode(sounding: Activations, onsets: Activations) -> list[tuple[int, int, int, float]]:
    """Decodes activations into notes: (first frame, frame after the last, MIDI pitch, mean activation).

    First each onset becomes a note, from the last onset to the first, and the activations of that note and of the keys
    beside it are removed. Then notes are made around the activations that are left, the highest first, whether or not
    they have an onset.
    """
    frames = len(sounding)
    onsets = _with_rises(sounding, onsets)
    peaks = np.zeros(onsets.shape, bool)
    peaks[1:-1] = (onsets[1:-1] > onsets[:-2]) & (onsets[1:-1] > onsets[2:]) & (onsets[1:-1] >= ONSET)
    remaining, notes = sounding.copy(), []

    def follow(at: int, key: int, step: int) -> tuple[int, int]:
        """Follows a note from `at` in steps of 1 or -1; returns its end, and the frame where the search stopped."""
        quiet = 0
        while 0 < at < frames - 1 and quiet < TOLERANCE:
            quiet = quiet + 1 if remaining[at, key] < SOUNDING else 0
            at += step
        return at - quiet * step, at

    def remove(start: int, end: int, key: int) -> None:
        remaining[start:end, max(key - 1, 0) : key + 2] = 0.0

    def add(start: int, end: int, key: int) -> None:
        notes.append((start, end, key + LOWEST, float(sounding[start:end, key].mean())))

    for start, key in np.argwhere(peaks)[::-1].tolist():
        end, _ = follow(start + 1, key, 1)
        if end - start > SHORTEST:
            remove(start, end, key)
            add(start, end, key)

    loud = np.argwhere(remaining > SOUNDING)
    for middle, key in loud[np.argsort(-remaining[remaining > SOUNDING], kind="stable")].tolist():
        if not remaining[middle, key]:
            continue
        remaining[middle, key] = 0.0
        end, searched = follow(middle + 1, key, 1)
        remove(middle + 1, searched, key)
        first, searched = follow(middle - 1, key, -1)
        remove(searched + 1, middle, key)
        start, end = first + 1, end - 1
        if end - start > SHORTEST:
            add(start, end, key)
    return notes


def _with_rises(sounding: Activations, onsets: Activations) -> Activations:
    """Returns the larger of the onset activations and the rises of the sounding activations.

    A rise is the difference from the larger of the two frames before. Rises are scaled to the maximum of the onsets.
    """
    rises = np.zeros_like(sounding)
    rises[2:] = np.maximum(0.0, np.minimum(sounding[2:] - sounding[1:-1], sounding[2:] - sounding[:-2]))
    highest = rises.max(initial=0.0)
    return np.maximum(onsets, rises * (onsets.max() / highest)) if highest else onsets
