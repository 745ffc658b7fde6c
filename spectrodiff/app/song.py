"""Songs as the page shows them: the notes of a MIDI file, its instruments, and what the visitor chose for each."""

import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from spectrodiff.errors import InputError
from spectrodiff.mel_sampler import RELEASE_SECONDS
from spectrodiff.notes.instruments import family_name, instrument_name
from spectrodiff.notes.midi import Notes, read_midi

DRUMS = -1  # stands for a program where an instrument may also be the drums
_COLOURS = (
    *("#4e79a7", "#f28e2b", "#59a14f", "#e15759", "#b07aa1", "#76b7b2"),
    *("#d4a72c", "#ff7f9f", "#9c755f", "#6f6fd6"),
)
_DRUM_COLOUR = "#8b8f98"


@dataclasses.dataclass(frozen=True)
class Limits:
    """The largest MIDI file, in megabytes, and the longest song, in minutes, that the page accepts."""

    megabytes: float = 2.0
    minutes: float = 10.0

    def __post_init__(self):
        for name in ("megabytes", "minutes"):
            if not 0 < (value := getattr(self, name)) < float("inf"):
                raise InputError(f"max_{name} is {value:g}; choose a number above 0")


@dataclasses.dataclass(frozen=True)
class Song:
    """A MIDI file that has been read.

    `name` is the file's name without its suffix, and `remarks` names what the file holds that notes cannot keep. In
    `notes`, velocities include the channels' volume and expression, which not all models expect: see `notes_for`.
    """

    name: str
    notes: Notes
    without_volume: Notes
    remarks: str = ""

    @property
    def seconds(self) -> float:
        """The duration of the rendered audio, with the time in which the last note decays."""
        return self.notes.total_time + RELEASE_SECONDS

    def notes_for(self, channel_volume: bool) -> Notes:
        """Returns the notes with or without the channels' volume; see `TokenizerConfig.channel_volume`."""
        return self.notes if channel_volume else self.without_volume


def read_song(path: str | os.PathLike, limits: Limits) -> Song:
    """Reads the MIDI file that a visitor chose; messages name it without its folder.

    Raises:
      InputError: the file is not usable MIDI, or exceeds a limit.
    """
    path = pathlib.Path(path)
    remarks = []
    try:
        if path.exists() and (size := path.stat().st_size / 1e6) > limits.megabytes:
            raise InputError(f"{path} has {size:.1f} MB, over the limit of {limits.megabytes:g} MB")
        notes = read_midi(path, channel_volume=True, tell=remarks.append)
        if notes.total_time > 60 * limits.minutes:
            minutes = notes.total_time / 60
            raise InputError(f"{path} lasts {minutes:.1f} min, over the limit of {limits.minutes:g} min")
        without_volume = read_midi(path, channel_volume=False)
    except InputError as error:
        raise InputError(str(error).replace(str(path), path.name)) from error
    return Song(path.stem, notes, without_volume, " ".join(remarks).replace(f"{path}: ", ""))


def title(path: str | os.PathLike) -> str:
    """Returns a file's name as the page shows it: without folder, suffix and underscores, and capitalised."""
    name = pathlib.PurePath(path).stem.replace("_", " ")
    return name[:1].upper() + name[1:]


def general_midi() -> list[tuple[str, list[str]]]:
    """Returns the sixteen families of General MIDI with the names of the eight programs in each, in order."""
    families = {}
    for program in range(128):
        families.setdefault(family_name(program), []).append(instrument_name(program))
    return list(families.items())


def instruments(notes: Notes) -> list[dict[str, Any]]:
    """Returns the instruments of a piece as rows of the page's table, in the order of their programs, drums last.

    A row has the `program` (or DRUMS), the number of `notes`, a `colour`, and the visitor's choices: the `target`, the
    program that plays its notes, and whether it is `muted`.
    """
    programs, counts = np.unique(np.where(notes.is_drum, 128, notes.program), return_counts=True)
    return [
        {
            "program": DRUMS if program == 128 else int(program),
            "notes": int(count),
            "colour": _DRUM_COLOUR if program == 128 else _COLOURS[row % len(_COLOURS)],
            "target": DRUMS if program == 128 else int(program),
            "muted": False,
        }
        for row, (program, count) in enumerate(zip(programs, counts, strict=True))
    ]


def arrange(notes: Notes, rows: Sequence[dict[str, Any]]) -> Notes:
    """Returns the notes with each instrument's played by its `target`, without those of muted instruments.

    The piece stays as long as it is. `rows` are those of `instruments`, as the page sends them back.

    Raises:
      InputError: every instrument is muted, or the rows are not those of the piece.
    """
    source = np.where(notes.is_drum, DRUMS, notes.program)
    played, kept = notes.program.copy(), np.ones(len(notes), bool)
    for row in rows:
        program, target, muted = (row.get(name) for name in ("program", "target", "muted"))
        known = range(128) if program != DRUMS else (DRUMS,)
        these = source == program
        if target not in known or not isinstance(muted, bool) or not these.any():
            raise InputError("the instruments are not those of this song; choose it again")
        if program != DRUMS:
            played[these] = target
        if muted:
            kept &= ~these
    if not kept.any():
        raise InputError("every instrument is muted; let one of them play")
    return dataclasses.replace(notes, program=played).select(kept)


def roll(song: Song) -> dict[str, Any]:
    """Returns what the page draws: the song's title and duration, and columns of its notes, as JSON can hold them."""
    notes = song.notes
    return {
        "title": title(f"{song.name}.mid"),
        "seconds": round(song.seconds, 2),
        "start": np.round(notes.start, 3).tolist(),
        "end": np.round(notes.end, 3).tolist(),
        "pitch": notes.pitch.tolist(),
        "program": np.where(notes.is_drum, DRUMS, notes.program).tolist(),
    }
