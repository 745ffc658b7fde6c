"""The notes of a piece as arrays, and their conversion to and from serialised NoteSequences of note-seq."""

import contextlib
import dataclasses
import functools
import importlib
import io
import threading
import types
import warnings
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float64, Int, Int32

from spectrodiff.errors import InputError

_IMPORTING = threading.Lock()  # threads that redirect stdout at the same time may restore it in the wrong order


@dataclasses.dataclass(frozen=True)
class Notes:
    """The notes of a piece, one per array element, as long as the keys and the sustain pedal hold them.

    Times are float64 seconds; pitch, velocity (1..127) and program (0..127) are int32. The program of a drum hit is its
    kit; in tokens, it only determines the order of simultaneous hits. `total_time` is the end of the piece in seconds,
    never before the end of the last note.
    """

    start: Float64[np.ndarray, " notes"]
    end: Float64[np.ndarray, " notes"]
    pitch: Int32[np.ndarray, " notes"]
    velocity: Int32[np.ndarray, " notes"]
    program: Int32[np.ndarray, " notes"]
    is_drum: Bool[np.ndarray, " notes"]
    total_time: float

    def __len__(self) -> int:
        return len(self.start)

    def select(self, index: Bool[np.ndarray, " notes"] | Int[np.ndarray, " m"]) -> "Notes":
        """Returns the notes at `index`, a mask or indices; `total_time` does not change."""
        arrays = {f.name: getattr(self, f.name)[index] for f in dataclasses.fields(self) if f.name != "total_time"}
        return Notes(**arrays, total_time=self.total_time)


def join(parts: Sequence[Notes]) -> Notes:
    """Returns the notes of several simultaneous parts, those of the first part first."""
    names = [field.name for field in dataclasses.fields(Notes) if field.name != "total_time"]
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return Notes(**columns, total_time=max(part.total_time for part in parts))


def check_notes(notes: Notes) -> None:
    """Raises InputError if `notes` is something else, such as the path of a MIDI file or tokens."""
    if not isinstance(notes, Notes):
        raise InputError(
            f"notes are wanted, such as read_midi returns, but this is of the type {type(notes).__name__}; a MIDI file "
            "is read by spectrodiff.read_midi"
        )


@functools.cache
def import_silently(name: str) -> types.ModuleType:
    """Imports and returns a module that imports pyfluidsynth or pydub, without the messages that these print."""
    with _IMPORTING, warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # pydub warns of ffmpeg, which nothing here uses
        return importlib.import_module(name)  # pyfluidsynth prints messages if CI is set


def import_note_seq() -> types.ModuleType:
    """Imports and returns the module `note_seq`, which takes a second or more the first time."""
    return import_silently("note_seq")


def to_note_sequence(notes: Notes) -> bytes:
    """Returns a serialised NoteSequence with the exact times of the notes, without tempo, metre and pedals."""
    sequence = import_note_seq().NoteSequence(total_time=notes.total_time)
    rows = zip(notes.start, notes.end, notes.pitch, notes.velocity, notes.program, notes.is_drum, strict=True)
    for start, end, pitch, velocity, program, is_drum in rows:
        sequence.notes.add(
            start_time=float(start),
            end_time=float(end),
            pitch=int(pitch),
            velocity=int(velocity),
            program=int(program),
            is_drum=bool(is_drum),
        )
    return sequence.SerializeToString(deterministic=True)


def from_note_sequence(data: bytes) -> Notes:
    """Returns the notes of a serialised NoteSequence, with its sustain pedal applied."""
    note_seq = import_note_seq()
    sequence = note_seq.NoteSequence.FromString(data)
    return notes_of(note_seq.apply_sustain_control_changes(sequence) if sequence.control_changes else sequence)


def with_program(data: bytes, program: int) -> bytes:
    """Returns a serialised NoteSequence in which all notes except drums have the given MIDI program."""
    sequence = import_note_seq().NoteSequence.FromString(data)
    for note in sequence.notes:
        if not note.is_drum:
            note.program = program
    return sequence.SerializeToString(deterministic=True)


def notes_of(sequence) -> Notes:
    """Returns the notes of a NoteSequence message without pedals."""
    rows = [(n.start_time, n.end_time, n.pitch, n.velocity, n.program, n.is_drum) for n in sequence.notes]
    start, end, pitch, velocity, program, is_drum = np.array(rows, np.float64).reshape(-1, 6).T
    return Notes(
        start=start,
        end=end,
        pitch=pitch.astype(np.int32),
        velocity=velocity.astype(np.int32),
        program=program.astype(np.int32),
        is_drum=is_drum.astype(bool),
        total_time=float(max(sequence.total_time, end.max(initial=0.0))),  # drums may outlast a pedal lifted early
    )
