"""Vocoders from published files: black-box networks, applied to one window of frames at a time."""

import os
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from jaxtyping import Float

from spectrodiff.audio.mel import HOP, LOG_FLOOR, MEL_BINS
from spectrodiff.errors import InputError, reason
from spectrodiff.vocoder.streaming import Audio, Mel, check_mel, overlapping_chunks

OVERLAP = 32  # frames per side, 0.64 s; SoundStream's decoder needs 20 (strides 8, 5, 4, 2; Zeghidour et al. 2021)
CHUNK = 224  # frames; with OVERLAP one window of the model, so that its first window yields audio

Decode = Callable[[Float[np.ndarray, "1 w m"]], np.ndarray]  # to [1, w * HOP]


class PublishedVocoder:
    """A vocoder, unscaled log-mel [t, MEL_BINS] to audio [t * HOP], around a function that decodes a window.

    It decodes chunks with OVERLAP frames before and after them, in memory that does not depend on the length. If the
    receptive field of the network is at most OVERLAP frames per side, the audio equals that of decoding the whole piece
    at once, as the released code does, up to rounding. For networks with a larger receptive field (recurrent, or
    normalized over time) it is an approximation. Networks for a fixed number of frames get silence before and after a
    piece instead of their own padding.
    """

    def __init__(self, path: str | os.PathLike, decode: Decode, frames: int | None = None):
        """Makes a vocoder of `decode`, which was read from `path` and may require a fixed number of `frames`.

        Raises:
          InputError: that number is too small, or `decode` does not return HOP samples per frame.
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
                f"{path} is not a decoder of these mels: it returns {samples} samples for {size} frames, "
                f"not {size * HOP}"
            )

    def __call__(self, mel: Mel) -> Audio:
        """Returns audio; raises InputError for a mel that is empty, of another shape, or not a log-mel."""
        return np.concatenate(list(self.stream([mel])))

    def stream(self, mels: Iterable[Mel]) -> Iterator[Audio]:
        """Yields audio as soon as a chunk and the OVERLAP after it have arrived."""
        arrived = 0  # frames

        def counted():
            nonlocal arrived
            for mel in map(check_mel, mels):
                arrived += len(mel)
                yield mel

        for index, (window, frames) in enumerate(overlapping_chunks(counted(), OVERLAP, self.chunk, OVERLAP)):
            before = OVERLAP
            if self.frames is None:  # without the padding
                begin = index * self.chunk
                before = min(OVERLAP, begin)
                window = window[OVERLAP - before : OVERLAP + arrived - begin]
            yield self._audio(window)[before * HOP :][: frames * HOP]

    def _audio(self, window: Float[np.ndarray, "w m"]) -> Audio:
        try:
            return np.asarray(self._decode(window[None]), np.float32).reshape(-1)
        except Exception as error:  # runtimes raise exceptions of many classes
            raise InputError(
                f"{self.path} cannot decode a float32 mel {[1, *window.shape]}: {reason(error)}; export it for any "
                "number of frames"
            ) from error
