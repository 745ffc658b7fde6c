"""The scores of the rendered corpus: four kinds of sources of named pieces, from free packages.

A name always means the same piece, so that splits by name never change. Pieces that take long to make are cached as
MIDI files.
"""

import dataclasses
import functools
import hashlib
import itertools
import pathlib
import re
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Callable, Sequence

import numpy as np

from spectrodiff.data.builders.rendered import etudes
from spectrodiff.errors import InputError
from spectrodiff.files import replacing
from spectrodiff.notes.midi import Notes, read_midi, write_midi
from spectrodiff.notes.sequence import join

WADS = pathlib.Path("/usr/share/games/doom")
GROOVES = pathlib.Path("/usr/share/mma/lib")
COMPOSERS = ("bach", "beethoven", "corelli", "handel", "haydn", "joplin", "mozart", "schubert", "schumann_clara",
             "schumann_robert", "weber")  # fmt: skip

# The pieces of examples/, which are never trained on.
HELD_OUT = frozenset(
    {
        "game-freedoom1-e1m1",
        "band-000000",
        "score-bach-bwv846",
        "score-corelli-opus3no1-1grave",
        "score-weber-concertino_clarinet",
    }
)


@dataclasses.dataclass(frozen=True)
class Source:
    """A kind of pieces: its licence, the names of all its pieces, and a loader of one, given a cache folder."""

    licence: str
    names: Callable[[], Sequence[str]]
    load: Callable[[str, pathlib.Path], Notes]


def split_by_hash(name: str) -> str:
    """Returns train, validation or test, 90 : 5 : 5, by a hash of a piece's name."""
    if name in HELD_OUT:
        return "test"
    place = int(hashlib.sha256(name.encode()).hexdigest(), 16) % 100
    return "train" if place < 90 else "validation" if place < 95 else "test"


def cached(make: Callable[[str, pathlib.Path], None]) -> Callable[[str, pathlib.Path], Notes]:
    """Returns a loader, given a function that writes the piece of a name to a MIDI file."""

    @functools.wraps(make)
    def load(name: str, cache: pathlib.Path) -> Notes:
        path = cache / f"{name}.mid"
        if not path.exists():
            cache.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary:
                make(name, temporary)
        return read_midi(path)

    return load


# --- games: the MIDI data in Freedoom's WAD files --------------------------------------------------------------------


@functools.cache
def _lumps() -> dict[str, bytes]:
    """Returns each different MIDI file by name. A WAD is a header, data, and a directory of (position, size, name)."""
    lumps = {}
    for wad in ("freedoom1", "freedoom2", "freedm"):
        path = WADS / f"{wad}.wad"
        if not path.is_file():
            raise InputError(f"no {path}: apt-get install freedoom freedm, or give games no weight")
        data = path.read_bytes()
        count, directory = struct.unpack_from("<ii", data, 4)
        for place in range(count):
            start, size, name = struct.unpack_from("<ii8s", data, directory + 16 * place)
            if name.startswith(b"D_") and data[start : start + 4] == b"MThd":
                title = name.rstrip(b"\0").decode("ascii")[2:].lower()
                lumps.setdefault(data[start : start + size], f"game-{wad}-{title}")
    return {name: midi for midi, name in lumps.items()}


@cached
def _game(name: str, path: pathlib.Path) -> None:
    path.write_bytes(_lumps()[name])


# --- scores: the corpus of music21 --------------------------------------------------------------------------------


@functools.cache
def _scores() -> dict[str, pathlib.Path]:
    try:
        from music21 import common
    except ImportError as error:
        raise InputError("scores need music21: pip install music21, or give them no weight") from error
    corpus = common.getCorpusFilePath()
    files = [file for who in COMPOSERS for file in sorted((corpus / who).rglob("*")) if file.suffix in (".mxl", ".xml")]
    names = ["-".join(["score", *file.relative_to(corpus).with_suffix("").parts]).lower() for file in files]
    return dict(zip(names, files, strict=True))


@cached
def _score(name: str, path: pathlib.Path) -> None:
    from music21 import converter

    try:
        converter.parse(_scores()[name], forceSource=True).write("midi", path)
    except Exception as error:  # music21 raises exceptions of many classes
        raise InputError(f"music21 cannot play {name}: {error}") from error


# --- bands: MMA plays random chord charts -----------------------------------------------------------------------------


@functools.cache
def _grooves() -> dict[str, list[str]]:
    """Returns the names of MMA's grooves by the library file that defines them."""
    if not (GROOVES.is_dir() and shutil.which("mma")):
        raise InputError(f"no mma with its {GROOVES}: apt-get install mma, or give bands no weight")
    grooves = {}
    for file in sorted(GROOVES.glob("*/*.mma")):
        names = re.findall(r"^\s*DefGroove\s+(\S+)", file.read_text("latin-1"), re.MULTILINE | re.IGNORECASE)
        if names:
            where = f"{file.parent.name}/{file.stem}"
            grooves[where] = [f"{where}:{name}" for name in names]
    return grooves


MAJOR = {0: "", 2: "m", 4: "m", 5: "", 7: "7", 9: "m7", 11: "dim"}
MINOR = {0: "m", 3: "", 5: "m", 7: "7", 8: "", 10: "7"}
KEYS = ("C", "Db", "D", "Eb", "E", "F", "Gb", "G", "Ab", "A", "Bb", "B")


def chart(rng: np.random.Generator, bars: int) -> list[str]:
    """Returns the chords of each bar, in one random key, as eight-bar sections, some of them repeated."""
    key, mode = rng.integers(12), (MAJOR, MINOR)[rng.integers(2)]
    degrees = list(mode)

    def chord() -> str:
        degree = degrees[rng.integers(len(degrees))]
        colour = rng.choice(["", "7", "sus4"]) if degree == 7 else mode[degree]
        return KEYS[(key + degree) % 12] + colour

    sections = [[f"{chord()} / {chord()}" if rng.random() < 0.2 else chord() for _ in range(8)] for _ in range(3)]
    order = itertools.chain([0], rng.integers(3, size=bars // 8))
    return [bar for section in order for bar in sections[section]][:bars]


@cached
def _band(name: str, path: pathlib.Path) -> None:
    seed = int(name.removeprefix("band-"))
    rng = np.random.default_rng([seed, 0xBA])
    library = list(_grooves().values())
    grooves = library[rng.integers(len(library))]
    tempo = rng.integers(65, 170)
    lines = [f"RndSeed {seed}", f"Tempo {tempo}"]
    for bar, chords in enumerate(chart(rng, int(rng.integers(16, 49)))):
        if bar % 8 == 0:
            lines.append(f"Groove {grooves[rng.integers(len(grooves))]}")
        lines.append(f"{bar + 1} {chords}")
    with tempfile.TemporaryDirectory() as folder:
        score, plain = pathlib.Path(folder, "chart.mma"), pathlib.Path(folder, "band.mid")
        score.write_text("\n".join(lines) + "\n")
        command = ["mma", "-w", "-xNOCREDIT", "-f", str(plain), str(score)]
        played = subprocess.run(command, capture_output=True, text=True, timeout=60)
        if played.returncode or not plain.exists():
            raise InputError(f"MMA cannot play {name}: {' '.join(played.stdout.split())[-200:]}")
        band = read_midi(plain)
    write_midi(with_melody(band, rng, 60.0 / tempo), path)


def with_melody(band: Notes, rng: np.random.Generator, beat: float) -> Notes:
    """Returns the band, in three of four cases with a random melody of notes of its chords, as MMA plays only chords.

    `beat` is the duration of a beat in seconds.
    """
    low, high = etudes.RANGES[program := int(rng.choice([p for p in etudes.RANGES if p != 32]))]
    low, high = max(low, 52), min(high, 88)
    chordal = ~band.is_drum & (band.program // 8 != 4)
    if rng.random() < 0.25 or not chordal.any():
        return band
    tune, now, at = [], beat * rng.integers(0, 9), rng.uniform(low, high)
    while now < band.total_time:
        length = beat * rng.choice([0.25, 0.5, 0.5, 1.0, 1.0, 1.5, 2.0, 3.0])
        sounding = chordal & (band.start <= now + 0.1) & (band.end > now)
        chord = np.unique(band.pitch[sounding] % 12)
        if len(chord) and rng.random() < 0.85:  # else a rest
            keys = np.add.outer(12 * np.arange(11), chord).ravel()
            keys = keys[(keys >= low) & (keys <= high)]
            at = keys[np.argmin(np.abs(keys - np.clip(at + rng.normal(0, 4), low, high)))]
            tune.append((now, min(now + 0.95 * length, band.total_time), at, rng.integers(70, 115)))
        now += length
    if not tune:
        return band
    start, end, pitch, velocity = (np.array(column) for column in zip(*tune, strict=True))
    programs, drums = np.full(len(tune), program, np.int32), np.zeros(len(tune), bool)
    pitch, velocity = pitch.astype(np.int32), velocity.astype(np.int32)
    played = join([band, Notes(start, end, pitch, velocity, programs, drums, band.total_time)])
    return played.select(np.argsort(played.start, kind="stable"))


def _bands() -> list[str]:
    _grooves()  # raises at once if MMA is missing
    return [f"band-{number:06d}" for number in range(3000)]


SOURCES = {
    "etude": Source(
        "made by rule in spectrodiff; no rights reserved",
        lambda: [f"etude-{number:06d}" for number in range(100_000)],
        lambda name, cache: etudes.etude(int(name.removeprefix("etude-"))),
    ),
    "band": Source("random chord charts of our own, played by MMA's groove library (GPL-2 or later)", _bands, _band),
    "game": Source("Freedoom (BSD-3-Clause)", lambda: list(_lumps()), _game),
    "score": Source(
        "public-domain compositions in the encodings of music21's corpus, whose terms vary by encoder and may exclude "
        "commercial use",
        lambda: list(_scores()),
        _score,
    ),
}
