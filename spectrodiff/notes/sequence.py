"""The notes of a piece as columns, and as the NoteSequence bytes that note-seq and datasets made with it keep."""

import contextlib
import dataclasses
import functools
import io
import threading
import warnings

import numpy as np
from jaxtyping import Bool, Float64, Int32

from spectrodiff.errors import InputError

_IMPORTING = threading.Lock()  # threads that redirected stdout at once would give it back in the wrong order


@dataclasses.dataclass(frozen=True)
class Notes:
    """The notes of a piece, one array element each, sustain pedal already applied.

    Times are float64 seconds; pitch, velocity (1..127) and program (0..127) are int32; a drum hit's program is its
    kit, of which tokens know only the order of hits at one time.
    `total_time` is the end of the piece in seconds, never before the last note's end.
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

    def select(self, index: Bool[np.ndarray, " notes"] | Int32[np.ndarray, " m"]) -> "Notes":
        """The notes at `index`, a mask or positions, of a piece that is as long as before."""
        arrays = {f.name: getattr(self, f.name)[index] for f in dataclasses.fields(self) if f.name != "total_time"}
        return Notes(**arrays, total_time=self.total_time)


def check_notes(notes: Notes) -> None:
    """Raises InputError if `notes` is something else, such as the path of a MIDI file or tokens."""
    if not isinstance(notes, Notes):
        raise InputError(
            f"notes are wanted, such as read_midi returns, but this is of the type {type(notes).__name__}; a MIDI file "
            "is read by spectrodiff.notes.midi.read_midi"
        )


@functools.cache
def import_note_seq():
    """The module, without what it says on the way in."""
    with _IMPORTING, warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.filterwarnings("ignore", message=".*ffmpeg")  # pydub, which nothing here uses
        import note_seq  # heavy: a second or more; and pyfluidsynth, which it finds, talks where CI is set
    return note_seq


def to_note_sequence(notes: Notes) -> bytes:
    """A serialised NoteSequence with exact times; no tempo or metre, and the pedal stays applied."""
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
    """The notes of a serialised NoteSequence, a sustain pedal in it applied."""
    note_seq = import_note_seq()
    sequence = note_seq.NoteSequence.FromString(data)
    return notes_of(note_seq.apply_sustain_control_changes(sequence) if sequence.control_changes else sequence)


def with_program(data: bytes, program: int) -> bytes:
    """A serialised NoteSequence, all of its notes but drums on one MIDI program."""
    sequence = import_note_seq().NoteSequence.FromString(data)
    for note in sequence.notes:
        if not note.is_drum:
            note.program = program
    return sequence.SerializeToString(deterministic=True)


def notes_of(sequence) -> Notes:
    """The columns of a NoteSequence whose pedal has been applied."""
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
