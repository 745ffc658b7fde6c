"""The tokenizer: notes to tokens, one window at a time, and back (Hawthorne et al. 2022, section 3.1)."""

import bisect
import dataclasses
import functools
import os

import numpy as np
from jaxtyping import Int, Int32

from spectrodiff.audio.mel import FRAMES_PER_SECOND
from spectrodiff.config import WINDOW_FRAMES, TokenizerConfig
from spectrodiff.errors import InputError
from spectrodiff.notes.midi import Notes, read_midi
from spectrodiff.notes.sequence import check_notes
from spectrodiff.notes.timeline import STEPS_PER_SECOND, Timeline, make_timeline, map_programs, num_frames
from spectrodiff.notes.vocabulary import EOS, MAX_SHIFT, PAD, Vocabulary

_STEPS_PER_FRAME = STEPS_PER_SECOND // FRAMES_PER_SECOND


@dataclasses.dataclass(frozen=True)
class NoteTokenizer:
    """Converts notes to windows of tokens, and windows of tokens to notes.

    `config.program_map` is "full" (programs do not change), "midi_class" (the first program of each family of eight),
    "flat" (no programs) or "slakh" (the nearest of SLAKH_PROGRAMS at or below); `config.own_programs` do not change.
    `on_overflow` is what happens to a window of over `config.max_tokens` tokens: "error" raises InputError, and "thin"
    leaves its quietest notes out of the piece, as the method `thin` does.
    """

    config: TokenizerConfig = dataclasses.field(default_factory=TokenizerConfig)
    on_overflow: str = "error"

    def __post_init__(self):
        if not isinstance(self.config, TokenizerConfig):
            raise InputError(f"config is {self.config!r}; give a TokenizerConfig")
        if self.on_overflow not in ("error", "thin"):
            raise InputError(f"on_overflow is {self.on_overflow!r}; choose one of error, thin")

    @functools.cached_property
    def vocabulary(self) -> Vocabulary:
        """The vocabulary, which defines the meaning of each token."""
        return Vocabulary(self.config.velocity_bins)

    def mapped(self, program: Int[np.ndarray, "*n"]) -> Int[np.ndarray, "*n"]:
        """Returns the programs that the program map maps each of `program` to ("flat" changes none)."""
        return map_programs(program, self.config)

    def encode_file(self, path: str | os.PathLike) -> Int32[np.ndarray, "windows n"]:
        """Returns the tokens of the MIDI file at `path`, int32 [windows, config.max_tokens]; see `encode`.

        Raises:
          InputError: as `read_midi` and `encode`.
        """
        return self.encode(read_midi(path, channel_volume=self.config.channel_volume))

    def encode(self, notes: Notes, overlap: int = 0) -> Int32[np.ndarray, "windows n"]:
        """Returns the tokens of a piece, int32 [windows, config.max_tokens], one row for each window of 5.12 s.

        The tokens of a row end with EOS (1) and are padded with 0. `vocabulary` defines their meaning. A window begins
        where the one before ends, or `overlap` frames earlier.

        Raises:
          InputError: a window needs more than `config.max_tokens` tokens and `on_overflow` is "error", or `notes` are
            not notes, such as `read_midi` returns.
        """
        if self.on_overflow == "thin":
            notes, _ = self.thin(notes, overlap)
        timeline = self.timeline(notes)
        starts = _window_starts(timeline.frames, overlap)
        tokens = np.full((len(starts), self.config.max_tokens), PAD, np.int32)
        for row, start_frame in zip(tokens, starts, strict=True):
            window = self.window(timeline, start_frame)
            row[: len(window)] = window
        return tokens

    def num_windows(self, total_time: float) -> int:
        """Returns the number of windows, without overlap, of a piece of `total_time` seconds.

        A piece that ends exactly on a frame gets another frame, as in the published code.
        """
        return len(_window_starts(num_frames(total_time), 0))

    def timeline(self, notes: Notes) -> Timeline:
        """Returns the events of a piece, from which its windows are cut.

        Pitched notes of length 0 are left out, as their note-offs would come before their note-ons.
        """
        return make_timeline(notes, self.config, self.vocabulary)

    def window(self, timeline: Timeline, start_frame: int, frames: int = WINDOW_FRAMES) -> Int32[np.ndarray, " n"]:
        """Returns the tokens of `frames` frames (of 20 ms) from `start_frame` on, with EOS at the end and no padding.

        Raises:
          InputError: they are more than `config.max_tokens`, and `on_overflow` is "error".
        """
        sounding, events = self._contents(timeline, start_frame, frames)
        tokens = self._tokens(timeline, sounding, events, start_frame)
        if len(tokens) <= self.config.max_tokens:
            return tokens
        if self.on_overflow == "error":
            raise InputError(
                f"too many notes: the window at {start_frame / FRAMES_PER_SECOND:.2f} s needs {len(tokens)} tokens, "
                f"over the limit of {self.config.max_tokens}; use --on_overflow thin to drop its quietest notes"
            )
        quiet = self._quietest(timeline, sounding, events, start_frame)
        sounding, events = (part[~np.isin(timeline.note[part], quiet)] for part in (sounding, events))
        return self._tokens(timeline, sounding, events, start_frame)

    def thin(self, notes: Notes, overlap: int = 0) -> tuple[Notes, int]:
        """Returns the piece without the quietest notes of windows that overflow, and the number of notes left out.

        The windows are those of `encode`. Of notes of equal velocity, the shortest is left out first.
        """
        check_notes(notes)
        kept = np.arange(len(notes), dtype=np.int32)
        while True:
            timeline = self.timeline(notes.select(kept))
            quiet = set()
            for start_frame in _window_starts(timeline.frames, overlap):
                sounding, events = self._contents(timeline, start_frame, WINDOW_FRAMES)
                quiet.update(self._quietest(timeline, sounding, events, start_frame).tolist())
            if not quiet:
                return notes.select(kept), len(notes) - len(kept)
            kept = np.delete(kept, list(quiet))

    def _contents(
        self, timeline: Timeline, start_frame: int, frames: int
    ) -> tuple[Int[np.ndarray, "a"], Int[np.ndarray, "b"]]:
        """Returns the indices of the note-ons that are tied into a window, and those of the events in it.

        The note-ons, of notes that sound when the window starts, are sorted by program and pitch.
        """
        step = timeline.step
        start = start_frame * _STEPS_PER_FRAME
        first = int(np.searchsorted(step, start))
        last = int(np.searchsorted(step, start + frames * _STEPS_PER_FRAME))
        if start_frame + frames >= timeline.frames:
            last = len(step)  # a note-off that was rounded up to the very end of the piece
        before = first
        if self.config.ghost_ties and len(step) and start > step[-1]:
            before = int(np.searchsorted(step, step[-1]))  # see `TokenizerConfig.ghost_ties`
        sounding = np.flatnonzero(timeline.until[:before] >= before)
        return sounding[np.argsort(timeline.voice[sounding])], np.arange(first, max(first, last))

    def _quietest(self, timeline, sounding, events, start_frame) -> Int[np.ndarray, " dropped"]:
        """Returns the smallest number of notes, the quietest first, without which a window fits; often none."""
        touched = np.union1d(timeline.note[sounding], timeline.note[events])
        touched = touched[np.argsort(timeline.loudness[touched])]

        def fits(dropped: int) -> bool:
            kept = (part[~np.isin(timeline.note[part], touched[:dropped])] for part in (sounding, events))
            return len(self._tokens(timeline, *kept, start_frame)) <= self.config.max_tokens

        if fits(0):
            return touched[:0]
        return touched[: bisect.bisect_left(range(len(touched)), True, key=fits)]

    def _tokens(
        self,
        timeline: Timeline,
        sounding: Int[np.ndarray, " tied"],
        events: Int[np.ndarray, " events"],
        start_frame: int,
    ) -> Int32[np.ndarray, " n"]:
        """Returns the tokens of the tie section, with the note-ons `sounding`, of the `events`, and EOS.

        Both arguments are indices into the timeline. Tokens are laid out in a table with a row for each event and
        columns for shifts, program, velocity and pitch; tokens that are left out are PAD.
        """
        ties = len(sounding)
        indices = np.concatenate([sounding, events])
        step = timeline.step[events] - start_frame * _STEPS_PER_FRAME
        shifts = -(-int(step[-1]) // MAX_SHIFT) if len(step) else 0
        table = np.full((len(indices) + 1, shifts + 3), PAD, np.int32)
        event_rows = table[ties + 1 :]  # row `ties` is that of the tie token

        moved = _changes(step, 0)
        for k in range(shifts):
            part = np.minimum(step[moved] - k * MAX_SHIFT, MAX_SHIFT)
            event_rows[moved, k] = np.where(part > 0, self.vocabulary.shift(part), PAD)
        program = timeline.program_token[indices]
        pitched = np.flatnonzero(program)
        pitched = pitched[_changes(program[pitched], PAD)]
        table[pitched + (pitched >= ties), -3] = program[pitched]
        velocity = timeline.velocity_token[events]
        changed = _changes(velocity, PAD)
        event_rows[changed, -2] = velocity[changed]
        table[:ties, -1] = timeline.pitch_token[sounding]
        table[ties, -1] = self.vocabulary.tie
        event_rows[:, -1] = timeline.pitch_token[events]
        return np.append(table[table != PAD], np.int32(EOS))

    def decode(self, tokens: Int[np.ndarray, "windows n"]) -> Notes:
        """Returns the notes that windows of tokens represent. Tokens that are invalid in their place are skipped.

        Decoding what `encode` returned (without overlap) gives the original notes, except that times are rounded to
        10 ms (the least length of a note, and the length of drum hits), velocities to the loudest of their bin, and
        programs by the program map; that the silence after the last note is lost; and that of several overlapping notes
        of one program and pitch, the ends may be exchanged.

        Raises:
          InputError: `tokens` are not an array of integers [windows, n].
        """
        tokens = np.asarray(tokens)
        if tokens.ndim != 2 or tokens.dtype.kind not in "iu":
            raise InputError(
                f"tokens are integers [windows, tokens], but these are {list(tokens.shape)} of {tokens.dtype}"
            )
        notes = []  # start, end, pitch, velocity, program, is_drum; times in steps
        open_notes = {}  # (program, pitch) -> (start, velocity)

        def close(voice: tuple[int, int], end: int) -> None:
            start, velocity = open_notes.pop(voice)
            notes.append((start, max(end, start + 1), voice[1], velocity, voice[0], False))

        steps = WINDOW_FRAMES * _STEPS_PER_FRAME
        events = [self.vocabulary.event(token) for token in range(self.vocabulary.end)]
        for begin, window in zip(range(0, len(tokens) * steps, steps), tokens.tolist(), strict=True):
            now, program, velocity, tied, in_shift = begin, 0, 0, set(), False
            for token in window:
                if token == EOS:
                    break
                kind, value = events[token] if 0 <= token < len(events) else ("unknown", token)
                if kind == "shift":
                    now = value + (now if in_shift else begin)
                elif kind == "program":
                    program = value
                elif kind == "velocity":
                    velocity = value
                elif kind == "tie" and tied is not None:
                    for voice in open_notes.keys() - tied:
                        close(voice, begin)
                    tied = None
                elif kind == "drum" and velocity:
                    notes.append((now, now + 1, value, velocity, 0, True))
                elif kind == "pitch" and tied is not None:
                    tied.add((program, value))
                elif kind == "pitch":
                    if (program, value) in open_notes:
                        close((program, value), now)
                    if velocity:
                        open_notes[program, value] = (now, velocity)
                in_shift = kind == "shift"
        for voice in list(open_notes):
            close(voice, len(tokens) * steps)
        columns = np.array(sorted(notes), np.int32).reshape(-1, 6).T
        start, end = columns[:2] / STEPS_PER_SECOND
        return Notes(start, end, *columns[2:5], columns[5] > 0, total_time=float(end.max(initial=0.0)))


def _window_starts(frames: int, overlap: int) -> range:
    """Returns the first frames of the windows of a piece, of which there is at least one."""
    return range(0, max(1, frames - overlap), WINDOW_FRAMES - overlap)


def _changes(values: Int[np.ndarray, " n"], before: int) -> Int[np.ndarray, " changes"]:
    """Returns the indices of values that differ from the one before, where `before` is the one before the first."""
    differs = np.empty(len(values), bool)
    differs[:1] = values[:1] != before
    np.not_equal(values[1:], values[:-1], out=differs[1:])
    return np.flatnonzero(differs)
