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
from spectrodiff.data.builders.reading import find_root, fit, lengthen, played_by, read_text
from spectrodiff.data.recordings import SPLITS, Entry, Recording, Stem
from spectrodiff.errors import InputError
from spectrodiff.notes.midi import read_midi
from spectrodiff.notes.sequence import join
from spectrodiff.notes.timeline import SLAKH_PROGRAMS

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml, if installed, is five times as fast
# Slakh's patches have 34 classes besides drums, represented by SLAKH_PROGRAMS. A program's class is that of the nearest
# of these at or below it, with exceptions (classes_strict.json of slakh-generation): electric grand and clavinet are
# electric pianos, a harpsichord is a piano, harmonics are played on a clean guitar, tremolo and pizzicato strings by an
# ensemble, a muted trumpet is a trumpet and a piccolo a pipe.
_EXCEPTIONS = {2: 4, 6: 0, 7: 4, 31: 26, 44: 48, 45: 48, 59: 56, 72: 73}
_MIN_STEMS = 4  # in a sub-mix of a song with at least as many (Gardner et al. 2022, appendix B.2)
# Cerberus4's instruments in the order and with the programs of the released code; None means drums.
_CERBERUS = {"bass": 32, "drums": None, "guitar": 24, "piano": 0}
_FAMILIES = {0: "piano", 3: "guitar", 4: "bass"}  # of eight programs each


@dataclasses.dataclass(frozen=True)
class _Part:
    """An instrument of a song: its audio and MIDI file, and its program, None for drums."""

    audio: pathlib.Path
    midi: pathlib.Path
    program: int | None


@dataclasses.dataclass(frozen=True)
class Slakh:
    """Slakh2100-redux in its official split, with stems.

    Redux leaves out songs whose MIDI file occurs twice (they are in its folder `omitted`, which is not read); the first
    release has such duplicates across splits.

    With `skip_known_bad`, stems whose audio is known not to fit their notes are left out, and the audio of such a song
    is the sum of its other stems.

    With `submixes`, each song of the train split becomes that many sub-mixes: random subsets of at least four stems
    that depend on (`seed`, song, number) only. The paper has 10. Other splits keep whole songs.
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
        """Returns the songs, called TrackNNNNN, and sub-mixes, called TrackNNNNN_K; see `Corpus`."""
        found = []
        for split, song in _songs(folder, self):
            if split == "train" and self.submixes:
                found += [Entry(f"{song.name}_{k}", split, (song, k)) for k in range(self.submixes)]
            else:
                found.append(Entry(song.name, split, (song, None)))
        return found

    def read(self, entry: Entry) -> Recording:
        """Reads a song or sub-mix; see `Corpus`."""
        song, submix = entry.source
        parts = _parts(song, self.skip_known_bad)
        if submix is None:
            whole = not (self.skip_known_bad and any(name == song.name for name, _ in SLAKH))
            return _mix(entry.name, parts, song / "mix.flac" if whole else None)
        rng = np.random.default_rng([self.seed, zlib.crc32(song.name.encode()), submix])
        count = rng.integers(min(_MIN_STEMS, len(parts)), len(parts) + 1)
        chosen = sorted(rng.choice(len(parts), count, replace=False))
        return _mix(entry.name, [parts[i] for i in chosen])

    def left_out(self, folder: pathlib.Path) -> dict[str, str]:
        """Returns the stems of songs in `folder` that are left out, by song and stem, and why."""
        return _left_out(_songs(folder, self)) if self.skip_known_bad else {}


@dataclasses.dataclass(frozen=True)
class Cerberus4:
    """All combinations of a bass, a drum kit, a guitar and a piano in each song of Slakh2100-redux, with stems.

    All recordings of a song are in its split in Slakh (Gardner et al. 2022, appendix B.3). With `skip_known_bad`, stems
    whose audio is known not to fit their notes are not used.
    """

    name: ClassVar[str] = "cerberus4"
    homepage: ClassVar[str] = Slakh.homepage
    description: ClassVar[str] = "Cerberus4: the quartets of bass, drums, guitar and piano in Slakh2100-redux"

    skip_known_bad: bool = True

    def entries(self, folder: pathlib.Path) -> list[Entry]:
        """Returns the quartets, called by the song and its four stems; see `Corpus`."""
        found = []
        for split, song in tqdm.tqdm(_songs(folder, self), desc="finding quartets", delay=2.0, unit="song"):
            parts = _parts(song, self.skip_known_bad)
            families = [[part for part in parts if _family(part) == family] for family in _CERBERUS]
            for quartet in itertools.product(*families):
                name = "_".join([song.name, *(part.audio.stem for part in quartet)])
                found.append(Entry(name, split, quartet))
        return found

    def read(self, entry: Entry) -> Recording:
        """Reads a quartet; see `Corpus`."""
        programs = _CERBERUS.values()
        parts = [dataclasses.replace(p, program=program) for p, program in zip(entry.source, programs, strict=True)]
        return _mix(entry.name, parts)

    def left_out(self, folder: pathlib.Path) -> dict[str, str]:
        """Returns the stems that are left out; see `Slakh.left_out`."""
        return _left_out(_songs(folder, self)) if self.skip_known_bad else {}


def _songs(folder: pathlib.Path, corpus: Slakh | Cerberus4) -> list[tuple[str, pathlib.Path]]:
    """Returns the split and folder of each song."""
    root = find_root(folder, corpus, *(f"{split}/Track*" for split in SPLITS))
    return [(split, song) for split in SPLITS for song in sorted(root.glob(f"{split}/Track*"))]


def _left_out(songs: Sequence[tuple[str, pathlib.Path]]) -> dict[str, str]:
    names = {song.name for _, song in songs}
    return {f"{song} {stem}": why for (song, stem), why in SLAKH.items() if song in names}


def _parts(song: pathlib.Path, skip_known_bad: bool) -> list[_Part]:
    """Returns the parts of a song. Tracks that were never rendered, and so are not in its mix, are skipped."""
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
            raise InputError(f"{audio} is missing, but is part of the mix; unpack the song again")
    if not parts:
        raise InputError(f"{song} holds no audio in stems/; unpack the song again")
    return parts


def class_program(program: int) -> int:
    """Returns the program that represents the class of Slakh's patches for `program`."""
    return _EXCEPTIONS.get(program, int(SLAKH_PROGRAMS[bisect.bisect_right(SLAKH_PROGRAMS, program) - 1]))


def _family(part: _Part) -> str | None:
    return "drums" if part.program is None else _FAMILIES.get(part.program // 8)


def _mix(name: str, parts: Sequence[_Part], mix: pathlib.Path | None = None) -> Recording:
    """Returns a recording of the parts, whose audio is the file `mix`, or the sum of the parts' audio."""
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
