"""Functions shared by the readers of corpora: finding the folder, reading tables, fitting labels to audio."""

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

# The velocity of notes whose labels have none. The published vocabulary does not distinguish velocities.
VELOCITY = 100
# Seconds after the end of the audio at which a note may begin, as recordings are trimmed and clocks differ a little.
# Later ones mean that audio and labels do not belong together, or that one of them is truncated.
LATE = 1.0


def find_root(folder: pathlib.Path, corpus: Corpus, *patterns: str) -> pathlib.Path:
    """Returns the folder in which all glob `patterns` match: `folder`, or the only such folder in it.

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
    """Returns the content of a text file; raises InputError if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}; get another copy of it ({error})") from error


def read_table(path: pathlib.Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Returns the rows of a CSV file with a header.

    Raises:
      InputError: it cannot be read, lacks one of `columns`, or has a row with too few cells.
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
    """Returns the split in a row of a corpus's table; raises InputError if it is not one of SPLITS."""
    if row["split"] not in SPLITS:
        raise InputError(f"{table} names a split {row['split']!r}, not one of {', '.join(SPLITS)}; get another copy")
    return row["split"]


def require_audio(paths: Iterable[pathlib.Path], corpus: Corpus, root: pathlib.Path) -> None:
    """Raises InputError if no recording exists: some corpora have a smaller download with labels only."""
    if not any(path.exists() for path in paths):
        raise InputError(f"{root} holds no audio: get {corpus.name} with audio from {corpus.homepage}")


def make_notes(path: pathlib.Path, rows: Iterable[tuple[Any, Any, Any, int]]) -> Notes:
    """Returns the notes of a label file without velocities, from rows (start, end, pitch, program), in seconds.

    Pitches are rounded to semitones. `rows` may be a generator that raises on damaged input.

    Raises:
      InputError: there are no rows, or some of them are not notes.
    """
    try:
        table = np.array(list(rows), np.float64).reshape(-1, 4)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise InputError(f"cannot read the notes of {path}; get another copy of it ({error!r})") from error
    if not len(table):
        raise InputError(f"{path} holds no notes; get another copy of it")
    start, end, pitch, program = table.T
    pitch = np.rint(pitch)
    valid = np.isfinite(table).all(axis=1) & (start >= 0) & (end >= start)
    valid &= (pitch >= 0) & (pitch < 128) & (program >= 0) & (program < 128)
    if not valid.all():
        values = ", ".join(f"{value:g}" for value in table[np.argmin(valid)])
        raise InputError(f"{path} holds an invalid note: start, end, pitch and program {values}; get another copy")
    return Notes(
        start=start,
        end=end,
        pitch=pitch.astype(np.int32),
        velocity=np.full(len(table), VELOCITY, np.int32),
        program=program.astype(np.int32),
        is_drum=np.zeros(len(table), bool),
        total_time=float(end.max()),
    )


def played_by(notes: Notes, program: int | None) -> Notes:
    """Returns the notes with the given program, or as drums if it is None."""
    programs = np.full(len(notes), program or 0, np.int32)
    return dataclasses.replace(notes, program=programs, is_drum=np.full(len(notes), program is None))


def fit(notes: Notes, audio: Float[np.ndarray, " s"], path: pathlib.Path) -> Notes:
    """Returns the notes, read from `path`, cut to the length of their audio.

    Raises:
      InputError: a note begins more than LATE seconds after the end of the audio.
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
    """Returns `audio` cut or padded with silence to `samples` samples."""
    return np.pad(audio[:samples], (0, max(0, samples - len(audio))))
