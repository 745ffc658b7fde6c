"""Slakh2100: MIDI files of many tracks, rendered with sampled instruments (Manilow et al. 2019), and Cerberus4."""

import bisect
import dataclasses
import itertools
import pathlib
import zlib
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import tqdm
import yaml

from spectrodiff.audio.files import read_audio
from spectrodiff.data.builders.known_bad import SLAKH
from spectrodiff.data.builders.reading import find_root, fit, join, lengthen, played_by, read_text
from spectrodiff.data.recordings import SPLITS, Entry, Recording, Stem
from spectrodiff.errors import InputError
from spectrodiff.notes.midi import read_midi
from spectrodiff.notes.tokenizer import SLAKH_PROGRAMS

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml, where there is one, is five times as fast
# Slakh's patches come in 34 classes besides drums, for which SLAKH_PROGRAMS stand. A program's class is that of the
# nearest of these below it, but for a few (classes_strict.json of slakh-generation): electric grand and clavinet are
# electric pianos, a harpsichord is a piano, harmonics are played on a clean guitar, tremolo and pizzicato strings by an
# ensemble, a muted trumpet is a trumpet and a piccolo a pipe.
_ELSEWHERE = {2: 4, 6: 0, 7: 4, 31: 26, 44: 48, 45: 48, 59: 56, 72: 73}
_SMALLEST = 4  # stems of a sub-mix, of a song that has as many (Gardner et al. 2022, appendix B.2)
# Cerberus4's instruments in the order and with the programs of the released code; None are drums.
_CERBERUS = {"bass": 32, "drums": None, "guitar": 24, "piano": 0}
_FAMILIES = {0: "piano", 3: "guitar", 4: "bass"}  # of eight programs each


@dataclasses.dataclass(frozen=True)
class _Part:
    """One rendered instrument of a song: its files, and the program it was written for, None for drums."""

    audio: pathlib.Path
    midi: pathlib.Path
    program: int | None


@dataclasses.dataclass(frozen=True)
class Slakh:
    """Slakh2100-redux in its official split, with stems.

    Redux leaves out (in its folder `omitted`, which is not read) songs whose MIDI file occurs twice; the first
    release has such pairs across splits.

    With `skip_known_bad`, stems that are known not to have the sound of their notes are left out, and a song of theirs
    is the sum of its others.

    With `submixes`, each song of the train split becomes that many sub-mixes: random subsets, which follow from
    (`seed`, song, number) alone, of at least four of its stems. The paper has 10. Other splits keep whole songs.
    """

    name: ClassVar[str] = "slakh"
    homepage: ClassVar[str] = "https://zenodo.org/records/4599666"
    description: ClassVar[str] = "Slakh2100-redux: 1710 songs rendered with sampled instruments, with stems"

    submixes: int = 0
    seed: int = 0
    skip_known_bad: bool = True

    def __post_init__(self):
        for option in ("submixes", "seed"):
            if getattr(self, option) < 0:
                raise InputError(f"slakh's {option} is {getattr(self, option)}; choose 0 or more")

    def entries(self, folder: pathlib.Path) -> list[Entry]:
        """See `Corpus`. An entry is called TrackNNNNN, a sub-mix TrackNNNNN_K."""
        found = []
        for split, song in _songs(folder, self):
            if split == "train" and self.submixes:
                found += [Entry(f"{song.name}_{k}", split, (song, k)) for k in range(self.submixes)]
            else:
                found.append(Entry(song.name, split, (song, None)))
        return found

    def read(self, entry: Entry) -> Recording:
        """See `Corpus`."""
        song, submix = entry.source
        parts = _parts(song, self.skip_known_bad)
        if submix is None:
            whole = not (self.skip_known_bad and any(name == song.name for name, _ in SLAKH))
            return _mix(entry.name, parts, song / "mix.flac" if whole else None)
        rng = np.random.default_rng([self.seed, zlib.crc32(song.name.encode()), submix])
        count = rng.integers(min(_SMALLEST, len(parts)), len(parts) + 1)
        chosen = sorted(rng.choice(len(parts), count, replace=False))
        return _mix(entry.name, [parts[i] for i in chosen])

    def left_out(self, folder: pathlib.Path) -> dict[str, str]:
        """Why stems of songs that the folder holds are left out, by song and stem."""
        return _left_out(_songs(folder, self)) if self.skip_known_bad else {}


@dataclasses.dataclass(frozen=True)
class Cerberus4:
    """All ways to take one bass, one drum kit, one guitar and one piano of a song of Slakh2100-redux, with stems.

    Recordings of one song are in one split, that of Slakh (Gardner et al. 2022, appendix B.3). With `skip_known_bad`,
    none has a stem that is known not to have the sound of its notes.
    """

    name: ClassVar[str] = "cerberus4"
    homepage: ClassVar[str] = Slakh.homepage
    description: ClassVar[str] = "Cerberus4: the quartets of bass, drums, guitar and piano in Slakh2100-redux"

    skip_known_bad: bool = True

    def entries(self, folder: pathlib.Path) -> list[Entry]:
        """See `Corpus`. An entry is called TrackNNNNN_ and its four stems."""
        found = []
        for split, song in tqdm.tqdm(_songs(folder, self), desc="looking for quartets", delay=2.0, unit="song"):
            parts = _parts(song, self.skip_known_bad)
            families = [[part for part in parts if _family(part) == family] for family in _CERBERUS]
            for quartet in itertools.product(*families):
                name = "_".join([song.name, *(part.audio.stem for part in quartet)])
                found.append(Entry(name, split, quartet))
        return found

    def read(self, entry: Entry) -> Recording:
        """See `Corpus`."""
        programs = _CERBERUS.values()
        parts = [dataclasses.replace(p, program=program) for p, program in zip(entry.source, programs, strict=True)]
        return _mix(entry.name, parts)

    def left_out(self, folder: pathlib.Path) -> dict[str, str]:
        """See `Slakh.left_out`."""
        return _left_out(_songs(folder, self)) if self.skip_known_bad else {}


def _songs(folder: pathlib.Path, corpus: Slakh | Cerberus4) -> list[tuple[str, pathlib.Path]]:
    """The split and folder of every song."""
    root = find_root(folder, corpus, *(f"{split}/Track*" for split in SPLITS))
    return [(split, song) for split in SPLITS for song in sorted(root.glob(f"{split}/Track*"))]


def _left_out(songs: Sequence[tuple[str, pathlib.Path]]) -> dict[str, str]:
    names = {song.name for _, song in songs}
    return {f"{song} {stem}": why for (song, stem), why in SLAKH.items() if song in names}


def _parts(song: pathlib.Path, skip_known_bad: bool) -> list[_Part]:
    """What can be heard in a song. Sources that were never rendered, and so are not in its mix either, are skipped."""
    path = song / "metadata.yaml"
    text = read_text(path)
    try:
        stems = yaml.load(text, _LOADER)["stems"]
        sources = [(name, s["is_drum"], int(s["program_num"]), s["audio_rendered"]) for name, s in stems.items()]
    except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        why = str(error).splitlines()[0]
        raise InputError(f"cannot read {path} as a song's metadata; get another copy of it ({why})") from error
    parts = []
    for name, is_drum, program, rendered in sorted(sources):
        if skip_known_bad and (song.name, name) in SLAKH:
            continue
        audio = song / "stems" / f"{name}.flac"
        if audio.exists():
            parts.append(_Part(audio, song / "MIDI" / f"{name}.mid", None if is_drum else class_program(program)))
        elif rendered:
            raise InputError(f"{audio} is missing, and can be heard in the mix; unpack the song again")
    if not parts:
        raise InputError(f"{song} holds no audio in stems/; unpack the song again")
    return parts


def class_program(program: int) -> int:
    """The program that stands for the class of Slakh's patches that play `program`."""
    return _ELSEWHERE.get(program, int(SLAKH_PROGRAMS[bisect.bisect_right(SLAKH_PROGRAMS, program) - 1]))


def _family(part: _Part) -> str | None:
    return "drums" if part.program is None else _FAMILIES.get(part.program // 8)


def _mix(name: str, parts: Sequence[_Part], mix: pathlib.Path | None = None) -> Recording:
    """The parts together: the file `mix`, or the sum of theirs."""
    stems = [read_audio(part.audio) for part in parts]
    whole = read_audio(mix) if mix else None
    samples = max(map(len, stems)) if whole is None else len(whole)
    stems = [lengthen(stem, samples) for stem in stems]
    notes = [
        fit(played_by(read_midi(part.midi), part.program), stem, part.midi)
        for part, stem in zip(parts, stems, strict=True)
    ]
    return Recording(
        name=name,
        audio=np.sum(stems, axis=0) if whole is None else whole,
        notes=join(notes),
        stems=tuple(map(Stem, stems, notes)),
    )
