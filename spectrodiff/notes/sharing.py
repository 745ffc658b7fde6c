"""MIDI channels that several tracks use: whether the tracks share an instrument and its keys, or have their own.

An owner is the number of a channel (16 * port + channel), or of a channel as one track uses it.
"""

import collections

import numpy as np
from jaxtyping import Bool, Int64

from spectrodiff.notes import smf

APART = 4096  # more than the number of channels: an owner is a channel, plus APART * (track + 1) if it is one track's


def owners(stream: smf.Stream) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """Returns the owner of the keys and the owner of the program that each message refers to.

    Each track has its own keys, as in note-seq; otherwise voices of two tracks that meet on one key would end each
    other's notes. But the tracks of a channel share its keys if this leaves fewer note-ons without a note-off and
    note-offs without a note-on. Programs belong to the channel. But tracks with notes that select different programs
    for one channel at one tick, whose order no standard defines, have their own programs (and keys).
    """
    own = stream.channel + APART * (stream.track + 1)
    struck = (stream.kind == smf.ON) & (stream.second > 0)
    playing = np.unique(own[struck])
    channels, tracks = np.unique(playing % APART, return_counts=True)
    shared = np.isin(stream.channel, channels[tracks > 1])

    keys = np.flatnonzero(shared & np.isin(stream.kind, (smf.ON, smf.OFF)))
    columns = stream.tick[keys], stream.first[keys], struck[keys]
    separate, together = (_unmatched(owner[keys], *columns) for owner in (own, stream.channel))
    joined = [channel for channel, count in together.items() if count < separate[channel]]

    changes = np.flatnonzero(shared & (stream.kind == smf.PROGRAM) & np.isin(own, playing))
    programs = collections.defaultdict(dict)  # (channel, tick) -> owner -> program
    columns = (stream.channel, stream.tick, own, stream.first)
    for channel, tick, owner, program in zip(*(column[changes].tolist() for column in columns), strict=True):
        programs[channel, tick][owner] = program
    apart = [owner for chosen in programs.values() if len(set(chosen.values())) > 1 for owner in chosen]

    with_program = np.isin(own, apart)
    with_keys = with_program | shared & ~np.isin(stream.channel, joined)
    return np.where(with_keys, own, stream.channel), np.where(with_program, own, stream.channel)


def _unmatched(
    owner: Int64[np.ndarray, " n"],
    tick: Int64[np.ndarray, " n"],
    pitch: Int64[np.ndarray, " n"],
    struck: Bool[np.ndarray, " n"],
) -> collections.Counter[int]:
    """Returns the number of note-ons without a note-off and note-offs without a note-on, by channel.

    A note-off ends all notes that began before its tick or, if there are none, those that began at it.
    """
    unmatched = collections.Counter(dict.fromkeys((owner % APART).tolist(), 0))
    down = {}  # (owner, pitch) -> tick of the last event, number of notes from that tick, and from before it
    rows = zip(owner.tolist(), tick.tolist(), pitch.tolist(), struck.tolist(), strict=True)
    for number, now, key, on in rows:
        last, new, old = down.get((number, key), (now, 0, 0))
        if last != now:
            new, old = 0, old + new
        if on:
            new += 1
        elif old:
            old = 0
        elif new:
            new = 0
        else:
            unmatched[number % APART] += 1
        down[number, key] = now, new, old
    for (number, _), (_, new, old) in down.items():
        unmatched[number % APART] += new + old
    return unmatched
