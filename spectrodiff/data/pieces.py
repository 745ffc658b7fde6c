"""Recordings with their notes, decoded lazily, and a cache of them."""

import collections
import dataclasses
import functools
import io
import threading
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
import soundfile
from jaxtyping import Float

from spectrodiff.audio.mel import HOP, SAMPLE_RATE
from spectrodiff.data.recordings import from_flac
from spectrodiff.notes.sequence import Notes, from_note_sequence


@dataclasses.dataclass(frozen=True)
class Piece:
    """A recording of `samples` samples at SAMPLE_RATE, and its notes.

    `read(start, count)` returns float32 audio from sample `start`, `count` samples or fewer at the end. It may have
    several columns, [count, columns]. `size` is the approximate number of bytes that the piece keeps in memory.
    """

    samples: int
    read: Callable[[int, int], Float[np.ndarray, "s *c"]] = dataclasses.field(repr=False)
    read_notes: Callable[[], Notes] = dataclasses.field(repr=False)
    stems: tuple["Piece", ...] = ()
    size: int = 0

    @functools.cached_property
    def notes(self) -> Notes:
        """The notes, which are decoded the first time."""
        return self.read_notes()

    @property
    def frames(self) -> int:
        """The number of frames of its log-mel."""
        return -(-self.samples // HOP)

    def with_silence(self, seconds: float) -> "Piece":
        """Returns the piece with `seconds` of silence after its end, and after those of its stems."""
        if not seconds:
            return self
        samples = self.samples + round(seconds * SAMPLE_RATE)

        def read(start: int, count: int) -> Float[np.ndarray, " s"]:
            before_end = min(count, max(0, self.samples - start))
            audio = self.read(start, before_end) if before_end else np.zeros(0, np.float32)
            return np.pad(audio, (0, min(count, samples - start) - len(audio)))

        stems = tuple(stem.with_silence(seconds) for stem in self.stems)
        return dataclasses.replace(self, samples=samples, read=read, stems=stems)


def open_piece(record: dict[str, Any], stems: bool = False) -> Piece:
    """Returns the piece of a record, with its stems if `stems`; nothing is decoded yet."""
    audio, notes = record["audio"], record["notes"]
    parts = tuple(map(open_piece, record["stems"])) if stems else ()
    return Piece(
        samples=count_samples(audio),
        read=functools.partial(from_flac, audio),
        read_notes=functools.partial(from_note_sequence, notes),
        stems=parts,
        # Notes and their timeline take four times the memory of their NoteSequence.
        size=len(audio) + 5 * len(notes) + sum(part.size for part in parts),
    )


def count_samples(flac: bytes) -> int:
    """Returns the length of FLAC audio in samples, from its header."""
    return soundfile.info(io.BytesIO(flac)).frames


class LRUCache:
    """A thread-safe cache of at most `capacity` bytes that drops the least recently used items first."""

    def __init__(self, capacity: int):
        self._capacity = capacity
        self._items: collections.OrderedDict[Hashable, tuple[Any, int]] = collections.OrderedDict()
        self._size = 0
        self._lock = threading.Lock()

    def get(self, key: Hashable, read: Callable[[], tuple[Any, int]]) -> Any:
        """Returns the cached item of `key`, or else that of `read()`, which returns an item and its size in bytes."""
        with self._lock:
            if key in self._items:
                self._items.move_to_end(key)
                return self._items[key][0]
        item, size = read()  # two threads may read the same item, which is rare and harmless
        with self._lock:
            self._size += size - self._items.pop(key, (None, 0))[1]
            self._items[key] = item, size
            while self._size > self._capacity and len(self._items) > 1:
                self._size -= self._items.popitem(last=False)[1][1]
        return item
