"""URMP: chamber music whose parts were recorded separately (Li et al. 2018)."""

import dataclasses
import itertools
import math
import pathlib
import re
from collections.abc import Iterator
from typing import ClassVar

from spectrodiff.audio.files import read_audio
from spectrodiff.data.builders.reading import find_root, fit, lengthen, make_notes, read_text
from spectrodiff.data.recordings import Entry, Recording, Stem
from spectrodiff.errors import InputError
from spectrodiff.notes.sequence import join

# MIDI programs by the instrument codes in folder names, as in the released code of Hawthorne et al. (2022).
_PROGRAMS = {"vn": 40, "va": 41, "vc": 42, "db": 43, "tpt": 56, "tbn": 57, "tba": 58, "hn": 60, "sax": 64, "ob": 68,
             "bn": 70, "cl": 71, "fl": 73}  # fmt: skip
_VALIDATION = {1, 2, 12, 13, 24, 25, 31, 38, 39}
_PART = re.compile(r"AuSep_(?P<number>\d+)_.+")


@dataclasses.dataclass(frozen=True)
class Urmp:
    """All 44 pieces, with their parts as stems.

    Instruments are those of the codes in a folder's name: the names of single files are wrong for a part of piece 15,
    and the programs in many of the MIDI scores are wrong. The corpus has no official split; this is that of Gardner et
    al. (2022, appendix B.6), from whom the paper took its corpora: nine pieces for validation, the others for training.
    """

    name: ClassVar[str] = "urmp"
    homepage: ClassVar[str] = "https://labsites.rochester.edu/air/projects/URMP.html"
    description: ClassVar[str] = "URMP: 1.3 hours of duets to quintets of strings, woodwinds and brass, with stems"

    def entries(self, folder: pathlib.Path) -> list[Entry]:
        """Returns the pieces, called like their folders; see `Corpus`."""
        mixes = "[0-9][0-9]_*/AuMix_*.wav"
        root = find_root(folder, self, mixes)
        found = []
        for mix in sorted(root.glob(mixes)):
            name = mix.parent.name
            found.append(Entry(name, "validation" if int(name[:2]) in _VALIDATION else "train", mix))
        return found

    def read(self, entry: Entry) -> Recording:
        """Reads a piece; see `Corpus`."""
        mix = entry.source
        audio = read_audio(mix)
        stems = tuple(_stem(program, path, len(audio)) for program, path in _parts(mix.parent))
        return Recording(entry.name, audio, join([stem.notes for stem in stems]), stems)


def _parts(folder: pathlib.Path) -> list[tuple[int, pathlib.Path]]:
    """Returns the program and audio file of each part of a piece, in order."""
    found = [(match, path) for path in folder.glob("*.wav") if (match := _PART.fullmatch(path.stem))]
    codes = list(itertools.takewhile(_PROGRAMS.__contains__, reversed(folder.name.split("_"))))[::-1]
    if len(found) != len(codes):
        raise InputError(
            f"{folder} holds {len(found)} AuSep_*.wav, and {len(codes)} of the codes {', '.join(_PROGRAMS)} are at the "
            "end of its name; get the piece again"
        )
    paths = [path for _, path in sorted(found, key=lambda part: int(part[0]["number"]))]
    return [(_PROGRAMS[code], path) for code, path in zip(codes, paths, strict=True)]


def _stem(program: int, path: pathlib.Path, samples: int) -> Stem:
    labels = path.with_name(path.name.replace("AuSep_", "Notes_", 1)).with_suffix(".txt")
    audio = lengthen(read_audio(path), samples)
    return Stem(audio, fit(make_notes(labels, _rows(read_text(labels), program)), audio, labels))


def _rows(labels: str, program: int) -> Iterator[tuple[float, float, float, int]]:
    """Yields notes from lines of onset in seconds, pitch in Hz and duration in seconds."""
    for line in filter(str.strip, labels.splitlines()):
        onset, pitch, duration = map(float, line.split())
        yield onset, onset + duration, 69 + 12 * math.log2(pitch / 440), program
