"""Random variations of a score: excerpts, and changes of key, tempo, instruments and velocities."""

import dataclasses

import numpy as np

from spectrodiff.data.builders.rendered.etudes import DRUMS, RANGES
from spectrodiff.notes.midi import Notes

_BASS = 4  # the General MIDI family of bass programs, whose tracks keep their family


def excerpt(notes: Notes, rng: np.random.Generator, length: float) -> Notes:
    """Returns all of a short piece, or `length` seconds of a longer one, from the start of a note."""
    begins = notes.start[notes.start <= max(notes.total_time - length, notes.start.min())]
    begin = rng.choice(begins) if notes.total_time > length else notes.start.min()
    notes = notes.select((notes.start >= begin) & (notes.start < begin + length))
    end = np.minimum(notes.end, begin + length) - begin
    return dataclasses.replace(notes, start=notes.start - begin, end=end, total_time=float(end.max()))


def vary(notes: Notes, rng: np.random.Generator, programs: str) -> Notes:
    """Returns the notes with other instruments, key, tempo and velocities. Drums keep their pitches.

    `programs` is "midi_class", the first program of each family of 8, or "family", any program of it.
    """
    tempo = rng.uniform(0.8, 1.25)
    lead_in = rng.uniform(0.0, 0.5)  # so that beats and windows are not aligned
    transpose = rng.integers(-5, 7)
    pitch, program = notes.pitch.copy(), notes.program.copy()
    velocity = notes.velocity + rng.normal(0, 5, size=len(notes))
    velocity[notes.is_drum] *= rng.uniform(0.8, 1.1)
    for old in np.unique(notes.program[~notes.is_drum]):
        track = ~notes.is_drum & (notes.program == old)
        family = old // 8
        if family * 8 not in RANGES or (family != _BASS and rng.random() < 0.3):
            family = rng.choice([p // 8 for p in RANGES if p // 8 != _BASS])
        program[track] = 8 * family + (rng.integers(8) if programs == "family" else 0)
        pitch[track] = _into_range(pitch[track] + transpose, *RANGES[8 * int(family)])
        velocity[track] *= rng.uniform(0.75, 1.15)
    start, end = lead_in + notes.start / tempo, lead_in + notes.end / tempo
    end = np.where(notes.is_drum, np.maximum(end, start + 0.1), end)  # some files write drum hits a millisecond long
    varied = dataclasses.replace(
        notes,
        start=start,
        end=end,
        pitch=pitch,
        program=program,
        velocity=np.clip(np.round(velocity), 20, 127).astype(np.int32),
        total_time=max(lead_in + notes.total_time / tempo, float(end.max())),
    )
    playable = np.where(notes.is_drum, np.isin(pitch, DRUMS), (pitch >= 0) & (pitch < 128))
    return _without_overlaps(varied.select(playable))


def _into_range(pitch: np.ndarray, low: int, high: int) -> np.ndarray:
    """Transposes a track by octaves so that its median pitch is in the range."""
    middle = np.median(pitch)
    return pitch + 12 * np.round((np.clip(middle, low + 6, high - 6) - middle) / 12).astype(np.int32)


def _without_overlaps(notes: Notes) -> Notes:
    """Ends each note where the next one of its pitch starts, as in a MIDI file, and sorts notes by start."""
    notes = notes.select(np.lexsort((notes.start, notes.pitch, notes.program, notes.is_drum)).astype(np.int32))
    same = np.all([np.diff(getattr(notes, key)) == 0 for key in ("pitch", "program", "is_drum")], axis=0)
    end = notes.end.copy()
    end[:-1] = np.where(same, np.minimum(end[:-1], notes.start[1:]), end[:-1])
    notes = dataclasses.replace(notes, end=end).select(end - notes.start >= 0.01)
    return notes.select(np.argsort(notes.start, kind="stable").astype(np.int32))
