"""A piece reads the same in one track and with its events spread over tracks and ports among other events."""

import mido
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from midi_writer import META, end, event, number, port, smf

from spectrodiff.notes.midi import read_midi
from spectrodiff.notes.sequence import import_note_seq, notes_of

CHANNELS = (0, 1, 9)
OFF, SET, ON = range(3)  # the order of events at the same tick, as players process them
CONTROLS = (7, 11, 64, 66, 10, 120, 121, 123)
IGNORED_EVENTS = (
    event(0, 0xF0, 5, 0x7E, 0x7F, 0x09, 0x01, 0xF7),
    event(0, 0xF7, 3, 0x90, 60, 80),
    event(0, META, 0x01, 3, *b"abc"),
    event(0, META, 0x59, 2, 13, 0),
    event(0, META, 0x58, 0),
    event(0, 0xF8),
    event(0, 0xF2, 1, 2),
    event(0, 0xFE),
)


@st.composite
def pieces(draw):
    """Events as (tick, order, channel or None, bytes without the channel), without overlapping notes of one pitch."""
    events = []
    for channel in CHANNELS:
        for pitch in draw(st.lists(st.integers(58, 62), unique=True, max_size=3)):
            now = 0
            for rest, length, velocity in draw(
                st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9), st.integers(1, 127)), max_size=5)
            ):
                events.append((now + rest, ON, channel, (0x90, pitch, velocity)))
                now += rest + length
                events.append((now, OFF, channel, (0x80, pitch, 64)))
        for tick, value in draw(st.dictionaries(st.integers(0, 30), st.integers(0, 127), max_size=3)).items():
            events.append((tick, SET, channel, (0xC0, value)))
        controls = st.tuples(
            st.sampled_from(CONTROLS), st.integers(0, 127)
        )  # one per tick, since resets depend on the order
        for tick, (which, value) in draw(st.dictionaries(st.integers(0, 40), controls, max_size=8)).items():
            events.append((tick, SET, channel, (0xB0, which, value)))
    for tick, tempo in draw(st.dictionaries(st.integers(0, 30), st.integers(1, 2**24 - 1), max_size=3)).items():
        events.append((tick, SET, None, (META, 0x51, 3, *tempo.to_bytes(3))))
    return sorted(events, key=lambda e: e[:2])


def single_track(events) -> bytes:
    track, now = b"", 0
    for tick, _, channel, data in events:
        track += number(tick - now) + bytes([data[0] | (channel or 0), *data[1:]])
        now = tick
    return smf(track + end(), form=0)


def scattered(events, data) -> bytes:
    """The events on random tracks, channels and ports, with running status and with ignored events in between."""
    places = {0: (0, 0), 1: (0, 1), 9: (0, 9)}
    if data.draw(st.booleans()):
        places = {0: (2, 5), 1: (7, 5), 9: (2, 9)}
    tracks = [b""] * data.draw(st.integers(1, 4))
    now, ports, status = [0] * len(tracks), [0] * len(tracks), [None] * len(tracks)  # port 0 is the default
    for tick, _, channel, message in events:
        k = data.draw(st.integers(0, len(tracks) - 1))
        if data.draw(st.integers(0, 3)) == 0:
            tracks[k] += data.draw(st.sampled_from(IGNORED_EVENTS))
        place, on_channel = places[channel] if channel is not None else (ports[k], 0)
        if place != ports[k]:
            tracks[k] += port(place)
            ports[k] = place
        status_byte = message[0] | on_channel
        leave_out = channel is not None and status_byte == status[k] and data.draw(st.booleans())
        tracks[k] += number(tick - now[k]) + bytes([] if leave_out else [status_byte]) + bytes(message[1:])
        now[k] = tick
        if channel is not None:
            status[k] = status_byte
    return smf(*(track + end() for track in tracks))


def columns(notes):
    names = ("start", "end", "pitch", "velocity", "program", "is_drum")
    return sorted(zip(*(getattr(notes, name).tolist() for name in names), strict=True)), notes.total_time


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_scattered_events_read_like_a_single_track(tmp_path_factory, data):
    events = data.draw(pieces())
    events.append((200, ON, 0, (0x90, 40, 80)))  # at least one note
    events.append((210, OFF, 0, (0x80, 40, 80)))
    path = tmp_path_factory.getbasetemp() / "scattered.mid"
    both = []
    for content in (single_track(events), scattered(events, data)):
        path.write_bytes(content)
        both.append(columns(read_midi(path, channel_volume=True)))
    assert both[0] == both[1]


@pytest.mark.parametrize("seed", range(30))
def test_ordinary_files_match_note_seq(tmp_path, seed):
    """Notes agree exactly and in order, with overlaps, pedals, tempo changes and tracks that share a channel.

    Tempo changes are on the first track. No track has both a pedal and program changes between its notes.
    """
    rng = np.random.default_rng(seed)
    file = mido.MidiFile(ticks_per_beat=int(rng.choice([96, 480, 960])))
    tempos = [
        (tick, mido.MetaMessage("set_tempo", tempo=int(rng.integers(1e5, 1e6)))) for tick in rng.integers(0, 9999, 4)
    ]
    add_track_of(file, tempos)
    for k in range(int(rng.integers(1, 6))):
        shared = seed % 3 == 0  # tracks of one or several programs on one channel, without a pedal
        channel = int(rng.choice([0, 9])) if shared else (0, 1, 9, 4, 15)[k]
        ticks, lengths = np.sort(rng.integers(0, 12_000, 60)), rng.choice([1, 5, 240, 600, 3000], 60)
        events = [(0, mido.Message("program_change", channel=channel, program=7 if seed % 6 == 0 else 9 * k))]
        for tick, length in zip(ticks.tolist(), lengths.tolist(), strict=True):
            pitch, velocity = int(rng.integers(58, 66)), int(rng.integers(1, 128))
            events += [
                (tick, mido.Message("note_on", channel=channel, note=pitch, velocity=velocity)),
                (tick + length, mido.Message("note_on", channel=channel, note=pitch, velocity=0)),
            ]
        if not shared and k % 2:
            for tick, value in zip(rng.integers(0, 12_000, 9).tolist(), rng.integers(40, 90, 9).tolist(), strict=True):
                events.append((tick, mido.Message("control_change", channel=channel, control=64, value=value)))
        add_track_of(file, events)
    file.save(tmp_path / "song.mid")
    note_seq = import_note_seq()
    sequence = note_seq.midi_to_note_sequence((tmp_path / "song.mid").read_bytes())
    theirs, ours = notes_of(note_seq.apply_sustain_control_changes(sequence)), read_midi(tmp_path / "song.mid")
    for name in ("start", "end", "pitch", "velocity", "program", "is_drum", "total_time"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), name)


def add_track_of(file, events):
    track, now = file.add_track(), 0
    for tick, message in sorted(
        events, key=lambda e: (e[0], not e[1].is_meta and e[1].type == "note_on" and e[1].velocity > 0)
    ):
        track.append(message.copy(time=int(tick - now)))
        now = tick
