"""The vocabulary: the meaning of each token id."""

import dataclasses
import functools
from typing import TypeVar

import numpy as np
from jaxtyping import Int

PAD, EOS, UNKNOWN = 0, 1, 2
MAX_SHIFT = 1000  # steps of 10 ms; a longer shift is several tokens that add up
SPARE = 100  # unused ids at the end of the published vocabulary (Hawthorne et al. 2022)

Id = TypeVar("Id", int, Int[np.ndarray, "..."])  # methods take one value, or an array of them


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The token ids of the events of Hawthorne et al. (2022), with `velocity_bins` velocities besides 0.

    After padding, end of sequence and unknown, there is a block of ids for each type of event: shift 0..1000 (steps of
    10 ms), pitch 0..127, velocity 0..velocity_bins (0 is note-off), tie, program 0..127, drum 0..127. `*_start` are the
    first ids of the blocks, plain ints that jitted code can use; `end` is one past the last id.
    """

    velocity_bins: int = 1

    shift_start = UNKNOWN + 1
    pitch_start = shift_start + MAX_SHIFT + 1
    velocity_start = pitch_start + 128

    @functools.cached_property
    def tie(self) -> int:
        return self.velocity_start + self.velocity_bins + 1

    @functools.cached_property
    def program_start(self) -> int:
        return self.tie + 1

    @functools.cached_property
    def drum_start(self) -> int:
        return self.program_start + 128

    @functools.cached_property
    def end(self) -> int:
        return self.drum_start + 128

    @property
    def size(self) -> int:
        """The number of ids, including spare ones."""
        return self.end + SPARE

    @property
    def rows(self) -> int:
        """The number of rows of the embedding table: `size` rounded up to a multiple of 128."""
        return -(-self.size // 128) * 128

    def shift(self, steps: Id) -> Id:
        return self.shift_start + steps

    def pitch(self, pitch: Id) -> Id:
        return self.pitch_start + pitch

    def velocity(self, velocity: Id) -> Id:
        """Returns the token of a MIDI velocity 0..127: bin ceil(bins * velocity / 127), which is 0 only for 0."""
        return self.velocity_start - (-self.velocity_bins * velocity // 127)

    def program(self, program: Id) -> Id:
        return self.program_start + program

    def drum(self, pitch: Id) -> Id:
        return self.drum_start + pitch

    def event(self, token: int) -> tuple[str, int]:
        """Returns a token's type and value: ("shift", steps), ("velocity", MIDI velocity), ("drum", pitch), and so on.

        For special and spare ids and those that are out of range, it returns ("unknown", id).
        """
        blocks = (
            ("shift", self.shift_start, self.pitch_start),
            ("pitch", self.pitch_start, self.velocity_start),
            ("velocity", self.velocity_start, self.tie),
            ("tie", self.tie, self.program_start),
            ("program", self.program_start, self.drum_start),
            ("drum", self.drum_start, self.end),
        )
        for name, start, end in blocks:
            if start <= token < end:
                value = token - start
                return (name, 127 * value // self.velocity_bins) if name == "velocity" else (name, value)
        return "unknown", token

    def count_notes(self, tokens: Int[np.ndarray, " n"]) -> int:
        """Returns the number of notes in a window: those tied into it, those that begin in it, and drum hits."""
        is_velocity = (tokens >= self.velocity_start) & (tokens < self.tie)
        latest = np.maximum.accumulate(np.where(is_velocity, np.arange(len(tokens)), -1))
        off = (latest >= 0) & (tokens[latest] == self.velocity_start)
        is_pitch = (tokens >= self.pitch_start) & (tokens < self.velocity_start)
        is_drum = (tokens >= self.drum_start) & (tokens < self.end)
        return int(np.count_nonzero((is_pitch & ~off) | is_drum))
