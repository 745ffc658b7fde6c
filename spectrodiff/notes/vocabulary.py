"""What each token id means."""

import dataclasses
import functools
from typing import TypeVar

import numpy as np
from jaxtyping import Int

PAD, EOS, UNKNOWN = 0, 1, 2
MAX_SHIFT = 1000  # steps of 10 ms; a longer shift is several tokens that add up
SPARE = 100  # ids the published vocabulary keeps free at its end (Hawthorne et al. 2022)

Id = TypeVar("Id", int, Int[np.ndarray, "..."])  # methods take one value, or an array of them


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Token ids of the events of Hawthorne et al. 2022, for `velocity_bins` loudnesses besides silence.

    Blocks follow each other after pad, end of sequence and unknown: shift 0..1000 (steps of 10 ms), pitch 0..127,
    velocity 0..velocity_bins (0 is note-off), tie, program 0..127, drum 0..127. The `*_start` are the blocks' first
    tokens, plain ints that jitted code can use; `end` is one past the last.
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
        """How many ids there are, the spare ones included."""
        return self.end + SPARE

    @property
    def rows(self) -> int:
        """Rows of the embedding table: `size` rounded up to a multiple of 128."""
        return -(-self.size // 128) * 128

    def shift(self, steps: Id) -> Id:
        return self.shift_start + steps

    def pitch(self, pitch: Id) -> Id:
        return self.pitch_start + pitch

    def velocity(self, velocity: Id) -> Id:
        """The token of a MIDI velocity 0..127: bin ceil(bins * velocity / 127), so that only 0 is silent."""
        return self.velocity_start - (-self.velocity_bins * velocity // 127)

    def program(self, program: Id) -> Id:
        return self.program_start + program

    def drum(self, pitch: Id) -> Id:
        return self.drum_start + pitch

    def event(self, token: int) -> tuple[str, int]:
        """A token's block and its value there: ("shift", steps), ("velocity", MIDI velocity), ("drum", pitch) ...

        Special, spare and impossible ids are all ("unknown", id).
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
        """How many notes sound in a window: those tied into it, those that begin in it, and drum hits."""
        is_velocity = (tokens >= self.velocity_start) & (tokens < self.tie)
        latest = np.maximum.accumulate(np.where(is_velocity, np.arange(len(tokens)), -1))
        off = (latest >= 0) & (tokens[latest] == self.velocity_start)
        is_pitch = (tokens >= self.pitch_start) & (tokens < self.velocity_start)
        is_drum = (tokens >= self.drum_start) & (tokens < self.end)
        return int(np.count_nonzero((is_pitch & ~off) | is_drum))
