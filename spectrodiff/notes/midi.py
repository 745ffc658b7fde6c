"""MIDI files to notes and back."""

import os
from collections.abc import Callable

import mido
import numpy as np

from spectrodiff.errors import InputError
from spectrodiff.files import local_path, replacing
from spectrodiff.notes import performance, smf
from spectrodiff.notes.sequence import Notes

_TICKS_PER_BEAT = 1000  # of files that are written, at 120 beats per minute: a tick is half a millisecond
_MAX_HOURS = 24  # longer files are damaged, and their windows would not fit into memory
_PACKED = {b"PK\3\4": "zip", b"\x1f\x8b": "gzip", b"Rar!": "RAR", b"7z\xbc\xaf": "7z", b"BZh": "bzip2"}


def read_midi(
    path: str | os.PathLike, *, channel_volume: bool = False, tell: Callable[[str], None] | None = None
) -> Notes:
    """Returns the notes of a MIDI file as a General MIDI synthesizer plays them.

    Each note lasts as long as its key and the pedals hold it; times are in seconds.

    The messages of all tracks are read as one stream for each port and channel; docs/midi.md lists what is played, what
    is ignored and what is refused. Of common files, the notes are those that note-seq reads from them and its
    apply_sustain_control_changes returns, with which the published models were trained.

    If `channel_volume` is true, the channels' volume and expression scale velocities. If the file has messages that are
    not played, such as pitch bends, `tell` is called with one line that counts them.

    Raises:
      InputError: `path` is missing, unreadable, a folder, empty, not MIDI, cut short or corrupt, holds no notes, or
        lasts over 24 hours.
    """
    path = local_path(path)
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
    for mark, kind in _PACKED.items():
        if data.startswith(mark):
            raise InputError(f"{path} is a {kind} archive, not a MIDI file; unpack it")
    data = _unwrapped(data)
    if not data.startswith(b"MThd"):
        raise InputError(f"{path} is not a MIDI file; it should begin with 'MThd'")
    try:
        stream = smf.parse(data)
    except smf.CutShortError as error:
        raise InputError(f"{path} is a MIDI file cut short: {error}; get a whole copy of it") from None
    except smf.CorruptError as error:
        raise InputError(f"{path} cannot be read as MIDI: {error}; get another copy of it") from None
    notes = performance.perform(stream, channel_volume)
    if not len(notes):
        raise InputError(f"{path} holds no notes; name a MIDI file that does")
    if notes.total_time > 3600 * _MAX_HOURS:
        raise InputError(
            f"{path} cannot be read as MIDI: its last note ends after {notes.total_time / 3600:.0f} hours, "
            "which no real piece reaches; get another copy of it"
        )
    ignored = performance.ignored(stream, channel_volume)
    if tell and ignored:
        counts = ", ".join(f"{kind} ({count})" for kind, count in ignored.items())
        tell(f"{path}: messages that are not played: {counts}")
    return notes


def _unwrapped(data: bytes) -> bytes:
    """Returns the MIDI file within a RIFF file (RMID) or after a MacBinary header, or else the bytes unchanged."""
    if data[:4] == b"RIFF" and data[8:12] == b"RMID":
        at = 12
        while at < len(data) - 8:
            size = int.from_bytes(data[at + 4 : at + 8], "little")
            if data[at : at + 4] == b"data":
                return data[at + 8 :][:size]
            at += 8 + size + size % 2
    return data[128:] if data[:1] == b"\0" and data[128:132] == b"MThd" else data


def write_midi(notes: Notes, path: str | os.PathLike) -> None:
    """Writes a MIDI file with a track for each program and one for drums; times are rounded to half a millisecond.

    That is also the shortest duration of a note. Notes of one program and pitch that overlap end together, because MIDI
    cannot tell them apart. All drums get kit 0. Every 15 programs are on a MIDI port of their own.

    Raises:
      InputError: `path` cannot be written.
    """
    start = np.rint(notes.start * 2 * _TICKS_PER_BEAT).astype(int)
    end = np.maximum(np.rint(notes.end * 2 * _TICKS_PER_BEAT).astype(int), start + 1)
    channels = [channel for channel in range(16) if channel != 9]
    file = mido.MidiFile(ticks_per_beat=_TICKS_PER_BEAT)
    file.add_track().append(mido.MetaMessage("set_tempo", tempo=500_000))
    programs = [(int(p), ~notes.is_drum & (notes.program == p)) for p in np.unique(notes.program[~notes.is_drum])]
    tracks = [(i // 15, channels[i % 15], program, mask) for i, (program, mask) in enumerate(programs)]
    if notes.is_drum.any():
        tracks.append((0, 9, 0, notes.is_drum))
    for port, channel, program, mask in tracks:
        track = file.add_track()
        if len(programs) > 15:
            track.append(mido.MetaMessage("midi_port", port=port))
        track.append(mido.Message("program_change", channel=channel, program=program))
        events = [(end[i], 0, int(notes.pitch[i])) for i in np.flatnonzero(mask)]
        events += [(start[i], int(notes.velocity[i]), int(notes.pitch[i])) for i in np.flatnonzero(mask)]
        now = 0
        for tick, velocity, pitch in sorted(events):  # at one tick, note-offs (velocity 0) come first
            track.append(mido.Message("note_on", channel=channel, note=pitch, velocity=velocity, time=int(tick - now)))
            now = tick
    with replacing(path) as temporary:
        file.save(temporary)
