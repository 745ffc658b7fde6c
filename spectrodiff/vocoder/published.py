"""Vocoders from published files: networks of whose insides nothing is known, played one window of frames at a time."""

import os
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from jaxtyping import Float

from spectrodiff.audio.mel import HOP, LOG_FLOOR, MEL_BINS
from spectrodiff.errors import InputError, reason
from spectrodiff.vocoder.streaming import Audio, Mel, checked, windows

OVERLAP = 32  # frames, 0.64 s; SoundStream's decoder sees 20 at strides of 8, 5, 4 and 2 (Zeghidour et al. 2021)
CHUNK = 224  # frames: with OVERLAP they fill one window of the model, so audio comes after the first

Decode = Callable[[Float[np.ndarray, "1 w m"]], np.ndarray]  # to [1, w * HOP]


class PublishedVocoder:
    """A vocoder, unscaled log-mel [t, MEL_BINS] to audio [t * HOP], around a function that decodes a window.

    It decodes chunks with the OVERLAP frames before and after them, so memory stays the same however long the piece is.
    Where a sample depends on at most OVERLAP frames on either side of its own, the audio is what decoding the whole
    piece at once gives, as the released code does, to rounding. Of a network that hears further (recurrent, normalised
    over time) it is an approximation; and a network for one number of frames only hears silence beyond the ends of a
    piece, not its own padding.
    """

    def __init__(self, path: str | os.PathLike, decode: Decode, frames: int | None = None):
        """`decode` is what was read from `path`; `frames` is the one number of frames it takes, if it takes only one.

        Raises:
          InputError: that number is too small, or `decode` does not make HOP samples of every frame of silence.
        """
        self.path, self.frames, self._decode = path, frames, decode
        size = CHUNK + 2 * OVERLAP if frames is None else frames
        self.chunk = size - 2 * OVERLAP
        if self.chunk < 1:
            raise InputError(
                f"{path} decodes exactly {frames} frames at a time, at least {2 * OVERLAP + 1} are needed: "
                "export it for any number of frames"
            )
        samples = len(self._audio(np.full((size, MEL_BINS), LOG_FLOOR, np.float32)))
        if samples != size * HOP:
            raise InputError(
                f"{path} is no decoder of these mels: it makes {samples} samples of {size} frames, "
                f"where {size * HOP} are needed"
            )

    def __call__(self, mel: Mel) -> Audio:
        """Raises InputError for a mel that is empty, of another shape, or not all numbers."""
        return np.concatenate(list(self.stream([mel])))

    def stream(self, mels: Iterable[Mel]) -> Iterator[Audio]:
        """Yields audio as soon as a chunk and the OVERLAP after it have come."""
        come = 0  # frames of the piece, so far

        def counted():
            nonlocal come
            for mel in map(checked, mels):
                come += len(mel)
                yield mel

        for index, (window, frames) in enumerate(windows(counted(), OVERLAP, self.chunk, OVERLAP)):
            before = OVERLAP
            if self.frames is None:  # leave out the silence that is not the piece's
                begin = index * self.chunk
                before = min(OVERLAP, begin)
                window = window[OVERLAP - before : OVERLAP + come - begin]
            yield self._audio(window)[before * HOP :][: frames * HOP]

    def _audio(self, window: Float[np.ndarray, "w m"]) -> Audio:
        try:
            return np.asarray(self._decode(window[None]), np.float32).reshape(-1)
        except Exception as error:  # its own runtime's, which share no class
            raise InputError(
                f"{self.path} does not take a float32 mel {[1, *window.shape]}, as does a mel decoder that was "
                f"exported for any number of frames: {reason(error)}"
            ) from error
