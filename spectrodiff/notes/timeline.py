"""The timeline of a piece: its note-ons and note-offs in the order of tokens, from which windows are cut."""

import dataclasses

import numpy as np
from jaxtyping import Int

from spectrodiff.audio.mel import HOP, SAMPLE_RATE
from spectrodiff.config import TokenizerConfig
from spectrodiff.notes.sequence import Notes, check_notes
from spectrodiff.notes.vocabulary import PAD, Vocabulary

STEPS_PER_SECOND = 100
# The programs of Slakh2100 (Manilow et al. 2019), with which the published weights were trained. Other programs are
# mapped to the nearest one below.
SLAKH_PROGRAMS = np.array([0, 4, 8, 16, 24, 26, 29, 32, 33, 40, 41, 42, 43, 46, 47, 48, 50, 52, 55, 56, 57, 58, 60, 61,
                           64, 66, 67, 68, 69, 70, 71, 73, 80, 88])  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Timeline:
    """The note-ons and note-offs of a piece, in the order in which windows have them, with their tokens.

    `step` is the time of each event in steps of 10 ms. `voice` is 128 * program + pitch, or -1 for a drum. `until` is
    the index of the next event of the same voice if the event is the note-on of a pitched note, else 0. `note` is the
    index of the event's note in the piece, and `loudness` the rank of each note of the piece, from the quietest up.
    `frames` is the number of frames of the piece.
    """

    step: Int[np.ndarray, " events"]
    voice: Int[np.ndarray, " events"]
    until: Int[np.ndarray, " events"]
    note: Int[np.ndarray, " events"]
    program_token: Int[np.ndarray, " events"]
    velocity_token: Int[np.ndarray, " events"]
    pitch_token: Int[np.ndarray, " events"]
    loudness: Int[np.ndarray, " notes"]
    frames: int


def make_timeline(notes: Notes, config: TokenizerConfig, vocabulary: Vocabulary) -> Timeline:
    """Returns the timeline of a piece.

    Pitched notes of length 0 are left out, as their note-offs would come before their note-ons.

    Raises:
      InputError: `notes` are not notes, such as `read_midi` returns.
    """
    check_notes(notes)
    index = np.flatnonzero(notes.is_drum | (notes.end > notes.start))
    program = notes.program
    if config.program_map == "slakh":
        # The program of a drum hit is its kit, which orders simultaneous hits as in the published code.
        program = np.where(notes.is_drum, program, map_programs(program, config))
    index = index[np.lexsort((notes.pitch[index], program[index], notes.is_drum[index]))]
    ending = index[~notes.is_drum[index]]
    note = np.concatenate([ending, index])
    time = np.concatenate([notes.end[ending], notes.start[index]])
    velocity = np.concatenate([np.zeros(len(ending), np.int32), notes.velocity[index]])
    # By exact time, not rounded to steps. At equal times the order so far is kept: note-offs first.
    order = np.argsort(time, kind="stable")
    note, time, velocity = note[order], time[order], velocity[order]

    pitch, is_drum, program = notes.pitch[note], notes.is_drum[note], program[note]
    voice = np.where(is_drum, -1, 128 * program + pitch)
    by_voice = np.argsort(voice, kind="stable")
    until = np.full(len(note), len(note))
    until[by_voice[:-1]] = np.where(np.diff(voice[by_voice]) == 0, by_voice[1:], len(note))
    until[is_drum | (velocity == 0)] = 0
    if config.program_map == "midi_class":  # after sorting by the original programs, as in the published code
        program = map_programs(program, config)
    program_token = np.full_like(program, PAD) if config.program_map == "flat" else vocabulary.program(program)
    return Timeline(
        step=np.rint(time * STEPS_PER_SECOND).astype(np.int64),
        voice=voice,
        until=until,
        note=note,
        program_token=np.where(is_drum, PAD, program_token),
        velocity_token=vocabulary.velocity(velocity),
        pitch_token=np.where(is_drum, vocabulary.drum(pitch), vocabulary.pitch(pitch)),
        loudness=np.argsort(np.lexsort((notes.end - notes.start, notes.velocity))),
        frames=num_frames(notes.total_time),
    )


def map_programs(program: Int[np.ndarray, "*n"], config: TokenizerConfig) -> Int[np.ndarray, "*n"]:
    """Returns the programs that the program map maps each of `program` to ("flat" changes none)."""
    known = program
    if config.program_map == "slakh":
        known = SLAKH_PROGRAMS[np.searchsorted(SLAKH_PROGRAMS, program, side="right") - 1]
    elif config.program_map == "midi_class":
        known = program // 8 * 8
    return np.where(np.isin(program, config.own_programs), program, known)


def num_frames(total_time: float) -> int:
    """Returns the number of frames of a piece; see `NoteTokenizer.num_windows`."""
    return int(total_time * SAMPLE_RATE) // HOP + 1
