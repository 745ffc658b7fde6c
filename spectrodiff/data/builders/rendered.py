"""`spectrodiff prepare rendered`: hours of music with exact scores, made on any machine from free packages.

The corpus is a plain folder, so it is read like anyone's own recordings:

    audio/NAME.flac   16 kHz mono, 16 bit        splits.csv    one line a piece: split, source, length, programs
    midi/NAME.mid     the notes that were played recipe.json   every parameter, and the licences of the sources

Piece number i follows from (seed, i) alone: its notes to the tick, its sound as near as FluidSynth repeats itself. So
a killed run goes on where it stopped, more hours extend a corpus, and the number of workers changes nothing.
"""

import collections
import csv
import dataclasses
import hashlib
import importlib.metadata
import io
import itertools
import json
import multiprocessing
import os
import pathlib
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import soundfile
import tqdm

from spectrodiff.data import augment, render, sources
from spectrodiff.errors import InputError
from spectrodiff.files import replacing
from spectrodiff.notes.midi import Notes, read_midi, write_midi

FIELDS = ["name", "split", "source", "seconds", "notes", "programs"]
PACKAGES = ("note-seq", "numpy", "scipy", "soundfile", "pyfluidsynth", "music21")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What decides the pieces of a corpus."""

    seed: int = 0
    # How often a piece of each kind is drawn. Etudes are shorter: so they are about a third of the hours.
    weights: Mapping[str, float] = dataclasses.field(
        default_factory=lambda: {"etude": 0.46, "band": 0.26, "game": 0.14, "score": 0.14}
    )
    programs: str = "midi_class"  # the first program of each family of 8, or any: "family"
    soundfont: str = render.SOUNDFONT
    gain: float = render.GAIN
    reverb: bool = False
    chorus: bool = False
    tail: float = render.TAIL
    min_seconds: float = 45.0  # longer pieces give an excerpt between these lengths
    max_seconds: float = 90.0


@dataclasses.dataclass(frozen=True)
class Piece:
    """One rendered piece: its line in splits.csv and the contents of its two files."""

    row: dict[str, Any]
    flac: bytes
    midi: bytes


def prepare_rendered(data_dir: str | os.PathLike, *, hours: float, workers: int | None = None, **recipe: Any) -> None:
    """Renders a corpus into `data_dir`, or goes on with it, until it holds `hours` of audio; then prints what it holds.

    `recipe` are fields of `Recipe`, such as `seed` and `programs`.

    Raises:
      InputError: a program or package is missing, or the folder holds a corpus of another recipe.
    """
    summary = prepare(data_dir, hours, Recipe(**recipe), workers or os.cpu_count() or 1)
    for name, value in summary.items():
        print(f"{name:>8}: {value}")


def prepare(out: str | os.PathLike, hours: float, recipe: Recipe, workers: int = 1) -> dict[str, Any]:
    """See `prepare_rendered`. Returns the hours, pieces, and hours by split, kind of source and program."""
    if not hours > 0:
        raise InputError(f"hours must be above 0, not {hours}")
    if recipe.programs not in ("midi_class", "family"):
        raise InputError(f"programs must be midi_class or family, not {recipe.programs!r}")
    out = pathlib.Path(out)
    for folder in ("audio", "midi"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    _record(out, recipe)
    rows = _finished(out)

    done = sum(float(row["seconds"]) for row in rows)
    make = _Maker(recipe, out / ".sources")
    pieces = _in_order(make, itertools.count(len(rows)), workers)
    with tqdm.tqdm(total=round(3600 * hours), initial=round(done), unit="s", desc="rendering") as bar:
        while done < 3600 * hours:
            piece = next(pieces)
            for path, data in zip(_files(out, piece.row), (piece.flac, piece.midi), strict=True):
                with replacing(path) as temporary:
                    temporary.write_bytes(data)
            rows.append(piece.row)
            with replacing(out / "splits.csv") as temporary, temporary.open("w", newline="") as file:
                writer = csv.DictWriter(file, FIELDS)
                writer.writeheader()
                writer.writerows(rows)
            done += piece.row["seconds"]
            bar.update(round(done) - bar.n)
    pieces.close()
    return _summary(rows)


@dataclasses.dataclass(frozen=True)
class _Maker:
    """Makes piece number `index`; a class, so that it can be sent to another process."""

    recipe: Recipe
    cache: pathlib.Path

    def __call__(self, index: int) -> Piece:
        rng = np.random.default_rng([self.recipe.seed, index])
        source, notes = self._draw(rng)
        with tempfile.TemporaryDirectory() as folder:  # a MIDI file rounds times to its ticks: play what it says
            path = pathlib.Path(folder, "piece.mid")
            write_midi(notes, path)
            notes, midi = read_midi(path), path.read_bytes()
        options = {name: getattr(self.recipe, name) for name in ("soundfont", "gain", "reverb", "chorus", "tail")}
        audio = render.render(notes, **options)
        if np.abs(audio).max() >= 1:
            raise InputError(f"{source} would clip at gain {self.recipe.gain}: start again with a lower one")
        flac = io.BytesIO()
        soundfile.write(flac, audio, render.SAMPLE_RATE, format="FLAC", subtype="PCM_16")
        programs = [str(p) for p in np.unique(notes.program[~notes.is_drum])] + ["drums"] * bool(notes.is_drum.any())
        row = {
            "name": f"{index:06d}-{source}",
            "split": sources.split_of(source),
            "source": source,
            "seconds": round(len(audio) / render.SAMPLE_RATE, 3),
            "notes": len(notes),
            "programs": " ".join(programs),
        }
        return Piece(row, flac.getvalue(), midi)

    def _draw(self, rng: np.random.Generator) -> tuple[str, Notes]:
        weights = self.recipe.weights
        for _ in range(20):
            kind = sources.SOURCES[rng.choice(list(weights), p=list(weights.values()))]
            names = kind.names()
            name = names[rng.integers(len(names))]
            try:
                notes = kind.load(name, self.cache)
            except InputError as error:  # a few scores and chord charts cannot be played: draw another
                problem = error
                continue
            notes = augment.excerpt(notes, rng, rng.uniform(self.recipe.min_seconds, self.recipe.max_seconds))
            notes = augment.vary(notes, rng, self.recipe.programs)
            if len(notes) >= 10:
                return name, notes
            problem = f"{name} has a stretch with hardly a note"
        raise InputError(f"twenty pieces in a row could not be used; the last: {problem}")


def _in_order(make: Callable[[int], Piece], indices: Iterator[int], workers: int) -> Iterator[Piece]:
    """Pieces in the order of their numbers, made by other processes a little ahead of time."""
    if workers == 1:
        yield from map(make, indices)
        return
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_end_with_parent)
    try:
        queue = collections.deque(pool.submit(make, index) for index in itertools.islice(indices, 3 * workers))
        while True:
            yield queue.popleft().result()
            queue.append(pool.submit(make, next(indices)))
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """Lets no worker outlive a run that was killed outright."""
    threading.Thread(target=lambda: (multiprocessing.parent_process().join(), os._exit(1)), daemon=True).start()


def _record(out: pathlib.Path, recipe: Recipe) -> None:
    """Writes recipe.json, or makes sure that the folder's own says the same."""
    path = out / "recipe.json"
    wanted = dataclasses.asdict(recipe)
    if path.exists():
        found = json.loads(path.read_text())["recipe"]
        for name, value in wanted.items():
            if found.get(name) != value:
                raise InputError(f"{out} was rendered with {name} {found.get(name)}, not {value}: name another folder")
        return
    render.check(recipe.soundfont)  # what is missing should be said before long work
    record = {
        "recipe": wanted,
        "soundfont_sha256": hashlib.sha256(pathlib.Path(recipe.soundfont).read_bytes()).hexdigest(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "licences": {kind: sources.SOURCES[kind].licence for kind in recipe.weights},
        "pieces_to_draw_from": {kind: len(sources.SOURCES[kind].names()) for kind in recipe.weights},
    }
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n")


def _finished(out: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of splits.csv up to the first whose files are missing."""
    path = out / "splits.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return list(itertools.takewhile(lambda row: all(path.exists() for path in _files(out, row)), rows))


def _files(out: pathlib.Path, row: dict[str, Any]) -> tuple[pathlib.Path, pathlib.Path]:
    return out / "audio" / f"{row['name']}.flac", out / "midi" / f"{row['name']}.mid"


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    by = {"splits": collections.Counter(), "kinds": collections.Counter(), "programs": collections.Counter()}
    for row in rows:
        hours = float(row["seconds"]) / 3600
        by["splits"][row["split"]] += hours
        by["kinds"][row["source"].split("-")[0]] += hours
        by["programs"].update(dict.fromkeys(row["programs"].split(), hours))
    tables = {name: {key: round(value, 2) for key, value in table.most_common()} for name, table in by.items()}
    return {"hours": round(sum(by["splits"].values()), 2), "pieces": len(rows), **tables}
