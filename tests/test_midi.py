"""Reading of MIDI files written with mido or byte by byte, one-line errors for invalid files, and writing."""

import struct

import mido
import numpy as np
import pytest

from spectrodiff.errors import InputError
from spectrodiff.notes import smf
from spectrodiff.notes.midi import Notes, read_midi, write_midi


def on(pitch, time=0, velocity=80, channel=0):
    return mido.Message("note_on", note=pitch, velocity=velocity, time=time, channel=channel)


def off(pitch, time=0, channel=0):
    return mido.Message("note_off", note=pitch, time=time, channel=channel)


def pedal(value, time=0, channel=0):
    return mido.Message("control_change", control=64, value=value, time=time, channel=channel)


def program(value, time=0, channel=0):
    return mido.Message("program_change", program=value, time=time, channel=channel)


def tempo(bpm, time=0):
    return mido.MetaMessage("set_tempo", tempo=mido.bpm2tempo(bpm), time=time)


@pytest.fixture
def midi(tmp_path):
    """A function that writes tracks of messages to a file, at 500 ticks per beat (1 ms per tick by default)."""

    def write(*tracks):
        file = mido.MidiFile(ticks_per_beat=500, tracks=[mido.MidiTrack(track) for track in tracks])
        file.save(tmp_path / "song.mid")
        return tmp_path / "song.mid"

    return write


def raw(*tracks, division=500, declared=None):
    """The bytes of a MIDI file made of the bytes of its tracks."""
    header = b"MThd" + struct.pack(">lhhH", 6, 1, len(tracks) if declared is None else declared, division)
    return header + b"".join(b"MTrk" + struct.pack(">l", len(track)) + track for track in tracks)


NOTE = bytes([0, 0x90, 60, 80, 0x83, 0x74, 0x80, 60, 0])  # half a second of middle C: 0x83 0x74 is 500 ticks
END = bytes([0, 0xFF, 0x2F, 0])


def rows(notes):
    """(start, end, pitch, velocity, program) of each note in order of time, with times rounded to microseconds."""
    program = [("drum" if d else p) for d, p in zip(notes.is_drum.tolist(), notes.program.tolist(), strict=True)]
    times = (np.round(notes.start, 6).tolist(), np.round(notes.end, 6).tolist())
    columns = zip(*times, notes.pitch.tolist(), notes.velocity.tolist(), program, strict=True)
    return sorted(columns, key=lambda row: row[:3])  # program may be the string "drum"


def test_notes_are_read_with_times_and_velocities(midi):
    notes = read_midi(midi([on(60, 250, velocity=33), on(64), off(60, 500), off(64, 125)]))
    assert rows(notes) == [(0.25, 0.75, 60, 33, 0), (0.25, 0.875, 64, 80, 0)]
    assert notes.total_time == 0.875
    assert len(notes) == 2


def test_note_on_with_velocity_0_is_a_note_off(midi):
    assert rows(read_midi(midi([on(60), on(60, 100, velocity=0)]))) == [(0.0, 0.1, 60, 80, 0)]


def test_tempo_changes_are_applied(midi):
    events = [tempo(60), on(60), off(60, 500), tempo(240), on(62), off(62, 500)]
    assert rows(read_midi(midi(events))) == [(0.0, 1.0, 60, 80, 0), (1.0, 1.25, 62, 80, 0)]


def test_tracks_have_their_own_programs_and_drums(midi):
    notes = read_midi(
        midi(
            [tempo(120)],
            [program(40, channel=1), on(60, channel=1), off(60, 500, channel=1)],
            [program(7, channel=1), on(60, channel=1), off(60, 250, channel=1)],
            [program(25, channel=9), on(36, channel=9), off(36, 125, channel=9)],
        )
    )
    assert rows(notes) == [(0.0, 0.125, 36, 80, "drum"), (0.0, 0.25, 60, 80, 7), (0.0, 0.5, 60, 80, 40)]
    assert notes.program[notes.is_drum].tolist() == [25]  # the drum kit


def test_program_change_applies_to_later_notes(midi):
    notes = read_midi(midi([program(5), on(60), off(60, 500), program(73), on(60), off(60, 500)]))
    assert rows(notes) == [(0.0, 0.5, 60, 80, 5), (0.5, 1.0, 60, 80, 73)]


def test_sustain_pedal_holds_notes_until_release_or_restrike(midi):
    track = [pedal(127), on(60), off(60, 100), on(62, 100), off(62, 100), on(60, 100), off(60, 100), pedal(0, 500)]
    notes = read_midi(midi(track))
    assert rows(notes) == [(0.0, 0.4, 60, 80, 0), (0.2, 1.0, 62, 80, 0), (0.4, 1.0, 60, 80, 0)]
    assert notes.total_time == 1.0


def test_sustain_pedal_affects_only_its_channel_and_no_drums(midi):
    drums = [on(38, channel=9), off(38, 100, channel=9), on(38, 1900, channel=9), off(38, 100, channel=9)]
    other = [program(3, channel=1), on(64, channel=1), off(64, 100, channel=1)]
    notes = read_midi(midi([pedal(64), on(60), off(60, 100), pedal(63, 900)], other, drums))
    assert rows(notes) == [
        *[(0.0, 0.1, 38, 80, "drum"), (0.0, 0.1, 64, 80, 3), (0.0, 1.0, 60, 80, 0), (2.0, 2.1, 38, 80, "drum")]
    ]
    assert notes.total_time == pytest.approx(2.1)


def test_unreleased_pedal_does_not_shorten_total_time(midi):
    drums = [on(38, 5000, channel=9), off(38, 100, channel=9)]
    notes = read_midi(midi([pedal(127), on(60), off(60, 100)], drums))
    assert notes.total_time == notes.end.max() == pytest.approx(5.1)


def test_zero_length_notes_get_a_minimum_duration(midi):
    drum = [on(38, channel=9), off(38, channel=9)]
    notes = read_midi(midi([on(60), off(60), on(62), off(62, 100), on(64), off(64)], drum))
    times = [(0.0, 0.01, 38, 80, "drum"), (0.0, 0.01, 60, 80, 0), (0.0, 0.1, 62, 80, 0), (0.1, 0.11, 64, 80, 0)]
    assert rows(notes) == times
    again = read_midi(midi([on(60), off(60), on(60), off(60), on(60), off(60, 3), on(60, 2), off(60), on(60, 4)]))
    assert rows(again) == [(0.0, 0.003, 60, 80, 0), (0.005, 0.009, 60, 80, 0), (0.009, 0.019, 60, 80, 0)]


IGNORED_EVENTS = {
    "key signature of 13 sharps": [0, 0xFF, 0x59, 2, 13, 0],
    "key signature of one byte": [0, 0xFF, 0x59, 1, 0],
    "time signature over 2^200": [0, 0xFF, 0x58, 4, 4, 200, 24, 8],
    "time signature over nothing": [0, 0xFF, 0x58, 4, 0, 2, 24, 8],
    "empty time signature": [0, 0xFF, 0x58, 0],
    "SMPTE offset of minute 99": [0, 0xFF, 0x54, 5, 0, 99, 0, 0, 0],
    "short SMPTE offset": [0, 0xFF, 0x54, 1, 0],
    "tempo of zero": [0, 0xFF, 0x51, 3, 0, 0, 0],
    "tempo of two bytes": [0, 0xFF, 0x51, 2, 7, 0],
    "sequence number of one byte": [0, 0xFF, 0x00, 1, 9],
    "odd text": [0, 0xFF, 0x01, 3, 0xFF, 0xFE, 0x80],
    "unknown meta event": [0, 0xFF, 0x60, 2, 1, 2],
    "system exclusive": [0, 0xF0, 3, 1, 2, 0xF7],
}


@pytest.mark.parametrize("event", IGNORED_EVENTS.values(), ids=IGNORED_EVENTS)
def test_irrelevant_or_malformed_meta_events_are_ignored(tmp_path, event):
    path = tmp_path / "song.mid"
    for data in (raw(bytes(event) + NOTE + END), raw(END, NOTE + bytes(event) + END)):
        path.write_bytes(data)
        assert rows(read_midi(path)) == [(0.0, 0.5, 60, 80, 0)]
    if event[1] == 0xFF:
        running = bytes([0, 0x90, 60, 80, *event, 0x83, 0x74, 60, 0])  # note off in running status
        path.write_bytes(raw(running + END))
        assert rows(read_midi(path)) == [(0.0, 0.5, 60, 80, 0)]


def test_empty_tracks_and_unknown_chunks_are_skipped(tmp_path):
    path = tmp_path / "song.mid"
    data = raw(b"", NOTE + END, declared=2)
    path.write_bytes(data[:14] + b"XFIH\0\0\0\3abc" + data[14:] + b"junk")
    assert rows(read_midi(path)) == [(0.0, 0.5, 60, 80, 0)]


def test_long_file_with_many_notes_is_read(midi):
    events = [message for i in range(5000) for message in (on(30 + i % 60, 2000), off(30 + i % 60, 880))]
    notes = read_midi(midi(events))
    assert len(notes) == 5000
    assert notes.total_time == pytest.approx(4 * 3600)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (np.random.default_rng(0).bytes(5000), "'MThd'"),
        (b"MThd", "header"),
        (b"MThd" + np.random.default_rng(0).bytes(5000), "."),
        (b"PK\3\4" + raw(NOTE + END), r"\bzip\b"),
        (raw(NOTE + END)[:-6], r"\btrack\b"),
        (raw(NOTE + END)[:13], "header"),
        (raw(NOTE + END, declared=2), r"\b2 tracks\b.*\b1\b"),
        (raw(NOTE + bytes([0, 0xFF, 0x01, 100, 65])), r"\btrack\b"),
        (raw(NOTE + bytes([0, 0xF4, 0]) + END), "0xf4"),
        (raw(bytes([0, 60, 80]) + NOTE + END), r"\bevent\b"),
        (raw(bytes([0x80, 0x80, 0x80, 0x80]) + NOTE + END), r"\bfour bytes\b"),
        (raw(NOTE + bytes([0xFF, 0xFF, 0xFF, 0x7F, 0x90, 60, 80]) + END), r"\b75 hours"),
        (raw(NOTE + END, division=0xE028), "0xe028"),
        (raw(NOTE + END, division=0xE700), "0xe700"),
        (raw(NOTE + END, division=0), "division 0"),
        (raw(END), "no notes"),
        (raw(declared=0), "no notes"),
        (raw(bytes([0, 0x90, 60, 200]) + END), "no notes"),  # one note, its velocity out of range
    ],
)
def test_invalid_file_raises_one_line_error_with_its_path(tmp_path, content, message):
    path = tmp_path / "song.mid"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_midi(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [
        b"MThd",
        raw(NOTE + END)[:-6],
        raw(NOTE + END)[:13],
        raw(NOTE + END, declared=2),
        raw(NOTE + bytes([0, 0xFF, 0x01, 100, 65])),
    ],
)
def test_beginning_of_a_file_is_told_from_a_corrupt_one(data):
    with pytest.raises(smf.CutShortError):
        smf.parse(data)


@pytest.mark.parametrize(("format_", "second"), [(0xE8, 24), (0xE7, 25), (0xE3, 30_000 / 1001), (0xE2, 30)])
def test_smpte_time_division_ignores_tempo(tmp_path, format_, second):
    path = tmp_path / "song.mid"
    path.write_bytes(raw(bytes([0, 0xFF, 0x51, 3, 1, 0, 0]) + NOTE + END, division=format_ << 8 | 40))
    assert rows(read_midi(path)) == [(0.0, round(500 / (40 * second), 6), 60, 80, 0)]


def test_missing_file_or_folder_raises_input_error(tmp_path):
    with pytest.raises(InputError, match=r"missing\.mid "):
        read_midi(tmp_path / "missing.mid")
    with pytest.raises(InputError, match=f"^{tmp_path} "):
        read_midi(tmp_path)
    with pytest.raises(InputError, match=r"x{300}"):
        read_midi(tmp_path / ("x" * 300))


def make_notes(*rows, total_time):
    start, end, pitch, velocity, program = zip(*rows, strict=True)
    return Notes(
        start=np.array(start, np.float64),
        end=np.array(end, np.float64),
        pitch=np.array(pitch, np.int32),
        velocity=np.array(velocity, np.int32),
        program=np.array([0 if p == "drum" else p for p in program], np.int32),
        is_drum=np.array([p == "drum" for p in program], bool),
        total_time=total_time,
    )


def test_written_notes_are_read_back(tmp_path):
    rng = np.random.default_rng(0)
    voices = [(pitch, program) for pitch in (0, 60, 127) for program in [*range(0, 128, 7), "drum"]]
    starts = [(voice, k + rng.uniform(0, 0.4)) for voice in voices for k in range(20)]
    written = [(s, s + rng.uniform(0.002, 0.5), p, int(rng.integers(1, 128)), g) for (p, g), s in starts]
    notes = make_notes(*written, total_time=21.0)
    write_midi(notes, tmp_path / "out.mid")
    back = read_midi(tmp_path / "out.mid")
    key = lambda n: np.lexsort((n.start, n.pitch, n.program, n.is_drum))  # noqa: E731
    a, b = notes.select(key(notes).astype(np.int32)), back.select(key(back).astype(np.int32))
    for name in ("pitch", "velocity", "program", "is_drum"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    for name in ("start", "end"):
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=0, atol=0.00026)
    tracks = mido.MidiFile(tmp_path / "out.mid").tracks
    assert len(tracks) == 1 + 19 + 1  # tempo, programs, drums
    ports = [message.port for track in tracks for message in track if message.type == "midi_port"]
    assert ports == [0] * 15 + [1] * 4 + [0]


def test_adjacent_and_zero_length_notes_survive_writing(tmp_path):
    notes = make_notes((0.0, 0.5, 60, 80, 0), (0.5, 1.0, 60, 81, 0), (2.0, 2.0, 38, 90, "drum"), total_time=2.0)
    write_midi(notes, tmp_path / "out.mid")
    assert rows(read_midi(tmp_path / "out.mid")) == [
        *[(0.0, 0.5, 60, 80, 0), (0.5, 1.0, 60, 81, 0), (2.0, 2.0005, 38, 90, "drum")]
    ]


def test_unwritable_path_raises_input_error(tmp_path):
    notes = make_notes((0.0, 0.5, 60, 80, 0), total_time=0.5)
    with pytest.raises(InputError, match=r"none/out\.mid: "):
        write_midi(notes, tmp_path / "none" / "out.mid")
    with pytest.raises(InputError, match=f" {tmp_path}: "):
        write_midi(notes, tmp_path)
    assert list(tmp_path.iterdir()) == []
