"""Pieces of music as training reads them: encoded until somebody listens, and kept at hand for a while."""

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

from spectrodiff.audio.mel import HOP
from spectrodiff.data.recordings import from_flac
from spectrodiff.notes.sequence import Notes, from_note_sequence


@dataclasses.dataclass(frozen=True)
class Piece:
    """A recording of `samples` samples at SAMPLE_RATE, and its notes.

    `read(start, count)` is float32 audio from sample `start` on, `count` samples or as many as there are. `size` is
    about how many bytes of memory it holds on to.
    """

    samples: int
    read: Callable[[int, int], Float[np.ndarray, " s"]] = dataclasses.field(repr=False)
    read_notes: Callable[[], Notes] = dataclasses.field(repr=False)
    stems: tuple["Piece", ...] = ()
    size: int = 0

    @functools.cached_property
    def notes(self) -> Notes:
        return self.read_notes()

    @property
    def frames(self) -> int:
        """Frames of its log-mel."""
        return -(-self.samples // HOP)


def open_piece(record: dict[str, Any], stems: bool = False) -> Piece:
    """The piece of a record, nothing of it decoded yet; with its stems if these are asked for."""
    audio, notes = record["audio"], record["notes"]
    parts = tuple(map(open_piece, record["stems"])) if stems else ()
    return Piece(
        samples=count_samples(audio),
        read=functools.partial(from_flac, audio),
        read_notes=functools.partial(from_note_sequence, notes),
        stems=parts,
        # Notes and their timeline take four times what their NoteSequence does.
        size=len(audio) + 5 * len(notes) + sum(part.size for part in parts),
    )


def count_samples(flac: bytes) -> int:
    """The length of encoded audio, from its header alone."""
    return soundfile.info(io.BytesIO(flac)).frames


class LRUCache:
    """Keeps what was read, up to so many bytes of it; what was not asked for longest goes first. For many threads."""

    def __init__(self, capacity: int):
        self._capacity = capacity
        self._items: collections.OrderedDict[Hashable, tuple[Any, int]] = collections.OrderedDict()
        self._size = 0
        self._lock = threading.Lock()

    def get(self, key: Hashable, read: Callable[[], tuple[Any, int]]) -> Any:
        """What is kept under `key`, else what `read` returns, together with its size in bytes."""
        with self._lock:
            if key in self._items:
                self._items.move_to_end(key)
                return self._items[key][0]
        item, size = read()  # two threads may read the same one: rare, and does no harm
        with self._lock:
            self._size += size - self._items.pop(key, (None, 0))[1]
            self._items[key] = item, size
            while self._size > self._capacity and len(self._items) > 1:
                self._size -= self._items.popitem(last=False)[1][1]
        return item
