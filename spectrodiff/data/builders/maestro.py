"""MAESTRO: piano competitions, recorded with the keys and pedals of a Disklavier (Hawthorne et al. 2019)."""

import dataclasses
import pathlib
from typing import ClassVar

from spectrodiff.audio.files import read_audio
from spectrodiff.data.builders.reading import find_root, fit, played_by, read_table, require_audio, split_of
from spectrodiff.data.recordings import Entry, Recording
from spectrodiff.notes.midi import read_midi

_TABLE = "maestro-v3.0.0.csv"


@dataclasses.dataclass(frozen=True)
class Maestro:
    """MAESTRO 3.0.0 in its official split, in which all performances of a composition are together."""

    name: ClassVar[str] = "maestro"
    homepage: ClassVar[str] = "https://magenta.tensorflow.org/datasets/maestro"
    description: ClassVar[str] = "MAESTRO v3.0.0: 199 hours of classical piano with the keys as played"

    def entries(self, folder: pathlib.Path) -> list[Entry]:
        """Returns the performances, called YEAR_FILE; see `Corpus`."""
        root = find_root(folder, self, _TABLE)
        found = []
        for row in read_table(root / _TABLE, ("split", "midi_filename", "audio_filename")):
            name = row["midi_filename"].rsplit(".", 1)[0].replace("/", "_")
            source = (root / row["audio_filename"], root / row["midi_filename"])
            found.append(Entry(name, split_of(row, root / _TABLE), source))
        require_audio((entry.source[0] for entry in found), self, root)
        return found

    def read(self, entry: Entry) -> Recording:
        """Reads a performance; notes last as long as the pedal holds them; see `Corpus`."""
        audio, midi = entry.source
        audio = read_audio(audio)
        return Recording(entry.name, audio, fit(played_by(read_midi(midi), 0), audio, midi))
