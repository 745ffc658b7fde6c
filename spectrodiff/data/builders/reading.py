"""What the readers of corpora share: finding the folder, tables, and labels that fit the audio."""

import csv
import dataclasses
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from spectrodiff.audio.mel import SAMPLE_RATE
from spectrodiff.data.recordings import SPLITS, Corpus
from spectrodiff.errors import InputError
from spectrodiff.notes.sequence import Notes

# Of every note where the labels tell none. The published vocabulary knows on and off alone, so any would do there.
VELOCITY = 100
# Seconds past the audio's end within which labels may begin: recordings are trimmed, and clocks differ a little.
# More means that audio and labels do not belong together, or that one of them is cut short.
LATE = 1.0


def find_root(folder: pathlib.Path, corpus: Corpus, *patterns: str) -> pathlib.Path:
    """The folder where each of the glob `patterns` finds something: `folder`, or the only such folder in it.

    Raises:
      InputError: there is none, or several; the message says which folder to name, or where to get the corpus.
    """
    try:
        if _holds(folder, patterns):
            return folder
        below = [child for child in sorted(folder.iterdir()) if child.is_dir() and _holds(child, patterns)]
    except OSError as error:
        why = f"cannot read {folder} ({error.strerror}): name the folder of {corpus.name}, unpacked"
        raise InputError(f"{why}; it comes from {corpus.homepage}") from error
    if len(below) == 1:
        return below[0]
    if below:
        raise InputError(f"{folder} holds {corpus.name} more than once: name one of {', '.join(map(str, below))}")
    above = [parent for parent in folder.absolute().parents[:2] if _holds(parent, patterns)]
    if above:
        raise InputError(f"{folder} is only a part of {corpus.name}: name {above[0]}")
    missing = ", ".join(pattern for pattern in patterns if not _holds(folder, [pattern]))
    raise InputError(
        f"{folder} is not the folder of {corpus.name}: it has no {missing}; "
        f"get the corpus from {corpus.homepage}, unpack it and name its folder"
    )


def _holds(folder: pathlib.Path, patterns: Sequence[str]) -> bool:
    return all(any(folder.glob(pattern)) for pattern in patterns)


def read_text(path: pathlib.Path) -> str:
    """The whole of a text file; raises InputError if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}; get another copy of it ({error})") from error


def read_table(path: pathlib.Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The lines of a CSV file by its header.

    Raises:
      InputError: it cannot be read, lacks one of `columns`, or has a line that is cut short.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [column for column in columns if column not in (reader.fieldnames or ())]
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot read {path} as a table; get another copy of it ({error})") from error
    if missing:
        raise InputError(f"{path} has no column {', '.join(missing)}; get another copy of it")
    for number, row in enumerate(rows, start=1):
        if any(row[column] is None for column in columns):
            raise InputError(f"{path} is cut short in row {number}; get another copy of it")
    return rows


def split_of(row: dict[str, str], table: pathlib.Path) -> str:
    """The split that a line of a corpus's table puts its piece in; raises InputError if it is none."""
    if row["split"] not in SPLITS:
        raise InputError(f"{table} names a split {row['split']!r}, not one of {', '.join(SPLITS)}; get another copy")
    return row["split"]


def require_audio(paths: Iterable[pathlib.Path], corpus: Corpus, root: pathlib.Path) -> None:
    """Raises InputError if none of the recordings is there: some corpora have a smaller download of labels alone."""
    if not any(path.exists() for path in paths):
        raise InputError(f"{root} holds no audio: get {corpus.name} with audio from {corpus.homepage}")


def make_notes(path: pathlib.Path, rows: Iterable[tuple[Any, Any, Any, int]]) -> Notes:
    """The notes of a label file, which knows no velocities, from (start, end, pitch, program) in seconds and keys.

    Pitches between keys go to the nearer one. `rows` may be a generator that trips over what it reads.

    Raises:
      InputError: no rows, or some of them are not notes.
    """
    try:
        table = np.array(list(rows), np.float64).reshape(-1, 4)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise InputError(f"cannot read the notes of {path}; get another copy of it ({error!r})") from error
    if not len(table):
        raise InputError(f"{path} holds no notes; get another copy of it")
    start, end, pitch, program = table.T
    key = np.rint(pitch)
    sound = np.isfinite(table).all(axis=1) & (start >= 0) & (end >= start)
    sound &= (key >= 0) & (key < 128) & (program >= 0) & (program < 128)
    if not sound.all():
        values = ", ".join(f"{value:g}" for value in table[np.argmin(sound)])
        raise InputError(f"{path} holds what is no note: start, end, pitch and program {values}; get another copy")
    return Notes(
        start=start,
        end=end,
        pitch=key.astype(np.int32),
        velocity=np.full(len(table), VELOCITY, np.int32),
        program=program.astype(np.int32),
        is_drum=np.zeros(len(table), bool),
        total_time=float(end.max()),
    )


def played_by(notes: Notes, program: int | None) -> Notes:
    """The same notes on one instrument: `program`, or drums for None, whose kit is 0 then."""
    programs = np.full(len(notes), program or 0, np.int32)
    return dataclasses.replace(notes, program=programs, is_drum=np.full(len(notes), program is None))


def join(parts: Sequence[Notes]) -> Notes:
    """All notes of several parts that sound together."""
    names = [field.name for field in dataclasses.fields(Notes) if field.name != "total_time"]
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return Notes(**columns, total_time=max(part.total_time for part in parts))


def fit(notes: Notes, audio: Float[np.ndarray, " s"], path: pathlib.Path) -> Notes:
    """The notes that `path` gives for `audio`: what outlasts it is cut, and the piece ends with it.

    Raises:
      InputError: a note begins over LATE seconds after the audio's end.
    """
    seconds = len(audio) / SAMPLE_RATE
    last = float(notes.start.max(initial=0.0))
    if last > seconds + LATE:
        raise InputError(
            f"{path} does not fit its audio: a note begins at {last:.1f} s, the audio ends at {seconds:.1f} s; "
            "get both files again"
        )
    cut = dataclasses.replace(notes, end=np.minimum(notes.end, seconds), total_time=seconds)
    return cut.select(notes.start < seconds)


def lengthen(audio: Float[np.ndarray, " s"], samples: int) -> Float[np.ndarray, " samples"]:
    """The first `samples` samples, with silence after them where they are fewer."""
    return np.pad(audio[:samples], (0, max(0, samples - len(audio))))
