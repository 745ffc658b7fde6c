"""The same piece written plainly, and with its events scattered over tracks and ports and hidden among others."""

import mido
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from midi_writer import META, end, event, number, port, smf

from spectrodiff.notes.midi import read_midi
from spectrodiff.notes.sequence import import_note_seq, notes_of

CHANNELS = (0, 1, 9)
OFF, SET, ON = range(3)  # the order of events at one tick: what a player would do, too
CONTROLS = (7, 11, 64, 66, 10, 120, 121, 123)
BYSTANDERS = (
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
    """Events as (tick, order, channel or None, bytes without the channel): keys that never overlap themselves."""
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
        for which in CONTROLS:
            for tick, value in draw(st.dictionaries(st.integers(0, 40), st.integers(0, 127), max_size=2)).items():
                events.append((tick, SET, channel, (0xB0, which, value)))
    for tick, tempo in draw(st.dictionaries(st.integers(0, 30), st.integers(1, 2**24 - 1), max_size=3)).items():
        events.append((tick, SET, None, (META, 0x51, 3, *tempo.to_bytes(3))))
    return sorted(events, key=lambda e: e[:2])


def plain(events) -> bytes:
    track, now = b"", 0
    for tick, _, channel, data in events:
        track += number(tick - now) + bytes([data[0] | (channel or 0), *data[1:]])
        now = tick
    return smf(track + end(), form=0)


def scattered(events, data) -> bytes:
    """Each event on any track, each channel on any other of any port, statuses left out, bystanders in between."""
    homes = {0: (0, 0), 1: (0, 1), 9: (0, 9)}
    if data.draw(st.booleans()):
        homes = {0: (2, 5), 1: (7, 5), 9: (2, 9)}
    tracks = [b""] * data.draw(st.integers(1, 4))
    now, ports, status = [0] * len(tracks), [0] * len(tracks), [None] * len(tracks)  # port 0 goes without saying
    for tick, _, channel, message in events:
        k = data.draw(st.integers(0, len(tracks) - 1))
        if data.draw(st.integers(0, 3)) == 0:
            tracks[k] += data.draw(st.sampled_from(BYSTANDERS))
        home, on_channel = homes[channel] if channel is not None else (ports[k], 0)
        if home != ports[k]:
            tracks[k] += port(home)
            ports[k] = home
        said = message[0] | on_channel
        leave_out = channel is not None and said == status[k] and data.draw(st.booleans())
        tracks[k] += number(tick - now[k]) + bytes([] if leave_out else [said]) + bytes(message[1:])
        now[k] = tick
        if channel is not None:
            status[k] = said
    return smf(*(track + end() for track in tracks))


def columns(notes):
    names = ("start", "end", "pitch", "velocity", "program", "is_drum")
    return sorted(zip(*(getattr(notes, name).tolist() for name in names), strict=True)), notes.total_time


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_scattered_events_read_as_plain_ones(tmp_path_factory, data):
    events = data.draw(pieces())
    events.append((200, ON, 0, (0x90, 40, 80)))  # there is a note
    events.append((210, OFF, 0, (0x80, 40, 80)))
    path = tmp_path_factory.getbasetemp() / "scattered.mid"
    both = []
    for content in (plain(events), scattered(events, data)):
        path.write_bytes(content)
        both.append(columns(read_midi(path, channel_volume=True)))
    assert both[0] == both[1]


@pytest.mark.parametrize("seed", range(30))
def test_ordinary_files_read_as_note_seq_reads_them(tmp_path, seed):
    """Bit by bit and in its order: notes that overlap themselves, pedals, tempos, tracks that share a channel.

    Programs change and pedals move in the tracks that play, tempos on the first; no track has both a program change
    amid its notes and a pedal.
    """
    rng = np.random.default_rng(seed)
    file = mido.MidiFile(ticks_per_beat=int(rng.choice([96, 480, 960])))
    tempos = [
        (tick, mido.MetaMessage("set_tempo", tempo=int(rng.integers(1e5, 1e6)))) for tick in rng.integers(0, 9999, 4)
    ]
    add(file, tempos)
    for k in range(int(rng.integers(1, 6))):
        shared = seed % 3 == 0  # by tracks of one program, and no pedal
        channel = int(rng.choice([0, 9])) if shared else (0, 1, 9, 4, 15)[k]
        ticks, lengths = np.sort(rng.integers(0, 12_000, 60)), rng.choice([1, 5, 240, 600, 3000], 60)
        events = [(0, mido.Message("program_change", channel=channel, program=7 if shared else 9 * k))]
        for tick, length in zip(ticks.tolist(), lengths.tolist(), strict=True):
            pitch, velocity = int(rng.integers(58, 66)), int(rng.integers(1, 128))
            events += [
                (tick, mido.Message("note_on", channel=channel, note=pitch, velocity=velocity)),
                (tick + length, mido.Message("note_on", channel=channel, note=pitch, velocity=0)),
            ]
        if not shared and k % 2:
            for tick, value in zip(rng.integers(0, 12_000, 9).tolist(), rng.integers(40, 90, 9).tolist(), strict=True):
                events.append((tick, mido.Message("control_change", channel=channel, control=64, value=value)))
        add(file, events)
    file.save(tmp_path / "song.mid")
    note_seq = import_note_seq()
    sequence = note_seq.midi_to_note_sequence((tmp_path / "song.mid").read_bytes())
    theirs, ours = notes_of(note_seq.apply_sustain_control_changes(sequence)), read_midi(tmp_path / "song.mid")
    for name in ("start", "end", "pitch", "velocity", "program", "is_drum", "total_time"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), name)


def add(file, events):
    track, now = file.add_track(), 0
    for tick, message in sorted(
        events, key=lambda e: (e[0], not e[1].is_meta and e[1].type == "note_on" and e[1].velocity > 0)
    ):
        track.append(message.copy(time=int(tick - now)))
        now = tick
