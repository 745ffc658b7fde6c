"""MIDI files to notes and back."""

import os
import pathlib

import mido
import numpy as np

from spectrodiff.errors import InputError
from spectrodiff.files import replacing
from spectrodiff.notes.sequence import Notes, import_note_seq, notes_of

_TICKS_PER_BEAT = 1000  # written at 120 beats a minute: a tick is half a millisecond
# Parsing fills a table of float64 up to the last tick. Four hours at 960 a beat and 200 beats a minute are 46 million.
_MAX_TICK = 50_000_000
_META, _TEMPO, _END_OF_TRACK, _PRIVATE = 0xFF, 0x51, 0x2F, 0x7F
_MESSAGE_BYTES = {0x80: 2, 0x90: 2, 0xA0: 2, 0xB0: 2, 0xC0: 1, 0xD0: 1, 0xE0: 2}  # data bytes by kind of message


def read_midi(path: str | os.PathLike) -> Notes:
    """The notes of a MIDI file, read by note-seq, each as long as the sustain pedal makes it sound.

    As note-seq reads them: a note-off ends every note open on its pitch; notes of zero length, and notes never ended,
    are left out; tempo comes from the first track. Only notes, controllers, programs and tempo are looked at, so
    that no odd key or time signature, lyric or vendor's event can make a file unreadable.

    Raises:
      InputError: `path` is missing, unreadable, a folder, empty, not MIDI, cut short or corrupt, keeps time in SMPTE
        frames, or holds no notes.
    """
    note_seq = import_note_seq()
    path = pathlib.Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; name a MIDI file") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder; name a MIDI file") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    if not data:
        raise InputError(f"{path} is empty; name a MIDI file")
    if not data.startswith(b"MThd"):
        raise InputError(f"{path} is not a MIDI file; it should begin with 'MThd'")
    try:
        data = _bare(data)
        sequence = note_seq.midi_to_note_sequence(data)
    except IndexError:
        raise InputError(f"{path} is a MIDI file cut short; get a whole copy of it") from None
    except _CorruptError as error:
        raise InputError(f"{path} cannot be read as MIDI: {error}") from None
    except note_seq.MIDIConversionError as error:
        why = str(error).splitlines()[0].removeprefix("Midi decoding error ")
        raise InputError(f"{path} is a corrupt MIDI file; get another copy of it ({why})") from error
    sequence = note_seq.apply_sustain_control_changes(sequence)
    if not sequence.notes:
        raise InputError(f"{path} holds no notes; name a MIDI file that does")

    return notes_of(sequence)


def write_midi(notes: Notes, path: str | os.PathLike) -> None:
    """Writes a MIDI file of one track per program and one of drums; times are rounded to half a millisecond.

    A note shorter than that lasts that long, and notes of one program and pitch that overlap end together, as MIDI
    has it. All drums get kit 0. With over 15 programs some share a channel, which readers that mind tracks (ours) tell
    apart.

    Raises:
      InputError: `path` cannot be written.
    """
    start = np.rint(notes.start * 2 * _TICKS_PER_BEAT).astype(int)
    end = np.maximum(np.rint(notes.end * 2 * _TICKS_PER_BEAT).astype(int), start + 1)
    channels = [channel for channel in range(16) if channel != 9]
    file = mido.MidiFile(ticks_per_beat=_TICKS_PER_BEAT)
    file.add_track().append(mido.MetaMessage("set_tempo", tempo=500_000))
    voices = [(int(p), ~notes.is_drum & (notes.program == p)) for p in np.unique(notes.program[~notes.is_drum])]
    tracks = [(channels[i % 15], program, mask) for i, (program, mask) in enumerate(voices)]
    if notes.is_drum.any():
        tracks.append((9, 0, notes.is_drum))
    for channel, program, mask in tracks:
        track = file.add_track()
        track.append(mido.Message("program_change", channel=channel, program=program))
        events = [(end[i], 0, int(notes.pitch[i])) for i in np.flatnonzero(mask)]
        events += [(start[i], int(notes.velocity[i]), int(notes.pitch[i])) for i in np.flatnonzero(mask)]
        now = 0
        for tick, velocity, pitch in sorted(events):  # at one tick, velocity 0 comes first: off before on
            track.append(mido.Message("note_on", channel=channel, note=pitch, velocity=velocity, time=int(tick - now)))
            now = tick
    with replacing(path) as temporary:
        file.save(temporary)


class _CorruptError(ValueError):
    """Bytes that are no standard MIDI file; an IndexError says that they end too early."""


def _bare(data: bytes) -> bytes:
    """The same MIDI file as its parsers like it: only tracks, and only meta events that move notes.

    Other meta events keep their place but turn into private ones, which parsers skip whatever they hold.
    """
    size = int.from_bytes(data[4:8])
    form, declared, division = (int.from_bytes(data[at : at + 2]) for at in (8, 10, 12))
    data[13]  # raises IndexError if cut short
    if division == 0 or division >= 0x8000:
        raise _CorruptError("it counts time in SMPTE frames, not in beats; save it with a beat-based time division")
    tracks, seen, at = [], 0, 8 + size
    while seen < declared:
        data[at + 7]
        end = at + 8 + int.from_bytes(data[at + 4 : at + 8])
        data[end - 1]
        if data[at : at + 4] == b"MTrk":  # anything else is a vendor's
            seen += 1
            tracks += [_bare_track(data[at + 8 : end])] if end > at + 8 else []
        at = end
    tracks = tracks or [bytes([0, _META, _END_OF_TRACK, 0])]
    header = b"MThd" + b"".join(n.to_bytes(width) for n, width in ((6, 4), (form, 2), (len(tracks), 2), (division, 2)))
    return header + b"".join(b"MTrk" + len(track).to_bytes(4) + track for track in tracks)


def _bare_track(track: bytes) -> bytes:
    track = bytearray(track)
    at = tick = running = 0
    while at < len(track):
        delta, at = _variable(track, at)
        tick += delta
        status = track[at]
        if status < 0x80:
            status = running
        else:
            at += 1
            running = status if status < 0xF0 else running  # many files lean on running status across a meta event
        if status == _META:
            kind = at
            length, at = _variable(track, at + 1)
            tempo = track[kind] == _TEMPO and length == 3 and any(track[at : at + 3])
            if not tempo and track[kind] != _END_OF_TRACK:
                track[kind] = _PRIVATE
            at += length
        elif status in (0xF0, 0xF7):
            length, at = _variable(track, at)
            at += length
        elif status & 0xF0 in _MESSAGE_BYTES:
            at += _MESSAGE_BYTES[status & 0xF0]
        else:
            raise _CorruptError(f"{status:#x} is no event of a MIDI file; get another copy of it")
        if at > len(track):
            raise IndexError
    if tick > _MAX_TICK:
        raise _CorruptError(f"its last event is at tick {tick}, which no real piece reaches; get another copy of it")
    return bytes(track)


def _variable(track: bytearray, at: int) -> tuple[int, int]:
    """The variable-length number at `at`, and where it ends."""
    value = 0
    while True:
        value, at = value << 7 | track[at] & 0x7F, at + 1
        if track[at - 1] < 0x80:
            return value, at
