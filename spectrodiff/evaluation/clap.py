"""CLAP (Wu et al. 2023), an embedding that audio shares with texts about it, run by onnxruntime on a user's weights.

The weights are an export of the audio encoder of a model "without fusion", such as larger_clap_music or
clap-htsat-unfused, as transformers.js has it in `audio_model.onnx`: the one input is float32 [batch, 1, 1001, 64], the
output [batch, 512].
"""

import functools
import os
import pathlib

import numpy as np
import scipy.fft
from jaxtyping import Float

from spectrodiff.audio.mel import hann
from spectrodiff.errors import InputError, reason
from spectrodiff.evaluation.musicnn import area_mel_matrix
from spectrodiff.fingerprint import fingerprint_of_files
from spectrodiff.vocoder.onnx import open_session

RATE = 48000
SECONDS = 10  # of audio in the network's input
HOP = 480
FFT_SIZE = 1024
MEL_BINS = 64
LOWEST, HIGHEST = 50.0, 14000.0  # Hz of its mels
_BATCH = 4  # windows


class Clap:
    """An embedding of audio at `rate` Hz: one vector for ten seconds, every second (Gui et al. 2024).

    Vectors are scaled to length 1, as published. Shorter audio is repeated to ten seconds, as in training; of longer
    audio, an end of less than a second is left out.
    """

    name = "clap"
    rate = RATE
    hop = 1.0
    dims = 512
    licence = "that of the file given"

    def __init__(self, path: str | os.PathLike):
        """Loads the ONNX file at `path`.

        Raises:
          InputError: there is no such file, it is another model, or onnxruntime is not installed.
        """
        self.path, self._session = path, open_session(path, "audio encoder of CLAP")
        self.identity = fingerprint_of_files({"model": pathlib.Path(path)})
        self._input = self._session.get_inputs()[0].name
        self(np.zeros(0, np.float32))

    def __call__(self, audio: Float[np.ndarray, " s"]) -> Float[np.ndarray, "n 512"]:
        """Returns the embeddings of audio at `rate` Hz; see `Embedding`."""
        whole = SECONDS * RATE
        if len(audio) < whole:
            repeated = np.tile(audio, whole // max(1, len(audio)))
            audio = np.pad(repeated, (0, whole - len(repeated)))
        starts = range(0, len(audio) - whole + 1, round(self.hop * RATE))
        parts = [
            self._run(np.stack([clap_mel(audio[start : start + whole]) for start in starts[at : at + _BATCH]]))
            for at in range(0, len(starts), _BATCH)
        ]
        frames = np.concatenate(parts)
        return frames / np.maximum(np.linalg.norm(frames, axis=1, keepdims=True), 1e-12)

    def _run(self, mels: Float[np.ndarray, "b t 64"]) -> Float[np.ndarray, "b 512"]:
        try:
            frames = np.asarray(self._session.run(None, {self._input: mels[:, None]})[0], np.float32)
        except Exception as error:  # onnxruntime's, which share no class
            raise InputError(f"{self.path} is no audio encoder of CLAP without fusion: {reason(error)}") from error
        if frames.shape != (len(mels), self.dims):
            raise InputError(
                f"{self.path} is no audio encoder of CLAP: its output for {len(mels)} windows is {list(frames.shape)}, "
                f"not [{len(mels)}, {self.dims}]"
            )
        return frames


def clap_mel(audio: Float[np.ndarray, " s"]) -> Float[np.ndarray, "t 64"]:
    """Computes a power mel spectrogram in decibels, not below -100.

    Frame i is centred on sample HOP * i; both ends of the audio are mirrored.
    """
    padded = np.pad(audio.astype(np.float32), FFT_SIZE // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, FFT_SIZE)[::HOP]
    spectrum = scipy.fft.rfft(frames * hann(FFT_SIZE).astype(np.float32))
    power = np.square(spectrum.real) + np.square(spectrum.imag)
    return 10.0 * np.log10(np.maximum(power @ _mel_matrix(), 1e-10)).astype(np.float32)


@functools.cache
def _mel_matrix() -> Float[np.ndarray, "f 64"]:
    return area_mel_matrix(MEL_BINS, FFT_SIZE, RATE, LOWEST, HIGHEST).astype(np.float32)
