"""What a prepared dataset holds: a table, summary.json and a picture beside the dataset's files."""

import collections
import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from spectrodiff.audio.mel import SAMPLE_RATE
from spectrodiff.config import WINDOW_FRAMES, TokenizerConfig
from spectrodiff.data.builders.alignment import doubts
from spectrodiff.data.builders.workers import parallel_map, worker_count
from spectrodiff.data.dataset import Dataset, open_dataset
from spectrodiff.data.pieces import count_samples
from spectrodiff.data.recordings import from_flac
from spectrodiff.files import replacing
from spectrodiff.notes.sequence import from_note_sequence, import_note_seq
from spectrodiff.notes.tokenizer import NoteTokenizer

LIMIT = TokenizerConfig().max_tokens
_ENDLESS = NoteTokenizer(TokenizerConfig(max_tokens=10**6))  # counts what the default tokenizer refuses, too
_WORTH = 20  # pieces that are looked through while a process starts
_LISTED = 10  # pieces whose notes may not fit their sound, of those that are printed


@dataclasses.dataclass(frozen=True)
class _PieceSummary:
    """What the summary says of a piece: seconds, number of stems, notes by instrument, tokens of its windows.

    `doubts` are those of `alignment.doubts`.
    """

    name: str
    split: str
    seconds: float
    stems: int
    notes: dict[str, int]
    tokens: list[int]
    doubts: list[str]


def summarize(folder: str | os.PathLike, workers: int | None = None) -> dict[str, Any]:
    """What the dataset in `folder` holds, in plain JSON values; `summary.json` and `summary.png` in it say the same.

    Windows are those of 256 frames from each piece's start on, their tokens those of the default tokenizer. Pieces
    whose onsets are not those of their notes, or not at their times, are `suspicious`. A summary that is there already
    is not made again.
    """
    folder = pathlib.Path(folder)
    path = folder / "summary.json"
    if path.exists() and (folder / "summary.png").exists():
        return json.loads(path.read_text())
    made = path.with_name("dataset_info.json").stat().st_mtime_ns
    dataset = _open(folder, made)
    places = [(split, index) for split in dataset.splits for index in range(len(dataset[split]))]
    looked = parallel_map(functools.partial(_look, folder, made), places, worker_count(workers, len(places), _WORTH))
    pieces = list(tqdm(looked, f"summary of {folder.parent.name}", len(places), unit="piece", delay=2.0))
    metadata = json.loads(path.with_name("metadata.json").read_text())
    missing = {name: metadata.get(name, {}) for name in ("known_bad", "skipped")}
    summary = {"name": folder.parent.name, **_summary(dataset.splits, pieces), **missing}
    with replacing(folder / "summary.png") as temporary:
        _draw(temporary, summary, pieces)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(summary, indent=2) + "\n")
    return summary


def table(summary: dict[str, Any]) -> str:
    """A summary for people."""
    tokens = summary["tokens_per_window"]
    instruments = list(summary["instruments"].items())
    lines = {
        "hours": f"{summary['hours']:.2f}",
        "pieces": f"{summary['pieces']}" + (f", with {summary['stems']} stems" if summary["stems"] else ""),
        "splits": ", ".join(f"{split} {s['pieces']} ({s['hours']:.2f} h)" for split, s in summary["splits"].items()),
        "instruments": ", ".join(f"{name} {of['notes']}" for name, of in instruments[:12])
        + (f", and {len(instruments) - 12} more" if len(instruments) > 12 else "")
        + " notes",
        "windows": f"{tokens['windows']}; tokens: median {tokens['median']:.0f}, 90 % {tokens['p90']:.0f}, "
        f"99 % {tokens['p99']:.0f}, most {tokens['max']}; over {LIMIT}: {tokens['over_limit']:.2%}",
    }
    told = [f"{name:>12}: {value}" for name, value in lines.items()]
    # A summary of an earlier version has but the last of these.
    suspicious, known_bad, skipped = (summary.get(name, {}) for name in ("suspicious", "known_bad", "skipped"))
    more = f" (the first {_LISTED} here, all in summary.json)" if len(suspicious) > _LISTED else ""
    for title, about, named in (
        (
            "suspicious",
            f"{len(suspicious)} of {summary['pieces']} pieces{more}",
            dict(list(suspicious.items())[:_LISTED]),
        ),
        ("left out", f"{len(known_bad)}, known to be bad; --no-skip_known_bad keeps them", known_bad),
        ("skipped", f"{len(skipped)}; to have them once they are mended, delete the dataset first", skipped),
    ):
        if named:
            told += [f"{title:>12}: {about}", *(f"{'':>14}{name}: {why}" for name, why in named.items())]
    return "\n".join(told)


@functools.lru_cache(maxsize=1)
def _open(folder: pathlib.Path, made: int) -> Dataset:
    """The dataset, kept at hand; `made` tells it from another that was there before."""
    return open_dataset(folder.parent.parent, f"{folder.parent.name}/{folder.name}")


def _look(folder: pathlib.Path, made: int, place: tuple[str, int]) -> _PieceSummary:
    split, index = place
    record = _open(folder, made)[split][index]
    notes = from_note_sequence(record["notes"])
    timeline = _ENDLESS.timeline(notes)
    counts = collections.Counter(
        "drums" if drum else str(program) for program, drum in zip(notes.program, notes.is_drum, strict=True)
    )
    return _PieceSummary(
        name=record["name"].decode() if isinstance(record["name"], bytes) else record["name"],
        split=split,
        seconds=count_samples(record["audio"]) / SAMPLE_RATE,
        stems=len(record["stems"]),
        notes=dict(counts),
        tokens=[len(_ENDLESS.window(timeline, start)) for start in range(0, timeline.frames, WINDOW_FRAMES)],
        doubts=doubts(from_flac(record["audio"]), notes),
    )


def _summary(names: Sequence[str], pieces: Sequence[_PieceSummary]) -> dict[str, Any]:
    tokens = np.concatenate([piece.tokens for piece in pieces])
    notes, heard_in = collections.Counter(), collections.Counter()
    for piece in pieces:
        notes.update(piece.notes)
        heard_in.update(piece.notes.keys())
    splits = {}
    for split in names:
        of = [piece for piece in pieces if piece.split == split]
        hours = sum(piece.seconds for piece in of) / 3600
        splits[split] = {"pieces": len(of), "hours": hours, "windows": sum(len(piece.tokens) for piece in of)}
    median, p90, p99 = np.percentile(tokens, [50, 90, 99])
    return {
        "hours": sum(piece.seconds for piece in pieces) / 3600,
        "pieces": len(pieces),
        "stems": sum(piece.stems for piece in pieces),
        "splits": splits,
        "instruments": {
            _instrument(key): {"notes": count, "pieces": heard_in[key]} for key, count in notes.most_common()
        },
        "tokens_per_window": {
            "windows": len(tokens),
            "median": float(median),
            "p90": float(p90),
            "p99": float(p99),
            "max": int(tokens.max()),
            "over_limit": float((tokens > LIMIT).mean()),
        },
        "suspicious": {piece.name: "; ".join(piece.doubts) for piece in pieces if piece.doubts},
    }


def _instrument(key: str) -> str:
    """A program's number and General MIDI name."""
    if key == "drums":
        return key
    return f"{key} {import_note_seq().midi_io.pretty_midi.program_to_instrument_name(int(key))}"


def _draw(path: pathlib.Path, summary: dict[str, Any], pieces: Sequence[_PieceSummary]) -> None:
    from matplotlib.figure import Figure  # without pyplot: no display is looked for

    figure = Figure(figsize=(12, 7), layout="constrained")
    figure.suptitle(f"{summary['name']}: {summary['hours']:.2f} hours, {summary['pieces']} pieces")
    (windows, lengths), (instruments, splits) = figure.subplots(2, 2)

    tokens = np.concatenate([piece.tokens for piece in pieces])
    windows.hist(tokens, bins=60)
    windows.axvline(LIMIT, color="k", linestyle="--", label=f"limit {LIMIT}")
    for share in ("median", "p90", "p99"):
        windows.axvline(summary["tokens_per_window"][share], color="C1", linewidth=1)
    windows.set(xlabel="tokens per window (lines: median, 90 %, 99 %)", ylabel="windows", yscale="log")
    windows.legend(loc="upper right")

    lengths.hist([piece.seconds / 60 for piece in pieces], bins=40)
    lengths.set(xlabel="length in minutes", ylabel="pieces")

    most = list(summary["instruments"].items())[:16][::-1]
    instruments.barh([key for key, _ in most], [of["notes"] for _, of in most])
    instruments.set(xlabel="notes")

    splits.barh(list(summary["splits"])[::-1], [of["hours"] for of in summary["splits"].values()][::-1])
    splits.set(xlabel="hours")
    figure.savefig(path, dpi=110)
