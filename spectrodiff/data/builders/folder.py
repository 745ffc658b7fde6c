"""A corpus of the user's own: a folder of audio files and MIDI files of the same names."""

import collections
import dataclasses
import hashlib
import os
import pathlib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import ClassVar, NamedTuple

import numpy as np
from tqdm import tqdm

from spectrodiff.audio.files import READABLE, UNREADABLE, read_audio
from spectrodiff.audio.mel import SAMPLE_RATE
from spectrodiff.data.builders.alignment import alignment_problems
from spectrodiff.data.builders.reading import LATE, fit, read_table
from spectrodiff.data.builders.rendered.sources import split_by_hash
from spectrodiff.data.recordings import SPLITS, Entry, Recording
from spectrodiff.data.workers import parallel_map, worker_count
from spectrodiff.errors import InputError
from spectrodiff.notes.midi import Notes, read_midi

MIDI = (".mid", ".midi", ".kar", ".smf", ".rmi")
TABLE = "splits.csv"


@dataclasses.dataclass(frozen=True)
class Pair:
    """An audio and a MIDI file. If `program` is not None, it replaces that of all notes except drums."""

    audio: pathlib.Path
    midi: pathlib.Path
    program: int | None
    stamp: tuple[int, ...]  # sizes and times of both files, so that a changed file is a new recording


@dataclasses.dataclass(frozen=True)
class Folder:
    """Pairs of audio (wav, flac, mp3, ogg, aiff and more; any rate) and MIDI of the same name, anywhere below a folder.

    A name is the path without its suffix, and without `audio/` or `midi/` at its beginning: audio/a/b.wav and
    midi/a/b.mid are a/b. Composed and decomposed Unicode is the same; bytes that are not UTF-8 are written as \\xNN.
    Hidden files are ignored.

    `csv` is a table with a column `name` and optional columns `split` (train, validation or test) and `program` (0 to
    127), whose cells may be empty. It defaults to the folder's splits.csv, if there is one. A piece without a split
    gets train, validation or test, 90 : 5 : 5, by a hash of its name. If no piece has a split, and train or validation
    would be empty, the pieces with the smallest hashes are moved there.

    `name` is that of the dataset.
    """

    homepage: ClassVar[str] = ""
    description: ClassVar[str] = "Recordings with MIDI files of the same names"

    name: str = "folder"
    csv: str | None = None

    def __post_init__(self):
        if not re.fullmatch("[a-z][a-z0-9_]*", self.name):
            raise InputError(f"a dataset cannot be called {self.name!r}: use lower-case letters, digits and _")
        if self.csv is not None:
            object.__setattr__(self, "csv", os.path.abspath(self.csv))

    def entries(self, folder: pathlib.Path) -> list[Entry]:
        """Returns all pairs below `folder`; see `Corpus`."""
        found = find_pairs(folder)
        pairs = found.pairs
        if not pairs:
            counts = collections.Counter("MIDI" if path.suffix.lower() in MIDI else "audio" for path in found.unpaired)
            convert = f"; {_conversion_advice(found.unreadable)}" if found.unreadable else ""
            raise InputError(
                f"{folder} holds no pair of audio and MIDI of the same name ({counts['audio']} audio and "
                f"{counts['MIDI']} MIDI files without the other); name the folder that holds both{convert}"
            )
        rows = self._rows(folder, pairs)
        splits = {name: row["split"] for name, row in rows.items() if row.get("split")}
        splits = {name: split_by_hash(name) for name in pairs} | splits if splits else split_by_name(pairs)
        entries = []
        for name, (audio, midi) in pairs.items():
            stats = [path.stat() for path in (audio, midi)]
            stamp = tuple(value for stat in stats for value in (stat.st_size, stat.st_mtime_ns))
            program = rows.get(name, {}).get("program")
            entries.append(Entry(name, splits[name], Pair(audio, midi, int(program) if program else None, stamp)))
        return entries

    def _rows(self, folder: pathlib.Path, pairs: Iterable[str]) -> dict[str, dict[str, str]]:
        """Returns the rows of the table by name."""
        path = folder / TABLE if self.csv is None else pathlib.Path(self.csv)
        if self.csv is None and not path.exists():
            return {}
        rows, programs = {}, {str(program) for program in range(128)}
        for row in read_table(path, ["name"]):
            name = unicodedata.normalize("NFC", row["name"])
            if name in rows:
                raise InputError(f"{path} names {name!r} twice; remove one of the lines")
            if name not in pairs:
                raise InputError(f"{path} names {name!r}, but {folder} has no audio and MIDI of that name; remove it")
            rows[name] = row
            for column, choices in (("split", SPLITS), ("program", programs)):
                if row.get(column) and row[column] not in choices:
                    wanted = "0 to 127" if column == "program" else ", ".join(SPLITS)
                    raise InputError(f"{path} gives {name!r} the {column} {row[column]!r}; choose one of {wanted}")
        return rows

    def read(self, entry: Entry) -> Recording:
        """Reads a pair; see `Corpus`."""
        audio, notes = _load(entry.source)
        return Recording(entry.name, audio, fit(notes, audio, entry.source.midi))

    def report(self, folder: pathlib.Path, entries: Sequence[Entry], workers: int | None) -> None:
        """Prints the number of pairs, the files without a partner, and the pairs that look suspicious."""
        splits = collections.Counter(entry.split for entry in entries)
        counts = ", ".join(f"{splits[split]} {split}" for split in SPLITS if splits[split])
        pairs = "1 pair" if len(entries) == 1 else f"{len(entries)} pairs"
        print(f"{folder} holds {pairs} of audio and MIDI: {counts}")
        found = find_pairs(folder)
        for path in found.unpaired:
            print(f"{path} has no {'audio' if path.suffix.lower() in MIDI else 'MIDI'} of its name: left out")
        if found.unreadable:
            print(_conversion_advice(found.unreadable))
        checked = parallel_map(find_problems, entries, worker_count(workers, len(entries)))
        problems = list(tqdm(checked, "checking pairs", len(entries), unit="pair"))
        suspicious = [(entry.name, reasons) for entry, reasons in zip(entries, problems, strict=True) if reasons]
        for name, reasons in suspicious:
            print(f"{name}: {'; '.join(reasons)}")
        print(f"{len(suspicious)} of {len(entries)} pairs look suspicious", flush=True)


class FolderContents(NamedTuple):
    """The pairs of audio and MIDI files by name, files without a partner, and audio files that cannot be read."""

    pairs: dict[str, tuple[pathlib.Path, pathlib.Path]]
    unpaired: list[pathlib.Path]
    unreadable: list[pathlib.Path]


def find_pairs(folder: pathlib.Path) -> FolderContents:
    """Searches a folder for pairs of audio and MIDI files.

    Raises:
      InputError: there is no such folder, or two files of one kind have the same name.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; name one that holds audio and MIDI files")
    found, unreadable = {READABLE: {}, MIDI: {}}, []
    for path in sorted(folder.rglob("*")):
        kind = next((kind for kind in (*found, UNREADABLE) if path.suffix.lower() in kind), None)
        parts = path.relative_to(folder).parts
        if kind is None or not path.is_file() or any(part.startswith(".") for part in parts):
            continue
        if kind is UNREADABLE:
            unreadable.append(path)
            continue
        if len(parts) > 1 and parts[0].lower() in ("audio", "midi"):
            parts = parts[1:]
        name = _as_text(pathlib.PurePosixPath(*parts).with_suffix("").as_posix())
        other = found[kind].setdefault(name, path)
        if other != path:
            raise InputError(f"{other} and {path} are both called {name!r}; remove or rename one of them")
    audio, midi = found.values()
    pairs = {name: (path, midi[name]) for name, path in audio.items() if name in midi}
    unpaired = [path for kind in found.values() for name, path in kind.items() if name not in pairs]
    return FolderContents(pairs, unpaired, unreadable)


def _as_text(name: str) -> str:
    """Returns a name as text: the same for composed and decomposed Unicode, and valid UTF-8."""
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return unicodedata.normalize("NFC", text)


def _conversion_advice(unreadable: Sequence[pathlib.Path]) -> str:
    suffixes = ", ".join(sorted({path.suffix.lower() for path in unreadable}))
    count, first = len(unreadable), unreadable[0]
    return f"files of formats that cannot be read ({suffixes}): {count}, such as {first}; convert them to wav"


def split_by_name(names: Iterable[str]) -> dict[str, str]:
    """Returns the split of each piece; see `Folder`."""
    by_hash = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())
    splits = {name: split_by_hash(name) for name in by_hash}
    for empty in ("validation", "train"):
        counts = collections.Counter(splits.values())
        spare = [name for name in by_hash if splits[name] == "test" or counts[splits[name]] > 1]
        if not counts[empty] and spare:
            splits[spare[0]] = empty
    return splits


def _load(pair: Pair) -> tuple[np.ndarray, Notes]:
    notes = read_midi(pair.midi)
    if pair.program is not None:
        notes = dataclasses.replace(notes, program=np.where(notes.is_drum, notes.program, np.int32(pair.program)))
    return read_audio(pair.audio), notes


def find_problems(entry: Entry) -> list[str]:
    """Returns descriptions of what looks suspicious in a pair."""
    try:
        audio, notes = _load(entry.source)
    except InputError as error:
        return [str(error)]
    problems = []
    seconds, last = len(audio) / SAMPLE_RATE, float(notes.end.max())
    if last > seconds + LATE or last < seconds / 2:
        problems.append(f"the notes end at {last:.1f} s, the audio at {seconds:.1f} s")
    return problems + alignment_problems(audio, notes)
