"""Vocoders that decode a stream of mels in chunks, in bounded memory, with one compiled program.

Chunks do not depend on how the frames arrive, so that streaming gives the same audio as one call.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, runtime_checkable

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from spectrodiff.audio.mel import HOP, LOG_FLOOR, MEL_BINS
from spectrodiff.errors import InputError, reason
from spectrodiff.fingerprint import fingerprint
from spectrodiff.vocoder.generator import Generator, receptive_frames

_MAX_LOG_MEL = 8.0  # nats; white noise at full scale has 7
_FEW_FRAMES = 10
Mel = Float[Array | np.ndarray, "_t m"]  # mels of a stream may differ in length
Audio = Float[np.ndarray, " _s"]


@runtime_checkable
class Vocoder(Protocol):
    """A function from unscaled log-mel [t, MEL_BINS] to audio [t * HOP] at SAMPLE_RATE, at once or as a stream.

    `identity` returns the vocoder's class and a fingerprint of its weights and settings, whatever their path. Vocoders
    with the same identity return the same audio, up to rounding.
    """

    def __call__(self, mel: Mel) -> Audio: ...

    def stream(self, mels: Iterable[Mel]) -> Iterator[Audio]: ...

    def identity(self) -> str: ...


def prepared_meanwhile(mels: Iterable[Mel], prepare: Callable[[], None]) -> Iterator[Mel]:
    """Yields the mels, after calling `prepare` in a thread while the first of them is awaited.

    Sampling a mel and loading a program both release Python's global interpreter lock, so that they run in parallel.
    """
    mels = iter(mels)
    with ThreadPoolExecutor(1) as pool:
        prepared = pool.submit(prepare)
        first = list(itertools.islice(mels, 1))
        prepared.result()
    yield from first
    yield from mels


def overlapping_chunks(
    mels: Iterable[Mel], before: int, chunk: int, after: int
) -> Iterator[tuple[Float[np.ndarray, "w m"], int]]:
    """Divides a stream of mels of any length into chunks, each with the frames before and after it.

    The stream is padded with silence. Yields windows [before + chunk + after, m] and the number of frames of the chunk
    that are not padding, which is less than `chunk` only in the last one.

    Raises:
      InputError: as `check_mel`, or there are no frames.
    """
    silence = np.full(MEL_BINS, LOG_FLOOR, np.float32)
    return _overlapping(map(check_mel, mels), silence, before, chunk, after)


def _overlapping(
    parts: Iterable[np.ndarray], silence: np.ndarray, before: int, chunk: int, after: int
) -> Iterator[tuple[np.ndarray, int]]:
    """Divides a stream of frames as `overlapping_chunks` does; `silence` is the frame that it is padded with."""
    size = before + chunk + after
    waiting = np.tile(silence, (before, 1))
    empty = True
    for part in parts:
        empty = empty and not len(part)
        waiting = np.concatenate([waiting, part])
        while len(waiting) >= size:
            yield waiting[:size], chunk
            waiting = waiting[chunk:]
    if empty:
        raise InputError("the mel has no frames")
    while (left := len(waiting) - before) > 0:
        window = np.concatenate([waiting, np.tile(silence, (max(0, size - len(waiting)), 1))])
        yield window[:size], min(left, chunk)
        waiting = waiting[chunk:]


def check_mel(mel: Mel) -> Float[np.ndarray, "t m"]:
    """Returns the mel as a float32 numpy array.

    Raises:
      InputError: it is not [t, MEL_BINS], has values that are not finite, or is not an unscaled log-mel.
    """
    try:
        mel = np.asarray(mel, np.float32)
    except (TypeError, ValueError) as error:
        raise InputError(f"a mel is an array [frames, {MEL_BINS}], but this is none ({reason(error)})") from error
    if mel.ndim != 2 or mel.shape[1] != MEL_BINS:
        raise InputError(f"a mel is an array [frames, {MEL_BINS}], but this one is {list(mel.shape)}")
    if not np.isfinite(mel).all():
        frame = int(np.argmin(np.isfinite(mel).all(axis=1)))
        raise InputError(f"the mel holds a value that is not a number (first in frame {frame}); compute it again")
    # A few frames of noise can have all values within one nat of 0, as all scaled mels have.
    scaled = len(mel) >= _FEW_FRAMES and np.abs(mel).max() <= 1.0
    if len(mel) and (mel.min() < LOG_FLOOR - 1.0 or mel.max() > _MAX_LOG_MEL or scaled):
        raise InputError(
            f"the mel runs from {mel.min():.3g} to {mel.max():.3g}, which no log-mel of audio does: it has to be the "
            f"unscaled log of magnitudes, from {LOG_FLOOR:.2f} for silence to {_MAX_LOG_MEL:g} at most"
        )
    return mel


class MelGAN:
    """A vocoder around a trained generator, with chunks that overlap by its receptive field.

    A piece is padded with silence, so that its audio does not depend on the size of chunks. By default, the first chunk
    can be corrected as soon as Griffin-Lim has made a chunk of its own. A generator with the excitation "griffin_lim"
    needs `griffin_lim`, the vocoder whose audio it corrects.
    """

    def __init__(self, generator: Generator, chunk: int = 96, griffin_lim: Vocoder | None = None):
        self.chunk, self.cfg, self.griffin_lim = chunk, generator.cfg, griffin_lim
        self.receptive_field = receptive_frames(generator.cfg)
        graph, self.weights = nnx.split(generator)
        self._decode = jax.jit(
            lambda weights, mel, *inputs: nnx.merge(graph, weights)(mel[None], *(x[None] for x in inputs))[0]
        )

    def __call__(self, mel: Mel) -> Audio:
        """Returns audio; raises InputError for a mel that is empty, of another shape, or not a log-mel."""
        return np.concatenate(list(self.stream([mel])))

    def _prepare(self) -> None:
        """Compiles the program of `stream`, or loads it from JAX's cache."""
        frames = self.chunk + 2 * self.receptive_field
        mel = jax.ShapeDtypeStruct((frames, MEL_BINS), jnp.float32)
        excitation = () if self.griffin_lim is None else (jax.ShapeDtypeStruct((frames * HOP,), jnp.float32),)
        self._decode.lower(self.weights, mel, jnp.int32(0), *excitation).compile()

    def stream(self, mels: Iterable[Mel]) -> Iterator[Audio]:
        """Yields audio as soon as a chunk and the frames it needs after it have arrived.

        The concatenated audio equals that of a call with the whole mel. Griffin-Lim divides the same mels into chunks
        of its own.
        """
        sizes = (self.receptive_field, self.chunk, self.receptive_field)
        mels, mels_again = itertools.tee(prepared_meanwhile(mels, self._prepare))
        windows = overlapping_chunks(mels, *sizes)
        if self.griffin_lim is None:
            excitations = itertools.repeat(())
        else:
            made = (audio.reshape(-1, HOP) for audio in self.griffin_lim.stream(mels_again))
            excitations = ((window.reshape(-1),) for window, _ in _overlapping(made, np.zeros(HOP, np.float32), *sizes))
        del mels_again  # without Griffin-Lim, it would keep all mels
        # Griffin-Lim comes first, so that its programs are loaded while the first mel is sampled.
        for index, (excitation, (window, frames)) in enumerate(zip(excitations, windows, strict=False)):
            first = jnp.int32(index * self.chunk - self.receptive_field)
            audio = np.asarray(self._decode(self.weights, window, first, *excitation))
            yield audio[self.receptive_field * HOP :][: frames * HOP]

    def identity(self) -> str:
        """Returns a fingerprint of the weights and configs of the generator and of Griffin-Lim; see `Vocoder`."""
        cfg = dataclasses.replace(self.cfg, refiner="")  # a path, whose refiner is part of Griffin-Lim's identity
        inputs = () if self.griffin_lim is None else (self.griffin_lim.identity(),)
        return f"MelGAN {fingerprint(self.weights, cfg, *inputs)}"
