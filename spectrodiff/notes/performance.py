"""What a General MIDI synthesizer plays when it gets a stream of channel messages: notes, and how long they sound.

docs/midi.md has a line for every kind of message.
"""

import collections

import numpy as np
from jaxtyping import Int64

from spectrodiff.notes import sharing, smf
from spectrodiff.notes.sequence import Notes

SHORTEST = 0.01  # seconds; of a note that ends as it begins, as FluidSynth's synth.min-note-length has it
_BANK, _BANK_LOW, _MODULATION, _VOLUME, _PAN, _EXPRESSION, _REVERB, _CHORUS = 0, 32, 1, 7, 10, 11, 91, 93
_SUSTAIN, _PORTAMENTO, _SOSTENUTO = 64, 65, 66
_SOUND_OFF, _RESET, _NOTES_OFF, _MONO, _POLY = 120, 121, 123, 126, 127
_DRUMS = 9  # channel, of each port
_STRIKE, _LET_GO = 128, 129  # stand among controllers
_FULL = 100 * 127  # volume times expression of a channel that nobody has touched (General MIDI)


def perform(stream: smf.Stream, channel_volume: bool = False) -> Notes:
    """The notes of a stream, in the order of tracks, then of instruments, then of their ends.

    With `channel_volume`, velocities are those with which channels at their default volume and expression would sound
    as loud as the file's.
    """
    keys, lasting = _strike(stream, *sharing.owners(stream))
    end, gone = _hold(stream, keys)
    if channel_volume:
        keys[3] = _balanced(stream, keys)
    start, _, pitch, velocity, program, track, channel, owner, begun, released = keys
    is_drum = channel % 16 == _DRUMS

    order = np.lexsort((begun, pitch, owner))
    again = np.flatnonzero((np.diff(owner[order]) == 0) & (np.diff(pitch[order]) == 0))
    following = np.full(len(start), stream.end)  # when the same key is struck again
    following[order[again]] = start[order[again + 1]]
    end = np.where(lasting, np.minimum(end, following), end)
    end = np.where(lasting & is_drum, start, end)

    seconds, until = stream.time(start), stream.time(end)
    struck = np.full(len(start), np.inf)
    struck[order[again]] = seconds[order[again + 1]]
    shortest = seconds + SHORTEST
    until = np.where(end > start, until, np.where(is_drum, shortest, np.minimum(shortest, struck)))
    # note-seq's order: it tells simultaneous notes of one program and pitch apart.
    _, instrument = np.unique((track * sharing.APART + channel) * 128 + program, return_inverse=True)
    first = np.full(len(start), len(stream.tick) + 1)
    np.minimum.at(first, instrument, released)
    index = np.lexsort((begun, released, first[instrument], track))
    index = index[(~gone & (until > seconds))[index]]
    columns = (column[index].astype(np.int32) for column in (pitch, velocity, program))
    return Notes(seconds[index], until[index], *columns, is_drum[index], float(until[index].max(initial=0.0)))


def ignored(stream: smf.Stream, channel_volume: bool = False) -> collections.Counter[str]:
    """How many messages, by kind, say something on channels with notes that `perform` does not heed."""
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


def _strike(
    stream: smf.Stream, part: Int64[np.ndarray, " n"], chooser: Int64[np.ndarray, " n"]
) -> tuple[Int64[np.ndarray, "10 notes"], np.ndarray]:
    """Every key struck, and which of them are never let go: those are down until the file ends.

    Rows are the ticks of start and end, pitch, velocity, program, track, channel, whose program it is (see
    `sharing.owners`), and the places in the stream of the messages that begin and end them.

    A note-off ends all notes of its pitch but those that begin at its tick, as note-seq has it, unless there are no
    others. A note keeps the program that it began with.
    """
    apart = collections.defaultdict(list)  # channel -> its tracks with programs of their own
    for mine in np.unique(chooser[chooser >= sharing.APART]).tolist():
        apart[mine % sharing.APART].append(mine)
    programs = collections.defaultdict(int)
    down = collections.defaultdict(lambda: collections.defaultdict(list))  # channel -> (part, pitch) -> notes
    notes = []

    def let_go(mine: list[list[int]], tick: int, at: int) -> list[list[int]]:
        if len(mine) == 1:  # as nearly always
            mine[0][1], mine[0][9] = tick, at
            return []
        kept = [note for note in mine if note[0] == tick]
        kept = kept if len(kept) < len(mine) else []
        for note in mine:
            if not kept or note[0] != tick:
                note[1], note[9] = tick, at
        return kept

    columns = (stream.tick, stream.track, stream.channel, part, chooser, stream.kind, stream.first, stream.second)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    for at, (tick, track, channel, mine, whose, kind, first, second) in enumerate(rows):
        if kind == smf.ON and second:
            note = [tick, -1, first, second, programs[whose], track, channel, whose, at, len(stream.tick)]
            notes.append(note)
            down[channel][mine, first].append(note)
        elif kind in (smf.OFF, smf.ON):
            struck = down[channel].pop((mine, first), None)
            if struck and (kept := let_go(struck, tick, at)):
                down[channel][mine, first] = kept
        elif kind == smf.PROGRAM:
            programs[channel] = programs[whose] = first
            for other in apart[channel] if whose == channel else ():
                programs[other] = first
        elif kind == smf.CONTROL and (first == _SOUND_OFF or _NOTES_OFF <= first <= _POLY):
            for struck in down.pop(channel, {}).values():
                let_go(struck, tick, at)
                let_go([note for note in struck if note[1] < 0], tick, at)
    table = np.array(notes, np.int64).reshape(-1, 10).T
    lasting = table[1] < 0
    table[1, lasting] = stream.end
    return table, lasting


def _hold(stream: smf.Stream, keys: Int64[np.ndarray, "10 notes"]) -> tuple[Int64[np.ndarray, " notes"], np.ndarray]:
    """When each note stops sounding, pedals heeded, and which notes are struck again before they sound.

    Sustain is note-seq's apply_sustain_control_changes, with which published models were trained, on whole channels:
    while the pedal is down, a key struck again ends its earlier note; at one tick pedals come first, then note-ons,
    then note-offs; what is never lifted lasts until the last pedal or note-off of all. But at a tick at which a pedal
    goes up and down again, messages are taken in their own order, as a synthesizer does.
    """
    start, key_up, pitch, _, _, _, channel, owner, begun, released = keys
    end, gone = key_up.tolist(), np.zeros(len(start), bool)
    pitched = channel % 16 != _DRUMS
    control = np.where((stream.kind == smf.CONTROL) & np.isin(stream.channel, channel), stream.first, -1)
    sustaining = np.isin(control, (_SUSTAIN, _SOSTENUTO))
    last = max(key_up[pitched].max(initial=0), stream.tick[control == _SUSTAIN].max(initial=0))
    voice = (owner * 128 + pitch).tolist()
    for one in np.unique(stream.channel[sustaining & (stream.second >= 64)]).tolist():
        if one % 16 == _DRUMS:
            continue
        here = np.flatnonzero(np.isin(control, (_SUSTAIN, _SOSTENUTO, _SOUND_OFF, _RESET)) & (stream.channel == one))
        mine = np.flatnonzero(channel == one)
        value = np.where(control[here] == _RESET, 0, stream.second[here])
        lifting = (control[here] != _SOSTENUTO) & (value < 64)
        rank = np.where(control[here] == _SOUND_OFF, 4, value < 64)
        events = np.concatenate([
            [stream.tick[here], rank, here, control[here], value],
            [start[mine], np.full_like(mine, 2), begun[mine], np.full_like(mine, _STRIKE), mine],
            [key_up[mine], np.full_like(mine, 3), released[mine], np.full_like(mine, _LET_GO), mine],
        ], axis=1)  # fmt: skip
        pressing = (control[here] == _SUSTAIN) & (value >= 64)
        both = _last_after_first(stream.tick[here], pressing, lifting)
        order = np.lexsort((events[2], np.where(np.isin(events[0], both), 0, events[1]), events[0]))
        _press(events[:, order][[0, 3, 4]].T.tolist(), voice, start, end, gone, int(last))
    return np.array(end, np.int64), gone


def _last_after_first(tick, pressing, lifting) -> list[int]:
    """The ticks at which the last message of a sustain pedal presses it, and one before lifts it."""
    lifted, both = set(), {}
    for when, down, up in zip(tick.tolist(), pressing.tolist(), lifting.tolist(), strict=True):
        if up:
            lifted.add(when)
            both[when] = False
        elif down and when in lifted:
            both[when] = True
    return [when for when, pressed in both.items() if pressed]


def _press(events: list[list[int]], voice: list[int], start: np.ndarray, end: list[int], gone: np.ndarray, last: int):
    """Lengthens the notes of one channel in `end`, and marks those that never sound in `gone`.

    Events are a tick, a controller and its value; or, for keys, _STRIKE or _LET_GO and the note.
    """
    sustain, caught, held = False, set(), set()  # notes held by sostenuto; notes that sound though their key is up
    active = collections.defaultdict(dict)  # voice -> notes that sound, as keys

    def silence(notes: set[int], tick: int) -> None:
        for note in notes:
            end[note] = max(end[note], tick)
            active[voice[note]].pop(note)
        held.difference_update(notes)

    for tick, what, value in events:
        if what == _STRIKE:
            notes = active[voice[value]]
            for note in list(notes) if sustain else caught.intersection(notes, held):
                end[note] = tick
                gone[note] = start[note] == tick
                del notes[note]
                held.discard(note)
            notes[value] = None
        elif what == _LET_GO:
            if value in active[voice[value]]:
                if sustain or value in caught:
                    held.add(value)
                else:
                    del active[voice[value]][value]
        elif what == _SUSTAIN:
            sustain = value >= 64
        elif what == _SOSTENUTO and value < 64:
            caught = set()
        elif what == _SOSTENUTO and not caught:
            caught = {note for notes in active.values() for note in notes} - held
        elif what == _RESET:
            sustain, caught = False, set()
        elif what == _SOUND_OFF:
            silence(set(held), tick)
        if not sustain and held:
            silence(held - caught, tick)
    silence({note for notes in active.values() for note in notes}, last)


def _balanced(stream: smf.Stream, keys: Int64[np.ndarray, "10 notes"]) -> Int64[np.ndarray, " notes"]:
    """Velocities times volume and expression, each by its default, from 1 to 127.

    General MIDI has loudness go with the square of each of the three, so that they multiply. What changes while a key
    is down counts by its mean square.
    """
    start, key_up, _, velocity, _, _, channel, _, _, _ = keys
    balance = velocity.copy()
    setting = (stream.kind == smf.CONTROL) & np.isin(stream.first, (_VOLUME, _EXPRESSION, _RESET))
    for one in np.intersect1d(stream.channel[setting], channel).tolist():
        here, mine = setting & (stream.channel == one), channel == one
        volume, expression, gains = 100, 127, [_FULL]
        for control, value in zip(stream.first[here].tolist(), stream.second[here].tolist(), strict=True):
            if control == _VOLUME:
                volume = value
            else:
                expression = 127 if control == _RESET else value
            gains.append(volume * expression)
        since = np.concatenate([[0], stream.tick[here]])
        power = np.array(gains, np.int64) ** 2  # whole numbers, so that what never changes stays exact
        total = np.concatenate([[0], np.cumsum(power[:-1] * np.diff(since))])

        def until(tick: np.ndarray, side: str) -> tuple[np.ndarray, np.ndarray]:
            which = np.searchsorted(since, tick, side=side) - 1  # noqa: B023
            return total[which] + power[which] * (tick - since[which]), power[which]  # noqa: B023

        begin, at_once = until(start[mine], "right")
        length = key_up[mine] - start[mine]
        mean = np.where(length > 0, (until(key_up[mine], "right")[0] - begin) / np.maximum(length, 1), at_once)
        balance[mine] = np.rint(velocity[mine] * np.sqrt(mean) / _FULL)
    return np.clip(balance, 1, 127)
