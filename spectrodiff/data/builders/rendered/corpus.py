"""`spectrodiff prepare rendered`: a corpus of music with exact notes, made on any machine from free packages.

DATA_DIR/rendered is a plain folder of recordings and MIDI files, as `folder.Folder` reads it:

    audio/NAME.flac   16 kHz mono, 16 bit        splits.csv    a row per piece: split, source, length, programs
    midi/NAME.mid     the notes that were played recipe.json   every parameter, and the licences of the sources

It also holds the dataset that is made of them. Piece number i depends on (seed, i) only: its notes exactly, its audio
as far as FluidSynth is deterministic. So a run that was killed continues where it stopped, more hours add pieces and
rebuild the dataset, and the number of workers does not change the pieces.
"""

import contextlib
import csv
import dataclasses
import io
import itertools
import os
import pathlib
import tempfile
from typing import Any, ClassVar

import numpy as np
import soundfile
import tqdm

from spectrodiff.audio.files import read_audio
from spectrodiff.audio.mel import SAMPLE_RATE
from spectrodiff.data.builders.preparation import prepare
from spectrodiff.data.builders.reading import fit
from spectrodiff.data.builders.rendered import sources, variations
from spectrodiff.data.builders.rendered.recipe import Recipe, check_recipe, check_sources
from spectrodiff.data.recordings import Entry, Recording
from spectrodiff.data.soundfont import play
from spectrodiff.data.workers import check_workers, parallel_map, worker_count
from spectrodiff.errors import InputError
from spectrodiff.files import replacing, utf8_path
from spectrodiff.notes.midi import Notes, read_midi, write_midi

FIELDS = ["name", "split", "source", "seconds", "notes", "programs"]


@dataclasses.dataclass(frozen=True)
class RenderedPiece:
    """A piece of the corpus: its row of splits.csv, and the contents of its FLAC and MIDI files."""

    row: dict[str, Any]
    flac: bytes
    midi: bytes


@dataclasses.dataclass(frozen=True)
class RenderedCorpus:
    """A `Corpus` of the pieces that `render_pieces` wrote, each in the split of its source."""

    name: ClassVar[str] = "rendered"
    homepage: ClassVar[str] = ""
    description: ClassVar[str] = "Music from free packages, played by a General MIDI SoundFont"

    recipe: Recipe = Recipe()

    def entries(self, folder: pathlib.Path) -> list[Entry]:
        """Returns the finished pieces in `folder`; see `Corpus`."""
        return [Entry(row["name"], row["split"], _files(folder, row)) for row in _finished(folder)]

    def read(self, entry: Entry) -> Recording:
        """Reads a piece; see `Corpus`."""
        audio, midi = entry.source
        audio = read_audio(audio)
        return Recording(entry.name, audio, fit(read_midi(midi), audio, midi))


def prepare_rendered(
    data_dir: str | os.PathLike, *, hours: float, workers: int | None = None, **recipe: Any
) -> pathlib.Path:
    """Renders pieces into `data_dir/rendered` until they last `hours`, then makes the dataset; returns its folder.

    Pieces that are there already count. `recipe` are fields of `Recipe`, such as `seed` and `programs`.

    Raises:
      InputError: a program or package is missing, or differs from that of earlier pieces; or the folder holds pieces
        of another recipe.
    """
    data_dir, recipe = utf8_path(data_dir), Recipe(**recipe)
    if (data_dir / "recipe.json").exists():
        raise InputError(f"{data_dir} holds rendered pieces itself: name the folder above it")
    render_pieces(data_dir / RenderedCorpus.name, hours, recipe, workers)
    return prepare(RenderedCorpus(recipe), data_dir / RenderedCorpus.name, data_dir, workers=workers)


def render_pieces(out: str | os.PathLike, hours: float, recipe: Recipe, workers: int | None = None) -> None:
    """Renders pieces into the folder `out` until they last `hours`; `prepare_rendered` makes a dataset of them.

    Raises:
      InputError: as `prepare_rendered`.
    """
    if not hours > 0:
        raise InputError(f"hours must be above 0, not {hours}")
    if recipe.programs not in ("midi_class", "family"):
        raise InputError(f"programs must be midi_class or family, not {recipe.programs!r}")
    check_workers(workers)
    out = pathlib.Path(out)
    rows = _finished(out)
    done = sum(float(row["seconds"]) for row in rows)
    check_recipe(out, recipe)
    if done >= 3600 * hours:
        return
    try:
        for folder in ("audio", "midi"):
            (out / folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write in {out} ({error.strerror}): name another --data_dir") from error
    check_sources(out, recipe)

    make = _PieceMaker(recipe, out / ".sources")
    expected = int((3600 * hours - done) / recipe.max_seconds)
    processes = worker_count(workers, expected, items_per_worker=2)
    with (
        contextlib.closing(parallel_map(make, itertools.count(len(rows)), processes)) as pieces,
        tqdm.tqdm(total=round(3600 * hours), initial=round(done), unit=" s of audio", desc="rendering") as bar,
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
            bar.update(min(round(done), bar.total) - bar.n)  # the last piece may be longer than what was left


@dataclasses.dataclass(frozen=True)
class _PieceMaker:
    """Makes piece number `index`: a class, so that it can be pickled for another process."""

    recipe: Recipe
    cache: pathlib.Path

    def __call__(self, index: int) -> RenderedPiece:
        rng = np.random.default_rng([self.recipe.seed, index])
        source, notes = self._draw(rng)
        with tempfile.TemporaryDirectory() as folder:  # MIDI rounds times to ticks, and the audio should have these
            path = pathlib.Path(folder, "piece.mid")
            write_midi(notes, path)
            notes, midi = read_midi(path), path.read_bytes()
        options = {name: getattr(self.recipe, name) for name in ("soundfont", "gain", "reverb", "chorus", "tail")}
        audio = play(notes, **options)
        if np.abs(audio).max() >= 1:
            raise InputError(f"{source} would clip at gain {self.recipe.gain}: start again with a lower one")
        flac = io.BytesIO()
        soundfile.write(flac, audio, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
        programs = [str(p) for p in np.unique(notes.program[~notes.is_drum])] + ["drums"] * bool(notes.is_drum.any())
        row = {
            "name": f"{index:06d}-{source}",
            "split": sources.split_by_hash(source),
            "source": source,
            "seconds": round(len(audio) / SAMPLE_RATE, 3),
            "notes": len(notes),
            "programs": " ".join(programs),
        }
        return RenderedPiece(row, flac.getvalue(), midi)

    def _draw(self, rng: np.random.Generator) -> tuple[str, Notes]:
        """Returns the name of a random source piece, and a variation of an excerpt of it."""
        weights = self.recipe.weights
        for _ in range(20):
            kind = sources.SOURCES[rng.choice(list(weights), p=list(weights.values()))]
            names = kind.names()
            name = names[rng.integers(len(names))]
            try:
                notes = kind.load(name, self.cache)
            except InputError as error:  # a few scores and chord charts cannot be read: draw another
                problem = error
                continue
            notes = variations.excerpt(notes, rng, rng.uniform(self.recipe.min_seconds, self.recipe.max_seconds))
            notes = variations.vary(notes, rng, self.recipe.programs)
            if len(notes) >= 10:
                return name, notes
            problem = f"{name} has a stretch with hardly a note"
        raise InputError(f"twenty pieces in a row could not be used; the last: {problem}")


def _finished(out: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the rows of splits.csv up to the first whose files are missing."""
    path = out / "splits.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return list(itertools.takewhile(lambda row: all(path.exists() for path in _files(out, row)), rows))


def _files(out: pathlib.Path, row: dict[str, Any]) -> tuple[pathlib.Path, pathlib.Path]:
    return out / "audio" / f"{row['name']}.flac", out / "midi" / f"{row['name']}.mid"
