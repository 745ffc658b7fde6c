"""MIDI files from bytes, odd ones too: 500 ticks a beat, so that a tick is 1 ms until a tempo says otherwise."""

import struct

META, SYSEX = 0xFF, 0xF0


def number(n: int) -> bytes:
    """A variable-length number."""
    out = [n & 0x7F]
    while n := n >> 7:
        out.append(n & 0x7F | 0x80)
    return bytes(reversed(out))


def smf(*tracks: bytes, form: int = 1, division: int = 500, declared: int | None = None) -> bytes:
    """A file of tracks, whose header says it has `declared`."""
    header = struct.pack(">IHHH", 6, form, len(tracks) if declared is None else declared, division)
    return b"MThd" + header + b"".join(chunk(track) for track in tracks)


def chunk(track: bytes, length: int | None = None) -> bytes:
    return b"MTrk" + struct.pack(">I", len(track) if length is None else length) + track


def event(wait: int, *data: int) -> bytes:
    return number(wait) + bytes(data)


def on(wait: int, pitch: int, velocity: int = 80, channel: int = 0) -> bytes:
    return event(wait, 0x90 | channel, pitch, velocity)


def off(wait: int, pitch: int, channel: int = 0) -> bytes:
    return event(wait, 0x80 | channel, pitch, 0)


def program(wait: int, value: int, channel: int = 0) -> bytes:
    return event(wait, 0xC0 | channel, value)


def control(wait: int, which: int, value: int, channel: int = 0) -> bytes:
    return event(wait, 0xB0 | channel, which, value)


def tempo(wait: int, microseconds: int) -> bytes:
    return event(wait, META, 0x51, 3, *microseconds.to_bytes(3))


def port(value: int) -> bytes:
    return event(0, META, 0x21, 1, value)


def end(wait: int = 0) -> bytes:
    return event(wait, META, 0x2F, 0)


def note(wait: int, length: int, pitch: int, velocity: int = 80, channel: int = 0) -> bytes:
    return on(wait, pitch, velocity, channel) + off(length, pitch, channel)
