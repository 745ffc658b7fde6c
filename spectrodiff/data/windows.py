"""Pairs of recording and MIDI to the windows that a model learns from."""

import csv
import dataclasses
import pathlib
from collections.abc import Iterable

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from spectrodiff.audio.files import read_audio
from spectrodiff.audio.mel import HOP, MEL_BINS, SAMPLE_RATE, log_mel, scale_mel
from spectrodiff.config import WINDOW_FRAMES
from spectrodiff.errors import InputError
from spectrodiff.notes.midi import read_midi
from spectrodiff.notes.tokenizer import NoteTokenizer, Timeline

SILENCE = -1.0  # the scaled log-mel of nothing


@dataclasses.dataclass(frozen=True)
class Piece:
    """A recording as scaled log-mel (float16, to 0.004 nats), and its notes."""

    name: str
    mel: Float[np.ndarray, "t m"]
    timeline: Timeline


def read_split(data_dir: str | pathlib.Path, split: str) -> list[str]:
    """Names of the pieces of a split of a prepared corpus.

    Raises:
      InputError: there is no corpus in `data_dir`, or it has no such split.
    """
    path = pathlib.Path(data_dir) / "splits.csv"
    if not path.is_file():
        raise InputError(f"no corpus in {data_dir}: splits.csv is missing; make one with `spectrodiff prepare`")
    with path.open(newline="") as file:
        names = [row["name"] for row in csv.DictReader(file) if row["split"] == split]
    if not names:
        raise InputError(f"the corpus in {data_dir} has no pieces in its {split!r} split")
    return sorted(names)


def load_pieces(data_dir: str | pathlib.Path, names: Iterable[str], tokenizer: NoteTokenizer) -> list[Piece]:
    """Reads audio and notes of the named pieces into memory: 46 MB an hour."""
    data_dir = pathlib.Path(data_dir)
    pieces = []
    for name in tqdm(names, desc="reading pieces", unit="piece", mininterval=1.0):
        audio = read_audio(data_dir / "audio" / f"{name}.flac")
        # Padded to whole tens of seconds, so that few lengths are compiled.
        padded = np.pad(audio, (0, -len(audio) % (10 * SAMPLE_RATE)))
        mel = np.asarray(scale_mel(log_mel(padded)), np.float16)[: -(-len(audio) // HOP)]
        pieces.append(Piece(name, mel, tokenizer.timeline(read_midi(data_dir / "midi" / f"{name}.mid"))))
    return pieces


def cut_window(
    piece: Piece, start: int, tokenizer: NoteTokenizer, tokens: int, notes: int
) -> dict[str, np.ndarray] | None:
    """The training example whose target begins at frame `start`; None if it has over `tokens` tokens or `notes` notes.

    `tokens` int32 [tokens]; `target`, `context` float32 [256, 128], scaled, real frames first; `target_mask`,
    `context_mask` bool [256]. The context is the up to 256 true frames before the target.
    """
    try:
        sequence = tokenizer.window(piece.timeline, start)
    except InputError:  # over the tokenizer's own limit
        return None
    if len(sequence) > tokens or tokenizer.vocabulary.count_notes(sequence) > notes:
        return None
    example = {"tokens": np.pad(sequence, (0, tokens - len(sequence)))}
    spans = {"target": slice(start, start + WINDOW_FRAMES), "context": slice(max(start - WINDOW_FRAMES, 0), start)}
    for name, span in spans.items():
        frames = piece.mel[span]
        padded = np.full((WINDOW_FRAMES, MEL_BINS), SILENCE, np.float32)
        padded[: len(frames)] = frames
        example[name] = padded
        example[f"{name}_mask"] = np.arange(WINDOW_FRAMES) < len(frames)
    return example
