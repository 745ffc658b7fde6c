"""Scores of the notes in audio: a transcriber estimates them, and they are matched with the reference notes.

A transcriber makes mistakes on recordings too, so that a score is only meaningful in comparison with that of the true
audio; see `relative_to_true`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import scipy.ndimage
from jaxtyping import Float, Float64

from spectrodiff.audio.mel import SAMPLE_RATE
from spectrodiff.errors import InputError
from spectrodiff.evaluation.reconstruction import onset_envelope
from spectrodiff.notes.instruments import family_name
from spectrodiff.notes.sequence import Notes

# Onsets may differ by TOLERANCE seconds; offsets by that or, if it is more, by the fraction OFFSET_RATIO of the
# reference note's duration. Both are mir_eval's defaults.
TOLERANCE = 0.05
OFFSET_RATIO = 0.2
CHORD = 0.03  # seconds within which drum hits count as one onset
DRUMS = "drums"
_ENVELOPE_HOP = 0.005  # seconds, of `onset_envelope`
_EDGE = 0.02  # seconds, the window of `onset_envelope`
_LOCAL = 0.2  # seconds of the envelope around an attack, whose mean it has to exceed
_STRENGTH = 0.1  # by how much at least, relative to the strongest attack

Audio = Float[np.ndarray, " s"]


@runtime_checkable
class Transcriber(Protocol):
    """A model that estimates the notes in audio, float32 [samples] at SAMPLE_RATE.

    `instruments` says whether it estimates their programs; if not, all notes have the same one.
    """

    name: str
    instruments: bool

    def __call__(self, audio: Audio) -> Notes: ...


@dataclasses.dataclass(frozen=True)
class Matches:
    """Counts of `matched` notes, of `estimated` ones and of `reference` ones. Those of several songs can be added."""

    matched: int = 0
    estimated: int = 0
    reference: int = 0

    def __add__(self, other: "Matches") -> "Matches":
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Matches(*(a + b for a, b in pairs))

    @property
    def precision(self) -> float | None:
        """The fraction of estimated notes that match, or None if there are none."""
        return self.matched / self.estimated if self.estimated else None

    @property
    def recall(self) -> float | None:
        """The fraction of reference notes that match, or None if there are none."""
        return self.matched / self.reference if self.reference else None

    @property
    def f1(self) -> float | None:
        """The harmonic mean of precision and recall, or None if there are no reference notes.

        It is 0 if no notes are estimated. If it were undefined, means over songs would leave such a song out.
        """
        return 2.0 * self.matched / (self.estimated + self.reference) if self.reference else None


# By kind: "onset", "offset" (onset and offset) and DRUMS; if programs are estimated, also "onset/midi_class" and so on.
Scores = dict[str, Matches]


def relative_to_true(ours: Matches, true: Matches) -> dict[str, float | None]:
    """Returns the precision, recall and F1 of `ours`, the F1 of the true audio, and the ratio of the two F1.

    Values that are undefined are None.
    """
    ratio = ours.f1 / true.f1 if ours.f1 is not None and true.f1 else None
    return {"precision": ours.precision, "recall": ours.recall, "f1": ours.f1, "true_f1": true.f1, "ratio": ratio}


def add_scores(songs: Sequence[Scores]) -> Scores:
    """Adds up the counts of all songs, by kind."""
    return {name: sum((song[name] for song in songs), Matches()) for name in (songs[0] if songs else ())}


def score_audio(transcriber: Transcriber, audio: Audio, notes: Notes) -> Scores:
    """Transcribes `audio` and scores the result against the reference `notes`.

    If the transcriber estimates programs, there are also scores by instrument family and by program.

    Raises:
      InputError: mir_eval is not installed.
    """
    estimated = transcriber(audio)
    scores = score_notes(estimated, notes) | {DRUMS: score_drums(audio, notes)}
    for programs in ("midi_class", "full") if transcriber.instruments else ():
        scores |= {f"{kind}/{programs}": matches for kind, matches in score_notes(estimated, notes, programs).items()}
    return scores


def family_of(notes: Notes) -> str | None:
    """Returns the family of General MIDI that all notes belong to, or DRUMS; None if there are several or none."""
    instruments = set(zip(notes.program.tolist(), notes.is_drum.tolist(), strict=True))
    families = {DRUMS if is_drum else family_name(program).lower() for program, is_drum in instruments}
    return families.pop() if len(families) == 1 else None


def score_notes(estimated: Notes, notes: Notes, programs: str = "flat") -> Scores:
    """Matches the pitched notes of `estimated` with those of the reference `notes`, one to one, as mir_eval does.

    Notes match by "onset" if their pitches are equal and their onsets within TOLERANCE; they match by "offset" if their
    offsets agree as well. `programs` may require in addition that they are of one family ("midi_class") or of one
    program ("full"); "flat" does not. If there are no reference notes, all counts are 0.

    As only equal pitches match, the notes of each pitch are matched separately. The result is that of matching all
    notes at once, with less memory.

    Raises:
      InputError: mir_eval is not installed, or `programs` is none of these.
    """
    mir_eval = _mir_eval()
    width = {"flat": 128, "midi_class": 8, "full": 1}.get(programs)
    if width is None:
        raise InputError(f"programs must be flat, midi_class or full, not {programs!r}")
    estimated, reference = (played.select(~played.is_drum) for played in (estimated, notes))
    if not len(reference):
        return {"onset": Matches(), "offset": Matches()}
    voices = [128 * (played.program // width) + played.pitch for played in (estimated, reference)]
    matched = {"onset": 0, "offset": 0}
    for voice in np.intersect1d(*voices):
        ours, theirs = (
            _spans(played)[voice_of_note == voice]
            for played, voice_of_note in zip((estimated, reference), voices, strict=True)
        )
        our_pitches, their_pitches = np.ones(len(ours)), np.ones(len(theirs))  # all notes of a voice have one pitch
        for name, ratio in (("onset", None), ("offset", OFFSET_RATIO)):
            pairs = mir_eval.transcription.match_notes(
                theirs,
                their_pitches,
                ours,
                our_pitches,
                onset_tolerance=TOLERANCE,
                offset_ratio=ratio,
                offset_min_tolerance=TOLERANCE,
            )
            matched[name] += len(pairs)
    return {name: Matches(count, len(estimated), len(reference)) for name, count in matched.items()}


def score_drums(audio: Audio, notes: Notes) -> Matches:
    """Matches the attacks in `audio` with the drum hits of the reference `notes`, within TOLERANCE.

    If there are no hits, all counts are 0. In a mix, the attacks of other instruments count as false positives, in the
    true audio as well.

    Raises:
      InputError: mir_eval is not installed.
    """
    hits = np.unique(notes.start[notes.is_drum])
    if not len(hits):
        return Matches()
    hits = hits[np.diff(hits, prepend=-np.inf) > CHORD]
    attacks = attack_times(audio)
    return Matches(len(_mir_eval().util.match_events(hits, attacks, TOLERANCE)), len(attacks), len(hits))


def attack_times(audio: Audio) -> Float64[np.ndarray, " n"]:
    """Finds the times of attacks in `audio`, in seconds: peaks of its onset envelope that exceed the local mean.

    The beginning of the audio may be an attack; its end, where sound is cut off, is not.
    """
    before = round(_EDGE * SAMPLE_RATE)
    envelope = scipy.ndimage.uniform_filter1d(onset_envelope(np.pad(audio, (before, 0))), 3)
    reach = 2 * round(CHORD / _ENVELOPE_HOP) + 1
    peaks = envelope == scipy.ndimage.maximum_filter1d(envelope, reach)
    around = scipy.ndimage.uniform_filter1d(envelope, round(_LOCAL / _ENVELOPE_HOP) + 1)
    attacks = np.flatnonzero(peaks & (envelope > around + _STRENGTH * envelope.max(initial=0.0)))
    seconds = (attacks + 1) * _ENVELOPE_HOP - _EDGE  # the envelope is of differences: from the frame before
    return np.maximum(seconds[seconds < len(audio) / SAMPLE_RATE - _EDGE], 0.0)


def _spans(notes: Notes) -> Float64[np.ndarray, "n 2"]:
    """Returns start and end of each note."""
    return np.stack([notes.start, notes.end], axis=1)


def _mir_eval():
    try:
        import mir_eval.transcription  # and with it mir_eval.util
    except ImportError as error:
        raise InputError('scores of notes need mir_eval: pip install "spectrodiff[eval]"') from error
    return mir_eval
