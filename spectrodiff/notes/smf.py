"""A lenient parser of standard MIDI files, which merges the channel messages of all tracks into one stream.

The format is that of "Standard MIDI Files 1.0" (RP-001, MIDI Manufacturers Association 1996). docs/midi.md lists how
violations of it are handled.
"""

import dataclasses

import numpy as np
from jaxtyping import Float64, Int64

OFF, ON, KEY_PRESSURE, CONTROL, PROGRAM, CHANNEL_PRESSURE, BEND = range(0x80, 0xF0, 0x10)
_SYSEX, _ESCAPE, _META = 0xF0, 0xF7, 0xFF
_PORT, _END_OF_TRACK, _TEMPO = 0x21, 0x2F, 0x51
_SYSTEM = {0xF1: 1, 0xF2: 2, 0xF3: 1, 0xF6: 0, **dict.fromkeys(range(0xF8, 0xFF), 0)}  # data bytes that follow
_FRAMES = {24: 24.0, 25: 25.0, 29: 30_000 / 1001, 30: 30.0}  # a second, by the SMPTE format of the header
_DEFAULT_TEMPO = 500_000  # microseconds a beat


class CorruptError(ValueError):
    """An error in bytes that are not a standard MIDI file. The message gives the reason."""


class CutShortError(CorruptError):
    """An error in bytes that are the beginning of a MIDI file."""


@dataclasses.dataclass(frozen=True)
class Stream:
    """All channel messages of a file, in the order in which a synthesizer receives them.

    `tick` is the absolute time, and `channel` is 16 * port + channel. `kind` is the status byte without the channel.
    `first` and `second` are the data bytes, 0..127; the second is 0 for messages that have only one. `damaged` is the
    number of messages that are left out, because their data bytes were larger. `end` is the tick at which the last
    track ends. `changes` are the ticks at which the tempo changes, `seconds` their times, and `scale` the length of a
    tick from there on, in seconds.
    """

    tick: Int64[np.ndarray, " n"]
    track: Int64[np.ndarray, " n"]
    channel: Int64[np.ndarray, " n"]
    kind: Int64[np.ndarray, " n"]
    first: Int64[np.ndarray, " n"]
    second: Int64[np.ndarray, " n"]
    damaged: int
    end: int
    changes: Int64[np.ndarray, " m"]
    seconds: Float64[np.ndarray, " m"]
    scale: Float64[np.ndarray, " m"]

    def time(self, tick: Int64[np.ndarray, "*n"]) -> Float64[np.ndarray, "*n"]:
        """Returns the times of ticks in seconds."""
        which = np.searchsorted(self.changes, tick, side="right") - 1
        return self.seconds[which] + self.scale[which] * (tick - self.changes[which])


@dataclasses.dataclass
class _Track:
    """The channel messages of a track, and its changes of port and tempo."""

    ticks: list[int] = dataclasses.field(default_factory=list)
    messages: list[int] = dataclasses.field(default_factory=list)  # status << 16 | first << 8 | second data byte
    ports: list[tuple[int, int]] = dataclasses.field(default_factory=list)  # number of messages before, port
    tempos: list[tuple[int, int]] = dataclasses.field(default_factory=list)  # tick, microseconds a beat
    end: int = 0


def parse(data: bytes) -> Stream:
    """Reads a file that begins with its header chunk.

    Raises:
      CorruptError: the bytes are no such file, or end too early (CutShortError).
    """
    if len(data) < 14:
        raise CutShortError("it ends within its header")
    declared, division = (int.from_bytes(data[at : at + 2]) for at in (10, 12))
    chunks = _Chunks(data)
    at = chunks.end(0)
    if at < 14 or not chunks.lead_on(at):  # the header's length is wrong
        at = data.find(b"MTrk", 14)
    tracks = []
    while 0 <= at <= len(data) - 8 and data[at : at + 4] != b"MThd":
        if data[at : at + 4] == b"MTrk":
            track, at = _read_chunk(chunks, at)
            tracks.append(track)
        elif chunks.lead_on(at):  # a chunk of another type
            at = chunks.end(at)
        else:
            at = data.find(b"MTrk", at) if len(tracks) < declared else -1
    if len(tracks) < declared:
        raise CutShortError(f"its header counts {declared} tracks, of which {len(tracks)} are there")
    return _merge(tracks, division)


class _Chunks:
    """The chunks of a file, whose declared lengths may be wrong."""

    def __init__(self, data: bytes):
        self.data = data
        self._known = {}

    def end(self, at: int) -> int:
        """Returns where the chunk at `at` ends by its declared length."""
        return at + 8 + int.from_bytes(self.data[at + 4 : at + 8])

    def lead_on(self, at: int) -> bool:
        """Returns whether a track, the header or the end of the file is at `at`, or a chain of other chunks to one."""
        visited = []
        while at not in self._known:
            visited.append(at)
            name = self.data[at : at + 4]
            if name in (b"MTrk", b"MThd", b""):
                self._known[at] = at <= len(self.data)
            elif at + 8 > len(self.data) or not all(0x20 <= byte < 0x7F for byte in name):
                self._known[at] = False
            else:
                at = self.end(at)
        self._known.update(dict.fromkeys(visited, self._known[at]))
        return self._known[at]


def _read_chunk(chunks: _Chunks, at: int) -> tuple[_Track, int]:
    """Returns the track in the chunk at `at`, and where the next chunk begins.

    If the declared length does not lead to another chunk, it is wrong, and the track ends with its end-of-track event.
    """
    data, end = chunks.data, chunks.end(at)
    if chunks.lead_on(end):
        return _read_track(data, at + 8, end)[0], end
    following = data.find(b"MTrk", end)
    try:
        return _read_track(data, at + 8, following if following >= 0 else len(data), needs_end=True)
    except CorruptError:
        if end > len(data):
            raise
        return _read_track(data, at + 8, end)[0], end  # there is no such event, and what follows is not MIDI


def _read_track(data: bytes, at: int, end: int, needs_end: bool = False) -> tuple[_Track, int]:
    """Returns the events from `at` to `end`, or to an end-of-track event before it, and where they end.

    Running status continues after meta events, system exclusives and system messages, as many files need it to. With
    `needs_end`, a missing end-of-track event is an error.
    """
    track = _Track()
    tick = running = 0
    ticks, messages = track.ticks.append, track.messages.append
    try:
        while at != end:
            delta, at = data[at], at + 1
            if delta > 0x7F:
                delta, at = _number(data, at - 1)
            tick += delta
            status = data[at]
            if status > 0x7F:
                at += 1
            else:
                status = running
            if status < 0xF0:
                running = status
                ticks(tick)
                if status & 0xE0 == 0xC0:  # a program or the pressure of a channel
                    messages(status << 16 | data[at] << 8)
                    at += 1
                elif status:
                    messages(status << 16 | data[at] << 8 | data[at + 1])
                    at += 2
                else:
                    raise CorruptError("a track begins with data of no event")
            elif status == _META:
                kind = data[at]
                length, at = _number(data, at + 1)
                at += length
                if kind == _END_OF_TRACK and at <= end:
                    needs_end = False
                    break
                value = data[at - length : at]
                if kind == _TEMPO and length == 3 and any(value):
                    track.tempos.append((tick, int.from_bytes(value)))
                elif kind == _PORT and value:
                    track.ports.append((len(track.messages), value[0]))
            elif status in (_SYSEX, _ESCAPE):
                length, at = _number(data, at)
                at += length
            elif status in _SYSTEM:
                at += _SYSTEM[status]
            else:
                raise CorruptError(f"{status:#x} is no event of a MIDI file")
            if at > end:
                raise IndexError
        if needs_end:
            raise IndexError
    except IndexError:
        raise CutShortError("it ends within a track") from None
    track.end = tick
    return track, at


def _number(data: bytes, at: int) -> tuple[int, int]:
    """Returns the variable-length number at `at`, of at most four bytes, and where it ends."""
    value = 0
    for place in range(at, at + 4):
        value = value << 7 | data[place] & 0x7F
        if data[place] < 0x80:
            return value, place + 1
    raise CorruptError("a number in it has over four bytes")


def _merge(tracks: list[_Track], division: int) -> Stream:
    """Merges the tracks. At each tick, messages are in the order of tracks, with one exception.

    The messages of a track before its first note-on at a tick, such as program changes, come before the note-ons of all
    tracks at that tick.
    """
    sizes = [len(track.messages) for track in tracks]
    tick = np.array([tick for track in tracks for tick in track.ticks], np.int64)
    message = np.array([message for track in tracks for message in track.messages], np.int64)
    number = np.repeat(np.arange(len(tracks)), sizes)
    port = np.full(len(tick), -1)
    for track, start, size in zip(tracks, np.cumsum([0, *sizes]), sizes, strict=False):
        for at, value in track.ports:
            port[start + at : start + size] = value

    kind, channel, first, second = message >> 20 << 4, message >> 16 & 15, message >> 8 & 0xFF, message & 0xFF
    sounding = (kind == ON) & (second > 0)
    ports = np.unique(port[sounding])
    # Tracks without a port are on port 0 or, if all notes are on a single other port, on that one.
    channel += 16 * np.where(port < 0, max(ports[0], 0) if len(ports) == 1 else 0, port)

    # Messages of one track at one tick form a group; those from its first note-on are late.
    group = np.cumsum(np.diff(tick, prepend=-1).astype(bool) | np.diff(number, prepend=-1).astype(bool)) - 1
    before = np.cumsum(sounding) - sounding  # the number of note-ons before each message, over all tracks
    before_group = np.full(len(tick), len(tick))
    np.minimum.at(before_group, group, before)
    late = sounding | (before > before_group[group])
    valid = (first < 0x80) & (second < 0x80)
    order = np.lexsort((number, late, tick))
    order = order[valid[order]]
    columns = (column[order] for column in (tick, number, channel, kind, first, second))
    end = max((track.end for track in tracks), default=0)
    return Stream(*columns, int((~valid).sum()), end, *_tempo_map(tracks, division))


def _tempo_map(tracks: list[_Track], division: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns `changes`, `seconds` and `scale` of a `Stream`.

    They are computed by the same float64 operations as in pretty_midi, so that times are exactly equal to note-seq's.
    """
    beat, frames = division & 0x7FFF, 256 - (division >> 8)
    if division & 0x8000:
        if frames not in _FRAMES or not division & 0xFF:
            raise CorruptError(f"it counts time in SMPTE frames of unknown length (division {division:#x})")
        return np.zeros(1, np.int64), np.zeros(1), np.array([1.0 / (_FRAMES[frames] * (division & 0xFF))])
    if not beat:
        raise CorruptError("it has no ticks to a beat (division 0)")
    changes, seconds, scale = [0], [0.0], [60.0 / (6e7 / _DEFAULT_TEMPO * beat)]
    for tick, tempo in sorted((tempo for track in tracks for tempo in track.tempos), key=lambda tempo: tempo[0]):
        length = 60.0 / (6e7 / tempo * beat)
        if tick == 0:
            scale = [length]
        elif length != scale[-1]:
            seconds.append(seconds[-1] + scale[-1] * (tick - changes[-1]))
            changes.append(tick)
            scale.append(length)
    return np.array(changes, np.int64), np.array(seconds), np.array(scale)
