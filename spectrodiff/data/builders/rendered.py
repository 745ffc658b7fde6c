"""`spectrodiff prepare rendered`: hours of music with exact scores, made on any machine from free packages.

DATA_DIR/rendered holds the pieces, as a plain folder that is read like anyone's own recordings,

    audio/NAME.flac   16 kHz mono, 16 bit        splits.csv    one line a piece: split, source, length, programs
    midi/NAME.mid     the notes that were played recipe.json   every parameter, and the licences of the sources

and beside them the dataset that is made of these. Piece number i follows from (seed, i) alone: its notes to the tick,
its sound as near as FluidSynth repeats itself. So a killed run goes on where it stopped, more hours render more pieces
and make the dataset anew, and the number of workers changes nothing.
"""

import contextlib
import csv
import dataclasses
import hashlib
import importlib.metadata
import io
import itertools
import json
import os
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import soundfile
import tqdm

from spectrodiff.audio.files import read_audio
from spectrodiff.data import augment, render, sources
from spectrodiff.data.builders.preparation import prepare
from spectrodiff.data.builders.reading import fit
from spectrodiff.data.builders.workers import check_workers, crew, in_order
from spectrodiff.data.recordings import Entry, Recording
from spectrodiff.errors import InputError
from spectrodiff.files import replacing, utf8_path
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


@dataclasses.dataclass(frozen=True)
class Rendered:
    """The pieces that were rendered by a recipe, in the splits of their sources' names."""

    name: ClassVar[str] = "rendered"
    homepage: ClassVar[str] = ""
    description: ClassVar[str] = "Music from free packages, played by a General MIDI SoundFont"

    recipe: Recipe = Recipe()

    def entries(self, folder: pathlib.Path) -> list[Entry]:
        """See `Corpus`."""
        return [Entry(row["name"], row["split"], _files(folder, row)) for row in _finished(folder)]

    def read(self, entry: Entry) -> Recording:
        """See `Corpus`."""
        audio, midi = entry.source
        audio = read_audio(audio)
        return Recording(entry.name, audio, fit(read_midi(midi), audio, midi))


def prepare_rendered(
    data_dir: str | os.PathLike, *, hours: float, workers: int | None = None, **recipe: Any
) -> pathlib.Path:
    """Renders pieces into `data_dir/rendered`, or goes on with it, until they last `hours`; then makes the dataset.

    `recipe` are fields of `Recipe`, such as `seed` and `programs`. Returns the dataset's folder.

    Raises:
      InputError: a program or package is missing, or not what earlier pieces were made with; or the folder holds
        pieces of another recipe.
    """
    data_dir, recipe = utf8_path(data_dir), Recipe(**recipe)
    if (data_dir / "recipe.json").exists():
        raise InputError(f"{data_dir} holds rendered pieces itself: name the folder above it")
    render_pieces(data_dir / Rendered.name, hours, recipe, workers)
    return prepare(Rendered(recipe), data_dir / Rendered.name, data_dir, workers=workers)


def render_pieces(out: str | os.PathLike, hours: float, recipe: Recipe, workers: int | None = None) -> None:
    """The first half of `prepare_rendered`: the pieces, in the folder `out`."""
    if not hours > 0:
        raise InputError(f"hours must be above 0, not {hours}")
    if recipe.programs not in ("midi_class", "family"):
        raise InputError(f"programs must be midi_class or family, not {recipe.programs!r}")
    check_workers(workers)
    out = pathlib.Path(out)
    rows = _finished(out)
    done = sum(float(row["seconds"]) for row in rows)
    _check_recipe(out, recipe)
    if done >= 3600 * hours:
        return
    try:
        for folder in ("audio", "midi"):
            (out / folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write in {out} ({error.strerror}): name another --data_dir") from error
    _check_sources(out, recipe)

    make = _Maker(recipe, out / ".sources")
    expected = int((3600 * hours - done) / recipe.max_seconds)
    with (
        contextlib.closing(in_order(make, itertools.count(len(rows)), crew(workers, expected, worth=2))) as pieces,
        tqdm.tqdm(total=round(3600 * hours), initial=round(done), unit="s", desc="rendering") as bar,
    ):
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


def _check_recipe(out: pathlib.Path, recipe: Recipe) -> None:
    """Raises InputError if the folder holds pieces of another recipe."""
    path = out / "recipe.json"
    if path.exists():
        found = json.loads(path.read_text())["recipe"]
        for name, value in dataclasses.asdict(recipe).items():
            if found.get(name) != value:
                raise InputError(
                    f"{out} was rendered with {name} {found.get(name)}, not {value}: name another --data_dir"
                )


def _check_sources(out: pathlib.Path, recipe: Recipe) -> None:
    """Writes recipe.json, or makes sure that it was written where the same was at hand.

    Raises:
      InputError: something is missing, or is not what earlier pieces were made with: then the same numbers would be
        other pieces.
    """
    render.check(recipe.soundfont)
    at_hand = {
        "soundfont_sha256": hashlib.sha256(pathlib.Path(recipe.soundfont).read_bytes()).hexdigest(),
        "pieces_to_draw_from": {kind: len(sources.SOURCES[kind].names()) for kind in recipe.weights},
    }
    path = out / "recipe.json"
    if path.exists():
        found = json.loads(path.read_text())
        for name, value in at_hand.items():
            if found.get(name) != value:
                raise InputError(
                    f"{out} was rendered with {name} {found.get(name)}, and here that is {value}: "
                    "install the same packages again, or name another --data_dir"
                )
        return
    record = {
        "recipe": dataclasses.asdict(recipe),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "licences": {kind: sources.SOURCES[kind].licence for kind in recipe.weights},
        **at_hand,
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
