"""Groove MIDI: drummers on an electronic kit, recorded as MIDI and audio (Gillick et al. 2019)."""

import dataclasses
import logging
import pathlib
from typing import ClassVar

import numpy as np

from spectrodiff.audio.files import read_audio
from spectrodiff.data.builders.reading import find_root, fit, played_by, read_table, require_audio, split_of
from spectrodiff.data.recordings import Entry, Recording
from spectrodiff.notes.midi import read_midi

_TABLE = "info.csv"
# Pitches of the Roland TD-11 that General MIDI does not have or uses for other drums, mapped to General MIDI: edge of
# the closed and of the open hi-hat, rim of the floor tom. From the table on the corpus's homepage.
_GENERAL_MIDI = {22: 42, 26: 46, 58: 43}


@dataclasses.dataclass(frozen=True)
class Groove:
    """Groove MIDI 1.0.0 in its official split. All notes are drums, with the pitches of General MIDI."""

    name: ClassVar[str] = "groove"
    homepage: ClassVar[str] = "https://magenta.tensorflow.org/datasets/groove"
    description: ClassVar[str] = "Groove MIDI v1.0.0: 13.6 hours of drumming, recorded from the kit that played it"

    def entries(self, folder: pathlib.Path) -> list[Entry]:
        """Returns the performances that have audio, and logs a warning with the number of the others; see `Corpus`."""
        root = find_root(folder, self, _TABLE)
        rows = read_table(root / _TABLE, ("id", "midi_filename", "audio_filename", "split"))
        found = []
        for row in rows:
            if row["audio_filename"]:
                source = (root / row["audio_filename"], root / row["midi_filename"])
                found.append(Entry(row["id"].replace("/", "_"), split_of(row, root / _TABLE), source))
        require_audio((entry.source[0] for entry in found), self, root)
        if len(found) < len(rows):
            silent = len(rows) - len(found)
            logging.getLogger(__name__).warning("groove: left out %d of %d pieces without audio", silent, len(rows))
        return found

    def read(self, entry: Entry) -> Recording:
        """Reads a performance; see `Corpus`."""
        audio, midi = entry.source
        audio, notes = read_audio(audio), read_midi(midi)
        keys = np.array([_GENERAL_MIDI.get(key, key) for key in notes.pitch.tolist()], np.int32)
        notes = played_by(dataclasses.replace(notes, pitch=keys), None)
        return Recording(entry.name, audio, fit(notes, audio, midi))
