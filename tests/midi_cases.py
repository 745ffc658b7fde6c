"""Odd MIDI files, each with the notes that a synthesizer makes of it: (start, end, pitch, velocity, program or "drum").

Times are in milliseconds. `plain` writes the same notes as a file without oddities.
"""

import struct

from midi_writer import SYSEX, chunk, control, end, event, note, number, off, on, port, program, smf, tempo

ORGAN, BASS, VIOLIN, FLUTE = 16, 33, 40, 73
BLIP = 10  # a note of no length
BAD = 200  # no data byte
GM_ON = event(0, SYSEX, 5, 0x7E, 0x7F, 0x09, 0x01, 0xF7)
SCALE = [(500 * i, 500 * i + 500, 60 + i, 80, 0) for i in range(4)]
ONE = [(0, 500, 60, 80, ORGAN)]
LONG = [(0, 2000, 60, 80, ORGAN)]


def plain(rows) -> bytes:
    """One track per instrument, on a channel of its own; every message says what it is."""
    instruments = list(dict.fromkeys(row[4] for row in rows))
    tracks = [tempo(0, 500_000) + end()]
    for channel, instrument in enumerate(instruments):
        channel = 9 if instrument == "drum" else channel
        messages = []
        for start, stop, pitch, velocity, _ in (row for row in rows if row[4] == instrument):
            messages += [(start, 1, on, (pitch, velocity, channel)), (stop, 0, off, (pitch, channel))]
        track, now = b"" if instrument == "drum" else program(0, instrument, channel), 0
        for tick, _, write, values in sorted(messages, key=lambda message: message[:2]):
            track += write(tick - now, *values)
            now = tick
        tracks.append(track + end())
    return smf(*tracks)


def running(wait: int, pitch: int, velocity: int) -> bytes:
    """A note without its status; velocity 0 ends it."""
    return number(wait) + bytes([pitch, velocity])


def held(*events: bytes) -> bytes:
    """An organ note with events after it, and a second of silence; what is not ended lasts until then."""
    return smf(program(0, ORGAN) + on(0, 60) + b"".join(events) + end(1000))


def hit(wait: int, key: int) -> bytes:
    return on(wait, key, 100, 9) + off(0, key, 9)


GOOD = smf(program(0, ORGAN) + note(0, 500, 60) + end())
TRACK = GOOD[22:]
BEAT = [36, 42, 38, 42] * 2
HITS = [(250 * i, 250 * i + BLIP, key, 100, "drum") for i, key in enumerate(BEAT)]
PEDALLED = program(0, ORGAN) + control(0, 64, 127) + note(0, 100, 60)

CASES = {
    "programs in a setup track": (
        smf(
            program(0, VIOLIN, 0) + program(0, FLUTE, 1) + end(),
            note(0, 1000, 67, channel=0) + end(),
            note(1000, 1000, 79, channel=1) + end(),
        ),
        [(0, 1000, 67, 80, VIOLIN), (1000, 2000, 79, 80, FLUTE)],
    ),
    "a program in the upper staff": (
        smf(end(), program(0, VIOLIN) + note(0, 1000, 67) + end(), note(0, 1000, 55) + end()),
        [(0, 1000, 67, 80, VIOLIN), (0, 1000, 55, 80, VIOLIN)],
    ),
    "a program in the lower staff": (
        smf(end(), note(0, 1000, 67) + end(), program(0, VIOLIN) + note(0, 1000, 55) + end()),
        [(0, 1000, 67, 80, VIOLIN), (0, 1000, 55, 80, VIOLIN)],
    ),
    "a later program in another track": (
        smf(program(0, VIOLIN) + program(1000, FLUTE) + end(), note(0, 800, 67) + note(200, 800, 67) + end()),
        [(0, 800, 67, 80, VIOLIN), (1000, 1800, 67, 80, FLUTE)],
    ),
    "tempo on a later track": (
        smf(
            event(0, 0xFF, 0x03, 4, *b"Song") + end(),
            tempo(0, 1_000_000) + b"".join(note(0, 500, 60 + i) for i in range(4)) + end(),
        ),
        [(1000 * i, 1000 * i + 1000, 60 + i, 80, 0) for i in range(4)],
    ),
    "tempo changes on two tracks": (
        smf(tempo(1000, 250_000) + end(), tempo(500, 1_000_000) + end(), note(0, 1500, 60) + note(0, 500, 62) + end()),
        [(0, 1750, 60, 80, 0), (1750, 2000, 62, 80, 0)],
    ),
    "a pedal in a track of its own": (
        smf(end(), note(0, 100, 60) + end(), control(0, 64, 127) + control(2000, 64, 0) + end()),
        [(0, 2000, 60, 80, 0)],
    ),
    "a pedal in the left hand": (
        smf(end(), note(0, 100, 72) + end(), control(0, 64, 127) + note(0, 100, 48) + control(1900, 64, 0) + end()),
        [(0, 2000, 72, 80, 0), (0, 2000, 48, 80, 0)],
    ),
    "a pedal changed at one tick": (
        smf(PEDALLED + control(900, 64, 0) + control(0, 64, 127) + note(0, 100, 67) + control(900, 64, 0) + end()),
        [(0, 1000, 60, 80, ORGAN), (1000, 2000, 67, 80, ORGAN)],
    ),
    "note-offs in another track": (
        smf(on(0, 60) + on(500, 62) + end(), off(500, 60) + off(500, 62) + end()),
        [SCALE[0], (500, 1000, 62, 80, 0)],
    ),
    "running status after a system exclusive": (
        smf(
            on(0, 60)
            + GM_ON
            + running(500, 60, 0)
            + b"".join(running(0, 60 + i, 80) + GM_ON + running(500, 60 + i, 0) for i in (1, 2, 3))
            + end(),
            form=0,
        ),
        SCALE,
    ),
    "a system exclusive between notes": (
        smf(
            on(0, 60)
            + running(500, 60, 0)
            + GM_ON
            + running(0, 61, 80)
            + running(500, 61, 0)
            + note(0, 500, 62)
            + end(),
            form=0,
        ),
        SCALE[:3],
    ),
    "a program while a note sounds": (
        smf(
            tempo(0, 500_000) + end(),
            program(0, VIOLIN) + on(0, 67) + program(900, FLUTE) + off(100, 67) + note(0, 1000, 79) + end(),
        ),
        [(0, 1000, 67, 80, VIOLIN), (1000, 2000, 79, 80, FLUTE)],
    ),
    "a program at the tick of a note-off": (
        smf(program(0, VIOLIN) + on(0, 67) + program(1000, FLUTE) + off(0, 67) + note(0, 1000, 79) + end()),
        [(0, 1000, 67, 80, VIOLIN), (1000, 2000, 79, 80, FLUTE)],
    ),
    "drum hits of no length": (smf(b"".join(hit(250 if i else 0, key) for i, key in enumerate(BEAT)) + end()), HITS),
    "drum hits of no length, and a bass": (
        smf(
            b"".join(hit(250 if i else 0, key) for i, key in enumerate(BEAT)) + end(),
            program(0, BASS) + b"".join(note(0, 500, 36) for _ in range(4)) + end(),
        ),
        [*HITS, *((500 * i, 500 * i + 500, 36, 80, BASS) for i in range(4))],
    ),
    "drum hits never ended": (
        smf(b"".join(on(250 if i else 0, key, 100, 9) for i, key in enumerate(BEAT)) + end(1000)),
        HITS,
    ),
    "a note of no length": (
        smf(program(0, ORGAN) + note(0, 0, 60) + note(500, 500, 62) + end()),
        [(0, BLIP, 60, 80, ORGAN), (500, 1000, 62, 80, ORGAN)],
    ),
    "a note of no length, pedalled": (
        smf(program(0, ORGAN) + control(0, 64, 127) + note(0, 0, 60) + control(1000, 64, 0) + end()),
        [(0, 1000, 60, 80, ORGAN)],
    ),
    "a note of no length, struck again": (smf(program(0, ORGAN) + note(0, 0, 60) + note(0, 500, 60) + end()), ONE),
    "a timing clock in a track": (smf(on(0, 60) + event(10, 0xF8) + off(490, 60) + end(), form=0), SCALE[:1]),
    "system messages between running notes": (
        smf(
            on(0, 60)
            + event(0, 0xF1, 5)
            + running(500, 60, 0)
            + event(0, 0xF2, 1, 2)
            + running(0, 61, 80)
            + event(0, 0xF3, 9)
            + event(0, 0xF6)
            + event(0, 0xFE)
            + running(500, 61, 0)
            + end()
        ),
        SCALE[:2],
    ),
    "all sound off": (held(control(500, 120, 0), off(100, 60)), ONE),
    "all sound off under a pedal": (smf(PEDALLED + control(400, 120, 0) + end(1000)), ONE),
    "controllers reset under a pedal": (smf(PEDALLED + control(400, 121, 0) + end(1000)), ONE),
    "all notes off": (held(control(500, 123, 0), off(100, 60)), ONE),
    "all notes off under a pedal": (held(control(100, 64, 127), control(400, 123, 0), control(1500, 64, 0)), LONG),
    "omni off": (held(control(500, 124, 0)), ONE),
    "omni on": (held(control(500, 125, 0)), ONE),
    "mono": (held(control(500, 126, 1)), ONE),
    "poly": (held(control(500, 127, 0)), ONE),
    "sostenuto": (
        smf(
            program(0, ORGAN)
            + on(0, 60)
            + control(100, 66, 127)
            + on(100, 64)
            + off(100, 60)
            + off(200, 64)
            + control(1500, 66, 0)
            + end()
        ),
        [*LONG, (200, 500, 64, 80, ORGAN)],
    ),
    "a note never ended": (smf(program(0, ORGAN) + on(0, 60) + end(2000)), LONG),
    "notes never ended, struck again": (
        smf(program(0, ORGAN) + on(0, 60) + on(500, 60) + end(1500)),
        [*ONE, (500, 2000, 60, 80, ORGAN)],
    ),
    "data out of range": (
        smf(
            program(0, ORGAN)
            + event(0, 0x90, 60, BAD)
            + event(0, 0x90, BAD, 80)
            + program(0, BAD)
            + control(0, 7, BAD)
            + note(0, 500, 60)
            + end()
        ),
        ONE,
    ),
    "SMPTE time": (smf(program(0, ORGAN) + tempo(0, 1_000_000) + note(0, 500, 60) + end(), division=0xE728), ONE),
    "format 2": (
        smf(
            program(0, ORGAN) + note(0, 500, 60) + end(),
            program(0, BASS, 1) + note(0, 500, 36, channel=1) + end(),
            form=2,
        ),
        [*ONE, (0, 500, 36, 80, BASS)],
    ),
    "two ports": (
        smf(
            port(0) + program(0, ORGAN) + note(0, 500, 60) + end(),
            port(1) + program(0, BASS) + note(0, 500, 36) + end(),
        ),
        [*ONE, (0, 500, 36, 80, BASS)],
    ),
    "one port, and a setup track": (smf(program(0, ORGAN) + end(), port(3) + note(0, 500, 60) + end()), ONE),
    "RIFF": (
        b"RIFF"
        + struct.pack("<I", len(GOOD) + 24)
        + b"RMIDDISP\3\0\0\0abc\0data"
        + struct.pack("<I", len(GOOD))
        + GOOD
        + b"LIST",
        ONE,
    ),
    "MacBinary": (bytes(128) + GOOD + bytes(50), ONE),
    "a long header": (GOOD[:4] + struct.pack(">I", 8) + GOOD[8:14] + b"\0\0" + GOOD[14:], ONE),
    "a header of wrong length": (GOOD[:4] + struct.pack(">I", 600) + GOOD[8:], ONE),
    "a track longer than its length": (GOOD[:14] + chunk(TRACK, 5), ONE),
    "a track shorter than its length": (GOOD[:14] + chunk(TRACK, 1000), ONE),
    "tracks of wrong lengths": (
        smf(declared=2) + chunk(TRACK, 5) + chunk(program(0, BASS, 1) + note(0, 500, 36, channel=1) + end(), 2000),
        [*ONE, (0, 500, 36, 80, BASS)],
    ),
    "a track without an end": (smf(TRACK[:-4]), ONE),
    "notes after the end of a track": (smf(TRACK + note(0, 500, 64) + end()), ONE),
    "more tracks than it counts": (smf(end(), TRACK, declared=1), ONE),
}

# Where FluidSynth does otherwise, and loses notes or lets the order of tracks decide.
OURS_ALONE = (
    "a program in the lower staff",
    "two ports",
    "a track longer than its length",
    "tracks of wrong lengths",
    "more tracks than it counts",
)
