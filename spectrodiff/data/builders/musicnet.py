"""MusicNet: classical recordings, labelled by aligning scores to them (Thickstun et al. 2017)."""

import dataclasses
import pathlib
from typing import ClassVar

from spectrodiff.audio.files import read_audio
from spectrodiff.data.builders.reading import find_root, fit, make_notes, read_table
from spectrodiff.data.recordings import Entry, Recording

_RATE = 44_100  # samples per second of the times in labels, at any sample rate of the audio
# The validation pieces of Gardner et al. (2022), from whom the paper took its corpora; all are in train_data.
_VALIDATION = {
    "1733", "1765", "1790", "1818", "2160", "2198", "2289", "2300", "2308", "2315", "2336", "2466", "2477", "2504",
    "2611",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class MusicNet:
    """All 330 recordings, with the official test split; 15 of the others are for validation, the rest for training.

    Gardner et al. used another test split than the official one; the paper's figures for MusicNet are for theirs.
    """

    name: ClassVar[str] = "musicnet"
    homepage: ClassVar[str] = "https://zenodo.org/records/5120004"
    description: ClassVar[str] = "MusicNet: 34 hours of classical solo and chamber music"

    def entries(self, folder: pathlib.Path) -> list[Entry]:
        """Returns the recordings, called by their numbers; see `Corpus`."""
        root = find_root(folder, self, "train_data/*.wav", "train_labels/*.csv", "test_data/*.wav", "test_labels/*.csv")
        found = []
        for official in ("train", "test"):
            audio, labels = root / f"{official}_data", root / f"{official}_labels"
            # A piece with a missing file is kept, so that reading it reports the file.
            for name in sorted({path.stem for path in [*audio.glob("*.wav"), *labels.glob("*.csv")]}):
                split = "validation" if name in _VALIDATION else official
                found.append(Entry(name, split, (audio / f"{name}.wav", labels / f"{name}.csv")))
        return found

    def read(self, entry: Entry) -> Recording:
        """Reads a recording; see `Corpus`."""
        audio, labels = entry.source
        rows = read_table(labels, ("start_time", "end_time", "instrument", "note"))
        notes = make_notes(
            labels,
            (
                (
                    int(row["start_time"]) / _RATE,
                    int(row["end_time"]) / _RATE,
                    int(row["note"]),
                    int(row["instrument"]) - 1,  # General MIDI's programs, counted from 1
                )
                for row in rows
            ),
        )
        audio = read_audio(audio)
        return Recording(entry.name, audio, fit(notes, audio, labels))
