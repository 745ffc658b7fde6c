"""Turning mel into audio piece by piece: while it still arrives, in bounded memory, with one compiled program.

Every vocoder cuts its input on one fixed grid, however the frames come in, so that streaming and calling it at once
run the very same steps.
"""

from collections.abc import Iterable, Iterator
from typing import Protocol, runtime_checkable

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from spectrodiff.audio.mel import HOP, LOG_FLOOR, MEL_BINS
from spectrodiff.errors import InputError
from spectrodiff.fingerprint import fingerprint
from spectrodiff.vocoder.generator import Generator, receptive_frames

_LOUDEST = 8.0  # nats; noise at full scale comes to 7
Mel = Float[Array | np.ndarray, "_t m"]  # pieces of one stream may differ in length
Audio = Float[np.ndarray, " _s"]


@runtime_checkable
class Vocoder(Protocol):
    """Unscaled log-mel [t, MEL_BINS] to audio [t * HOP] at SAMPLE_RATE, at once or as frames arrive.

    `identity` is what a vocoder is, and a fingerprint of all that its sound depends on: of its weights or its file, and
    of its settings. Vocoders that share it make the same audio of a mel, up to rounding; it says nothing of where their
    weights lie.
    """

    def __call__(self, mel: Mel) -> Audio: ...

    def stream(self, mels: Iterable[Mel]) -> Iterator[Audio]: ...

    def identity(self) -> str: ...


def windows(mels: Iterable[Mel], before: int, chunk: int, after: int) -> Iterator[tuple[Float[np.ndarray, "w m"], int]]:
    """Cuts mel arriving in pieces of any length into chunks, each with the frames before and after it.

    Beyond both ends of the piece lies silence. Yields (window [before + chunk + after, m], frames of the chunk that
    are the piece's: fewer than `chunk` only in the last one).

    Raises:
      InputError: a piece is not [t, MEL_BINS] or holds what is not a number, or no frame comes at all.
    """
    size = before + chunk + after
    waiting = np.full((before, MEL_BINS), LOG_FLOOR, np.float32)
    empty = True
    for mel in mels:
        mel = checked(mel)
        empty = empty and not len(mel)
        waiting = np.concatenate([waiting, mel])
        while len(waiting) >= size:
            yield waiting[:size], chunk
            waiting = waiting[chunk:]
    if empty:
        raise InputError("the mel has no frames, so there is nothing to make audible")
    while (left := len(waiting) - before) > 0:
        window = np.pad(waiting, ((0, max(0, size - len(waiting))), (0, 0)), constant_values=LOG_FLOOR)
        yield window[:size], min(left, chunk)
        waiting = waiting[chunk:]


def checked(mel: Mel) -> Float[np.ndarray, "t m"]:
    """The mel as a float32 numpy array.

    Raises:
      InputError: it is not [t, MEL_BINS], or holds what is not a number.
    """
    mel = np.asarray(mel, np.float32)
    if mel.ndim != 2 or mel.shape[1] != MEL_BINS:
        raise InputError(f"a mel is an array [frames, {MEL_BINS}], but this one is {list(mel.shape)}")
    if not np.isfinite(mel).all():
        frame = int(np.argmin(np.isfinite(mel).all(axis=1)))
        raise InputError(f"the mel holds a value that is not a number (first in frame {frame}); compute it again")
    if len(mel) and (mel.min() < LOG_FLOOR - 1.0 or mel.max() > _LOUDEST or np.abs(mel).max() <= 1.0):
        raise InputError(
            f"the mel runs from {mel.min():.3g} to {mel.max():.3g}, which no log-mel of audio does: it has to be the "
            f"unscaled log of magnitudes, from {LOG_FLOOR:.2f} for silence to {_LOUDEST:g} at most"
        )
    return mel


class MelGAN:
    """A vocoder around a trained generator. Chunks overlap by as many frames as the generator can see.

    A piece is surrounded by silence, so its ends sound alike however it is cut.
    """

    def __init__(self, generator: Generator, chunk: int = 128):
        self.chunk, self.cfg = chunk, generator.cfg
        self.reach = receptive_frames(generator.cfg)
        graph, self.weights = nnx.split(generator)
        self._decode = jax.jit(lambda weights, mel, first: nnx.merge(graph, weights)(mel[None], first[None])[0])

    def __call__(self, mel: Mel) -> Audio:
        """Raises InputError for a mel that is empty, of another shape, or not all numbers."""
        return np.concatenate(list(self.stream([mel])))

    def stream(self, mels: Iterable[Mel]) -> Iterator[Audio]:
        """Yields audio as soon as a chunk and what the generator sees after it have come."""
        for index, (window, frames) in enumerate(windows(mels, self.reach, self.chunk, self.reach)):
            first = jnp.int32(index * self.chunk - self.reach)
            audio = np.asarray(self._decode(self.weights, jnp.asarray(window), first))
            yield audio[self.reach * HOP :][: frames * HOP]

    def identity(self) -> str:
        """As `Vocoder` has it, of the generator's weights and its config."""
        return f"MelGAN {fingerprint(self.weights, self.cfg)}"
