"""The notes that a General MIDI synthesizer plays for a stream of channel messages, and how long they sound.

docs/midi.md lists the treatment of every kind of message.
"""

import collections

import numpy as np
from jaxtyping import Bool, Int64

from spectrodiff.notes import sharing, smf
from spectrodiff.notes.sequence import Notes

SHORTEST = 0.01  # seconds, of a note that ends at its onset: FluidSynth's synth.min-note-length
_BANK, _BANK_LOW, _MODULATION, _VOLUME, _PAN, _EXPRESSION, _REVERB, _CHORUS = 0, 32, 1, 7, 10, 11, 91, 93
_SUSTAIN, _PORTAMENTO, _SOSTENUTO = 64, 65, 66
_SOUND_OFF, _RESET, _NOTES_OFF, _MONO, _POLY = 120, 121, 123, 126, 127
_DRUMS = 9  # channel, of each port
_KEY_DOWN, _KEY_UP = 128, 129  # in lists of events, beside the numbers of controllers
_DEFAULT_GAIN = 100 * 127  # the defaults of volume times expression (General MIDI)


def perform(stream: smf.Stream, channel_volume: bool = False) -> Notes:
    """Returns the notes of a stream, sorted by track, then by instrument, then by their ends.

    With `channel_volume`, velocities are scaled such that channels at their default volume and expression sound as loud
    as those of the file.
    """
    keys, unreleased = _read_keys(stream, *sharing.owners(stream))
    end, silent = _sounding_ends(stream, keys)
    if channel_volume:
        keys[3] = _scaled_velocity(stream, keys)
    start, _, pitch, velocity, program, track, channel, owner, on_index, off_index = keys
    is_drum = channel % 16 == _DRUMS

    # The next note of the same key ends a note that is never released. Such drum hits end at once.
    order = np.lexsort((on_index, pitch, owner))
    repeated = np.flatnonzero((np.diff(owner[order]) == 0) & (np.diff(pitch[order]) == 0))
    next_tick = np.full(len(start), stream.end)
    next_tick[order[repeated]] = start[order[repeated + 1]]
    end = np.where(unreleased, np.minimum(end, next_tick), end)
    end = np.where(unreleased & is_drum, start, end)

    start_time, end_time = stream.time(start), stream.time(end)
    next_time = np.full(len(start), np.inf)
    next_time[order[repeated]] = start_time[order[repeated + 1]]
    shortest = start_time + SHORTEST
    end_time = np.where(end > start, end_time, np.where(is_drum, shortest, np.minimum(shortest, next_time)))
    # The order of note-seq, which matters for simultaneous notes of one program and pitch.
    _, instrument = np.unique((track * sharing.APART + channel) * 128 + program, return_inverse=True)
    first_off = np.full(len(start), len(stream.tick) + 1)
    np.minimum.at(first_off, instrument, off_index)
    index = np.lexsort((on_index, off_index, first_off[instrument], track))
    index = index[(~silent & (end_time > start_time))[index]]
    columns = (column[index].astype(np.int32) for column in (pitch, velocity, program))
    total_time = float(end_time[index].max(initial=0.0))
    return Notes(start_time[index], end_time[index], *columns, is_drum[index], total_time)


def ignored(stream: smf.Stream, channel_volume: bool = False) -> collections.Counter[str]:
    """Counts the messages that `perform` ignores, by kind: those that change the sound of channels with notes."""
    used = np.isin(stream.channel, stream.channel[(stream.kind == smf.ON) & (stream.second > 0)])
    first, second = stream.first, stream.second
    control = np.where(stream.kind == smf.CONTROL, first, -1)
    pressed = (stream.kind == smf.KEY_PRESSURE) & (second > 0) | (stream.kind == smf.CHANNEL_PRESSURE) & (first > 0)
    kinds = {
        "pitch bend": (stream.kind == smf.BEND) & (first + 128 * second != 8192),
        "pan": (control == _PAN) & (second != 64),
        "bank": np.isin(control, (_BANK, _BANK_LOW)) & (second > 0),
        "reverb and chorus": np.isin(control, (_REVERB, _CHORUS)) & (second > 0),
        "modulation": (control == _MODULATION) & (second > 0),
        "pressure": pressed,
        "portamento": (control == _PORTAMENTO) & (second >= 64),
        "mono mode": control == _MONO,
    }
    if not channel_volume:
        default = np.where(control == _VOLUME, 100, 127)
        kinds["volume and expression"] = np.isin(control, (_VOLUME, _EXPRESSION)) & (second != default)
    counts = {name: int((mask & used).sum()) for name, mask in kinds.items()} | {"out of range": stream.damaged}
    return collections.Counter({name: count for name, count in counts.items() if count})


def _read_keys(
    stream: smf.Stream, key_owner: Int64[np.ndarray, " n"], program_owner: Int64[np.ndarray, " n"]
) -> tuple[Int64[np.ndarray, "10 notes"], Bool[np.ndarray, " notes"]]:
    """Returns the keys that are pressed, without regard to pedals, and which of them are never released.

    `key_owner` and `program_owner` are those of each message; see `sharing.owners`. The rows of the result are the
    ticks at which the key is pressed and released, pitch, velocity, program, track, channel, the owner of the program,
    and the indices in the stream of the note-on and the note-off. Keys that are never released are down until the file
    ends.

    As in note-seq, a note-off ends all notes of its pitch except those that begin at its tick, unless there are no
    others. A note keeps the program with which it began.
    """
    track_owners = collections.defaultdict(list)  # channel -> its tracks with programs of their own
    for owner in np.unique(program_owner[program_owner >= sharing.APART]).tolist():
        track_owners[owner % sharing.APART].append(owner)
    programs = collections.defaultdict(int)  # owner -> program
    down = collections.defaultdict(lambda: collections.defaultdict(list))  # channel -> (owner, pitch) -> notes
    notes = []

    def release(pressed: list[list[int]], tick: int, index: int) -> list[list[int]]:
        """Ends the notes of a key that a note-off ends; returns those that stay down."""
        if len(pressed) == 1:  # nearly always
            pressed[0][1], pressed[0][9] = tick, index
            return []
        kept = [note for note in pressed if note[0] == tick]
        kept = kept if len(kept) < len(pressed) else []
        for note in pressed:
            if not kept or note[0] != tick:
                note[1], note[9] = tick, index
        return kept

    columns = stream.tick, stream.track, stream.channel, key_owner, program_owner, stream.kind
    columns = (column.tolist() for column in (*columns, stream.first, stream.second))
    rows = zip(*columns, strict=True)
    for index, (tick, track, channel, owner, chooser, kind, first, second) in enumerate(rows):
        if kind == smf.ON and second:
            note = [tick, -1, first, second, programs[chooser], track, channel, chooser, index, len(stream.tick)]
            notes.append(note)
            down[channel][owner, first].append(note)
        elif kind in (smf.OFF, smf.ON):
            pressed = down[channel].pop((owner, first), None)
            if pressed and (kept := release(pressed, tick, index)):
                down[channel][owner, first] = kept
        elif kind == smf.PROGRAM:
            programs[channel] = programs[chooser] = first
            for other in track_owners[channel] if chooser == channel else ():
                programs[other] = first
        elif kind == smf.CONTROL and (first == _SOUND_OFF or _NOTES_OFF <= first <= _POLY):
            for pressed in down.pop(channel, {}).values():
                release(pressed, tick, index)
                release([note for note in pressed if note[1] < 0], tick, index)
    table = np.array(notes, np.int64).reshape(-1, 10).T
    unreleased = table[1] < 0
    table[1, unreleased] = stream.end
    return table, unreleased


def _sounding_ends(
    stream: smf.Stream, keys: Int64[np.ndarray, "10 notes"]
) -> tuple[Int64[np.ndarray, " notes"], Bool[np.ndarray, " notes"]]:
    """Returns the tick at which each note stops sounding, given the pedals, and which notes never sound.

    The latter are those whose key is pressed again at the same tick. The sustain pedal acts on whole channels, as in
    note-seq's apply_sustain_control_changes, with which the published models were trained: while the pedal is down, a
    key that is pressed again ends its earlier note; at each tick, pedals come first, then note-ons, then note-offs; a
    pedal that is never released holds notes until the last pedal or note-off of all. But at a tick at which a pedal is
    released and pressed again, messages are taken in their own order, as by a synthesizer.
    """
    start, key_up, pitch, _, _, _, channel, owner, on_index, off_index = keys
    end, silent = key_up.tolist(), np.zeros(len(start), bool)
    pitched = channel % 16 != _DRUMS
    control = np.where((stream.kind == smf.CONTROL) & np.isin(stream.channel, channel), stream.first, -1)
    sustaining = np.isin(control, (_SUSTAIN, _SOSTENUTO))
    last = max(key_up[pitched].max(initial=0), stream.tick[control == _SUSTAIN].max(initial=0))
    voice = (owner * 128 + pitch).tolist()
    for number in np.unique(stream.channel[sustaining & (stream.second >= 64)]).tolist():
        if number % 16 == _DRUMS:
            continue
        controls = (_SUSTAIN, _SOSTENUTO, _SOUND_OFF, _RESET)
        messages = np.flatnonzero(np.isin(control, controls) & (stream.channel == number))
        notes = np.flatnonzero(channel == number)
        value = np.where(control[messages] == _RESET, 0, stream.second[messages])
        # Rows: tick, rank at the tick, index in the stream, controller (or _KEY_DOWN, _KEY_UP), value (or the note).
        rank = np.where(control[messages] == _SOUND_OFF, 4, value < 64)
        events = np.concatenate([
            [stream.tick[messages], rank, messages, control[messages], value],
            [start[notes], np.full_like(notes, 2), on_index[notes], np.full_like(notes, _KEY_DOWN), notes],
            [key_up[notes], np.full_like(notes, 3), off_index[notes], np.full_like(notes, _KEY_UP), notes],
        ], axis=1)  # fmt: skip
        pressing = (control[messages] == _SUSTAIN) & (value >= 64)
        releasing = (control[messages] != _SOSTENUTO) & (value < 64)
        repressed = _repressed_ticks(stream.tick[messages], pressing, releasing)
        order = np.lexsort((events[2], np.where(np.isin(events[0], repressed), 0, events[1]), events[0]))
        _apply_pedals(events[:, order][[0, 3, 4]].T.tolist(), voice, start, end, silent, int(last))
    return np.array(end, np.int64), silent


def _repressed_ticks(tick: np.ndarray, pressing: np.ndarray, releasing: np.ndarray) -> list[int]:
    """Returns the ticks at which the last message of a sustain pedal presses it after another one released it."""
    released, repressed = set(), {}
    for now, down, up in zip(tick.tolist(), pressing.tolist(), releasing.tolist(), strict=True):
        if up:
            released.add(now)
            repressed[now] = False
        elif down and now in released:
            repressed[now] = True
    return [now for now, pressed in repressed.items() if pressed]


def _apply_pedals(
    events: list[list[int]], voice: list[int], start: np.ndarray, end: list[int], silent: np.ndarray, last: int
) -> None:
    """Updates the ends of the notes of one channel in `end`, and marks those that never sound in `silent`.

    Events are a tick, a controller and its value; or, for keys, a tick, _KEY_DOWN or _KEY_UP, and the note. Notes that
    still sound after the events end at the tick `last`.
    """
    sustain, caught, held = False, set(), set()  # notes caught by sostenuto; notes that sound though their key is up
    active = collections.defaultdict(dict)  # voice -> notes that sound, as keys of a dict, in order

    def silence(notes: set[int], tick: int) -> None:
        for note in notes:
            end[note] = max(end[note], tick)
            active[voice[note]].pop(note)
        held.difference_update(notes)

    for tick, kind, value in events:
        if kind == _KEY_DOWN:
            notes = active[voice[value]]
            for note in list(notes) if sustain else caught.intersection(notes, held):
                end[note] = tick
                silent[note] = start[note] == tick
                del notes[note]
                held.discard(note)
            notes[value] = None
        elif kind == _KEY_UP:
            if value in active[voice[value]]:
                if sustain or value in caught:
                    held.add(value)
                else:
                    del active[voice[value]][value]
        elif kind == _SUSTAIN:
            sustain = value >= 64
        elif kind == _SOSTENUTO and value < 64:
            caught = set()
        elif kind == _SOSTENUTO and not caught:
            caught = {note for notes in active.values() for note in notes} - held
        elif kind == _RESET:
            sustain, caught = False, set()
        elif kind == _SOUND_OFF:
            silence(set(held), tick)
        if not sustain and held:
            silence(held - caught, tick)
    silence({note for notes in active.values() for note in notes}, last)


def _scaled_velocity(stream: smf.Stream, keys: Int64[np.ndarray, "10 notes"]) -> Int64[np.ndarray, " notes"]:
    """Returns velocities multiplied by volume and expression, relative to their defaults, from 1 to 127.

    In General MIDI, amplitude is proportional to the square of each of the three, so that they multiply. For volume and
    expression that change while a key is down, it is the root mean square over that time.
    """
    start, key_up, _, velocity, _, _, channel, _, _, _ = keys
    scaled = velocity.copy()
    is_setting = (stream.kind == smf.CONTROL) & np.isin(stream.first, (_VOLUME, _EXPRESSION, _RESET))
    for number in np.intersect1d(stream.channel[is_setting], channel).tolist():
        settings, notes = is_setting & (stream.channel == number), channel == number
        volume, expression, gains = 100, 127, [_DEFAULT_GAIN]
        for control, value in zip(stream.first[settings].tolist(), stream.second[settings].tolist(), strict=True):
            if control == _VOLUME:
                volume = value
            else:
                expression = 127 if control == _RESET else value
            gains.append(volume * expression)
        since = np.concatenate([[0], stream.tick[settings]])
        power = np.array(gains, np.int64) ** 2  # integers, so that constant gains are exact
        total = np.concatenate([[0], np.cumsum(power[:-1] * np.diff(since))])

        def integrated(tick, since=since, power=power, total=total):
            """Returns the integral of the power from tick 0 to `tick`, and the power at `tick`."""
            index = np.searchsorted(since, tick, side="right") - 1
            return total[index] + power[index] * (tick - since[index]), power[index]

        (before, power_at_start), (after, _) = integrated(start[notes]), integrated(key_up[notes])
        length = key_up[notes] - start[notes]
        mean = np.where(length > 0, (after - before) / np.maximum(length, 1), power_at_start)
        scaled[notes] = np.rint(velocity[notes] * np.sqrt(mean) / _DEFAULT_GAIN)
    return np.clip(scaled, 1, 127)
