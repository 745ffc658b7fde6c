"""Channels that several tracks of a MIDI file play on: one instrument, or one for each."""

import collections

import numpy as np
from jaxtyping import Bool, Int64

from spectrodiff.notes import smf

APART = 4096  # more than there are channels: an owner below is a channel, one above its channel plus a multiple of this


def owners(stream: smf.Stream) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """Whose keys, and whose program, each message is about: its channel's, or those of its track there alone.

    Tracks have keys of their own, as note-seq has it, unless the channel as a whole makes more sense: leaves fewer
    note-ons without an end and note-offs without a beginning. Else voices that meet on one key would cut each other
    short. Tracks with notes that choose different programs for one channel at one tick, in an order that no standard
    knows, have programs of their own, too.
    """
    own = stream.channel + APART * (stream.track + 1)
    struck = (stream.kind == smf.ON) & (stream.second > 0)
    playing = np.unique(own[struck])
    channels, tracks = np.unique(playing % APART, return_counts=True)
    shared = np.isin(stream.channel, channels[tracks > 1])

    keys = np.flatnonzero(shared & np.isin(stream.kind, (smf.ON, smf.OFF)))
    columns = stream.tick[keys], stream.first[keys], struck[keys]
    alone, together = (_loose_ends(whose[keys], *columns) for whose in (own, stream.channel))
    joined = [channel for channel, count in together.items() if count < alone[channel]]

    choosing = np.flatnonzero(shared & (stream.kind == smf.PROGRAM) & np.isin(own, playing))
    chosen = collections.defaultdict(dict)  # (channel, tick) -> track there -> program
    columns = (stream.channel, stream.tick, own, stream.first)
    for channel, tick, mine, program in zip(*(column[choosing].tolist() for column in columns), strict=True):
        chosen[channel, tick][mine] = program
    apart = [mine for choices in chosen.values() if len(set(choices.values())) > 1 for mine in choices]

    with_program = np.isin(own, apart)
    with_keys = with_program | shared & ~np.isin(stream.channel, joined)
    return np.where(with_keys, own, stream.channel), np.where(with_program, own, stream.channel)


def _loose_ends(
    owner: Int64[np.ndarray, " n"],
    tick: Int64[np.ndarray, " n"],
    pitch: Int64[np.ndarray, " n"],
    struck: Bool[np.ndarray, " n"],
) -> collections.Counter[int]:
    """Note-ons without an end and note-offs without a beginning, by channel."""
    loose = collections.Counter(dict.fromkeys((owner % APART).tolist(), 0))
    down = {}  # (owner, pitch) -> tick of the last note-on, how many are down from then, and from before
    rows = zip(owner.tolist(), tick.tolist(), pitch.tolist(), struck.tolist(), strict=True)
    for mine, now, key, on in rows:
        last, new, old = down.get((mine, key), (now, 0, 0))
        if last != now:
            new, old = 0, old + new
        if on:
            new += 1
        elif old:
            old = 0
        elif new:
            new = 0
        else:
            loose[mine % APART] += 1
        down[mine, key] = now, new, old
    for (mine, _), (_, new, old) in down.items():
        loose[mine % APART] += new + old
    return loose
