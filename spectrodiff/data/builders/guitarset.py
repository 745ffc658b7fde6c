"""GuitarSet: six players of acoustic guitar, with labels from a pickup per string (Xi et al. 2018)."""

import dataclasses
import json
import pathlib
import re
from collections.abc import Iterator
from typing import Any, ClassVar

from spectrodiff.audio.files import read_audio
from spectrodiff.data.builders.known_bad import GUITARSET
from spectrodiff.data.builders.reading import find_root, fit, make_notes, read_text
from spectrodiff.data.recordings import Entry, Recording
from spectrodiff.errors import InputError

_PROGRAM = 24  # acoustic guitar (Hawthorne et al. 2022, released code)
_AUDIO = {"mic": ("audio_mono-mic", "mic"), "pickup_mix": ("audio_mono-pickup_mix", "mix")}  # folder, end of file names
_NAME = re.compile(r"\d\d_[A-Za-z]+(?P<progression>[123])-[\d.]+-[^_]+_(comp|solo)")  # player, style, tempo, key


@dataclasses.dataclass(frozen=True)
class GuitarSet:
    """All 360 excerpts, as program 24; `skip_known_bad` leaves out the two whose labels are known to be late.

    `audio` is "mic", the microphone in front of the guitar; "pickup_mix", the sum of the strings' pickups; or "both",
    each excerpt twice. The corpus has no official split; this is that of Gardner et al. (2022, appendix B.4), from whom
    the paper took its corpora: each style's third chord progression is for validation, its first two for training.
    """

    name: ClassVar[str] = "guitarset"
    homepage: ClassVar[str] = "https://zenodo.org/records/3371780"
    description: ClassVar[str] = "GuitarSet: 3 hours of acoustic guitar, comping and solos of six players"

    audio: str = "mic"
    skip_known_bad: bool = True

    def __post_init__(self):
        if self.audio not in (*_AUDIO, "both"):
            raise InputError(f"guitarset's audio is {self.audio!r}; choose one of {', '.join(_AUDIO)}, both")

    def entries(self, folder: pathlib.Path) -> list[Entry]:
        """Returns the excerpts; see `Corpus`."""
        kinds = [kind for name, kind in _AUDIO.items() if self.audio in (name, "both")]
        root = find_root(folder, self, "annotation/[0-9]*.jams", *(f"{place}/*.wav" for place, _ in kinds))
        found = []
        for jams in sorted(root.glob("annotation/[0-9]*.jams")):
            match = _NAME.fullmatch(jams.stem)
            if not match:
                raise InputError(f"{jams} is not named as an excerpt of guitarset, like 00_BN1-129-Eb_comp.jams")
            if self.skip_known_bad and jams.stem in GUITARSET:
                continue
            split = "validation" if match["progression"] == "3" else "train"
            for place, ending in kinds:
                name = f"{jams.stem}_{ending}"
                found.append(Entry(name, split, (root / place / f"{name}.wav", jams)))
        return found

    def left_out(self, folder: pathlib.Path) -> dict[str, str]:
        """Returns the excerpts in `folder` that are left out, and why."""
        if not self.skip_known_bad:
            return {}
        root = find_root(folder, self, "annotation/[0-9]*.jams")
        return {name: why for name, why in GUITARSET.items() if (root / "annotation" / f"{name}.jams").exists()}

    def read(self, entry: Entry) -> Recording:
        """Reads an excerpt; see `Corpus`."""
        audio, jams = entry.source
        audio = read_audio(audio)
        return Recording(entry.name, audio, fit(make_notes(jams, _rows(read_text(jams))), audio, jams))


def _rows(jams: str) -> Iterator[tuple[Any, Any, Any, int]]:
    """Yields the notes of all six strings."""
    for annotation in json.loads(jams)["annotations"]:
        if annotation["namespace"] == "note_midi":
            for note in annotation["data"]:
                yield note["time"], note["time"] + note["duration"], note["value"], _PROGRAM
