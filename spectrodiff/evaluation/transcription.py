"""Are the notes in the audio? Notes are transcribed from it and matched with those that it should hold.

A transcriber errs on recordings too, so a score says something only beside that of the true audio: see
`relative_to_true`.
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
from spectrodiff.notes.sequence import Notes

TOLERANCE = 0.05  # seconds that an onset may be off, and an offset, or OFFSET_RATIO of the note where that is more
OFFSET_RATIO = 0.2
CHORD = 0.03  # seconds within which drum hits are one onset
FAMILIES = (
    *("piano", "chromatic percussion", "organ", "guitar", "bass", "strings", "ensemble", "brass", "reed", "pipe"),
    *("synth lead", "synth pad", "synth effects", "ethnic", "percussive", "sound effects"),
)  # of eight General MIDI programs each
DRUMS = "drums"
_ENVELOPE_HOP = 0.005  # seconds, of `onset_envelope`
_EDGE = 0.02  # seconds, the window of `onset_envelope`
_LOCAL = 0.2  # seconds over which an attack stands out
_STRENGTH = 0.1  # of the strongest attack

Audio = Float[np.ndarray, " s"]


@runtime_checkable
class Transcriber(Protocol):
    """Audio at SAMPLE_RATE to its notes; `instruments` says whether their programs are heard or all the same."""

    name: str
    instruments: bool

    def __call__(self, audio: Audio) -> Notes: ...


@dataclasses.dataclass(frozen=True)
class Matches:
    """How many notes were found of how many, and among how many; those of songs add up."""

    matched: int = 0
    estimated: int = 0
    reference: int = 0

    def __add__(self, other: "Matches") -> "Matches":
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Matches(*(a + b for a, b in pairs))

    @property
    def precision(self) -> float | None:
        """None where nothing was transcribed."""
        return self.matched / self.estimated if self.estimated else None

    @property
    def recall(self) -> float | None:
        """None where no notes are written."""
        return self.matched / self.reference if self.reference else None

    @property
    def f1(self) -> float | None:
        """None where no notes are written. Silence for notes is 0: left undefined, it would be left out of a mean."""
        return 2.0 * self.matched / (self.estimated + self.reference) if self.reference else None


# "onset", "offset" (onset and offset) and DRUMS; and, where instruments are heard, such as "onset/midi_class".
Scores = dict[str, Matches]


def relative_to_true(ours: Matches, true: Matches) -> dict[str, float | None]:
    """Scores of audio, F1 of the true audio of the same notes, and the ratio to it; None where undefined."""
    ratio = ours.f1 / true.f1 if ours.f1 is not None and true.f1 else None
    return {"precision": ours.precision, "recall": ours.recall, "f1": ours.f1, "true_f1": true.f1, "ratio": ratio}


def add_scores(songs: Sequence[Scores]) -> Scores:
    """The counts of all songs together."""
    return {name: sum((song[name] for song in songs), Matches()) for name in (songs[0] if songs else ())}


def score_audio(transcriber: Transcriber, audio: Audio, notes: Notes) -> Scores:
    """All scores of `audio`, which should hold `notes`; where instruments are heard, those that ask for them as well.

    Raises:
      InputError: there is no mir_eval.
    """
    estimated = transcriber(audio)
    scores = score_notes(estimated, notes) | {DRUMS: score_drums(audio, notes)}
    for programs in ("midi_class", "full") if transcriber.instruments else ():
        scores |= {f"{kind}/{programs}": matches for kind, matches in score_notes(estimated, notes, programs).items()}
    return scores


def family_of(notes: Notes) -> str | None:
    """One of FAMILIES, or DRUMS; None where notes are of several, or there are none."""
    families = {
        DRUMS if drum else FAMILIES[program // 8] for program, drum in zip(notes.program, notes.is_drum, strict=True)
    }
    return families.pop() if len(families) == 1 else None


def score_notes(estimated: Notes, notes: Notes, programs: str = "flat") -> Scores:
    """Pitched notes matched as mir_eval does, one to one: "onset", within TOLERANCE, and "offset", ending alike too.

    Where `notes` has none, nothing counts. `programs` says which notes can match: with "flat" any, with "midi_class"
    those of one family, with "full" those of one program. As only equal pitches match, each is matched alone: the
    same, in a memory that long pieces do not fill.

    Raises:
      InputError: there is no mir_eval, or no such `programs`.
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
        spans = (_spans(played)[of == voice] for played, of in zip((estimated, reference), voices, strict=True))
        ours, theirs = ((span, np.ones(len(span))) for span in spans)  # with a pitch each, all the same
        for name, ratio in (("onset", None), ("offset", OFFSET_RATIO)):
            pairs = mir_eval.transcription.match_notes(
                *theirs, *ours, onset_tolerance=TOLERANCE, offset_ratio=ratio, offset_min_tolerance=TOLERANCE
            )
            matched[name] += len(pairs)
    return {name: Matches(count, len(estimated), len(reference)) for name, count in matched.items()}


def score_drums(audio: Audio, notes: Notes) -> Matches:
    """Attacks in `audio` matched with the drum hits of `notes`, within TOLERANCE; nothing where there are no hits.

    In a mix, attacks of other instruments count as false ones, in true audio as well.

    Raises:
      InputError: there is no mir_eval.
    """
    hits = np.unique(notes.start[notes.is_drum])
    if not len(hits):
        return Matches()
    hits = hits[np.diff(hits, prepend=-np.inf) > CHORD]
    attacks = attack_times(audio)
    return Matches(len(_mir_eval().util.match_events(hits, attacks, TOLERANCE)), len(attacks), len(hits))


def attack_times(audio: Audio) -> Float64[np.ndarray, " n"]:
    """Seconds of the attacks in `audio`: peaks of its onset envelope that stand out from what is around them.

    Its beginning may be one, its end, which cuts what still sounds, is none.
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
    return np.stack([notes.start, notes.end], axis=1)


def _mir_eval():
    try:
        import mir_eval.transcription  # and with it mir_eval.util
    except ImportError as error:
        raise InputError('scores of notes need mir_eval: pip install "spectrodiff[eval]"') from error
    return mir_eval
