"""Randomly generated exercises that cover all pitches, durations and velocities of every instrument.

Real music uses few of the pitches of most instruments.
"""

import numpy as np

from spectrodiff.notes.midi import Notes

# The lowest and highest pitch of each instrument, by the first program of its General MIDI family of eight.
RANGES = {
    0: (21, 108),  # piano
    8: (53, 108),  # chromatic percussion
    16: (36, 96),  # organ
    24: (40, 88),  # guitar
    32: (24, 60),  # bass
    40: (48, 100),  # strings
    48: (36, 96),  # ensemble
    56: (40, 88),  # brass
    64: (42, 90),  # reed
    72: (60, 105),  # pipe
    80: (36, 96),  # lead
    88: (36, 96),  # pad
}
DRUMS = np.arange(35, 82)  # the General MIDI percussion map
KIT = np.array([35, 36, 38, 40, 42, 44, 46, 47, 49, 51])
MODES = [(0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10), (0, 2, 4, 7, 9), tuple(range(12))]


def etude(seed: int) -> Notes:
    """Returns 20 to 60 seconds of one to four instruments, drums, or both, determined by `seed`."""
    rng = np.random.default_rng([seed, 0xE7])
    seconds = rng.uniform(20, 60)
    parts = rng.choice([0, 1, 2, 3, 4], p=[0.1, 0.5, 0.2, 0.12, 0.08])
    scale = np.add.outer(12 * np.arange(11), rng.integers(12) + np.array(MODES[rng.integers(len(MODES))])).ravel()
    events = []
    for program in rng.choice(list(RANGES), size=parts, replace=False):
        low, high = RANGES[int(program)]
        events += [(*event, program, False) for event in _part(rng, scale[(scale >= low) & (scale <= high)], seconds)]
    if parts == 0 or rng.random() < 0.2:
        events += [(*event, 0, True) for event in _beat(rng, seconds)]
    start, end, pitch, velocity, program, is_drum = (np.array(column) for column in zip(*sorted(events), strict=True))
    return Notes(
        start=start,
        end=end,
        pitch=pitch.astype(np.int32),
        velocity=np.clip(velocity, 20, 127).astype(np.int32),
        program=program.astype(np.int32),
        is_drum=is_drum.astype(bool),
        total_time=float(end.max()),
    )


def _part(rng: np.random.Generator, keys: np.ndarray, seconds: float) -> list[tuple]:
    """Returns successive phrases as (start, end, pitch, velocity) on the given pitches, low to high."""
    styles = [_scale, _arpeggio, _chords, _repeats, _leaps, _held]
    events, now = [], rng.uniform(0, 1)
    while now < seconds:
        until = min(now + rng.uniform(2, 7), seconds)
        style = styles[rng.integers(len(styles))]
        step = rng.uniform(0.8, 4.0) if style is _held else np.exp(rng.uniform(np.log(0.09), np.log(0.8)))
        hold = rng.uniform(0.4, 1.1)
        loud, swell = rng.uniform(35, 120), rng.normal(0, 6)
        while now < until:
            chords = style(rng, len(keys))
            for degrees in chords[: int(np.ceil((until - now) / step))]:
                velocity = loud + rng.normal(0, 6)
                events += [(now, now + step * hold, keys[d], velocity) for d in np.unique(degrees)]
                now += step
                loud += swell * step
        if rng.random() < 0.3:
            now += rng.uniform(0.3, 2.0)
    return events


# Each style returns the next few chords of a phrase, as lists of indices into the `n` pitches of the scale.
def _scale(rng, n):
    first, length = rng.integers(n), rng.integers(4, 16)
    return [[abs((first + i) % (2 * n - 2) - (n - 1))] for i in range(length)]  # reflected at both ends


def _arpeggio(rng, n):
    chord = _chord(rng, n, 4)
    return [[d] for d in (chord if rng.random() < 0.5 else chord[::-1])] * 2


def _chords(rng, n):
    return [_chord(rng, n, rng.integers(2, 6))] * rng.integers(1, 3)


def _repeats(rng, n):
    return [[rng.integers(n)]] * rng.integers(3, 9)


def _leaps(rng, n):
    return [[d] for d in rng.integers(n, size=4)]


def _held(rng, n):
    return [_chord(rng, n, rng.integers(1, 5))]


def _chord(rng, n, size):
    return [d for d in rng.integers(n) + 2 * np.arange(size) if d < n]


def _beat(rng: np.random.Generator, seconds: float) -> list[tuple]:
    """Returns drum patterns of sixteen steps, each repeated a few times, as (start, end, pitch, velocity)."""
    events, now = [], rng.uniform(0, 1)
    while now < seconds:
        step = rng.uniform(0.08, 0.22)
        drums = rng.choice(DRUMS if rng.random() < 0.4 else KIT, size=rng.integers(1, 6), replace=False)
        pattern = rng.random((16, len(drums))) < rng.uniform(0.08, 0.5, size=len(drums))
        loud = rng.uniform(50, 120, size=len(drums)) + rng.normal(0, 8, size=(16, 1))
        for _ in range(rng.integers(1, 4)):
            for hits, velocity in zip(pattern, loud, strict=True):
                if now < seconds:
                    events += [(now, now + 0.1, *hit) for hit in zip(drums[hits], velocity[hits], strict=True)]
                now += step
    return events or [(0.0, 0.1, 38, 100.0)]
