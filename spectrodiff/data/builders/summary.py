"""Statistics of a prepared dataset: a table, and summary.json and summary.png in its folder."""

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
from spectrodiff.data.builders.alignment import alignment_problems
from spectrodiff.data.dataset import Dataset, open_dataset
from spectrodiff.data.pieces import count_samples
from spectrodiff.data.recordings import from_flac, record_name
from spectrodiff.data.workers import parallel_map, worker_count
from spectrodiff.files import replacing, write_json
from spectrodiff.notes.instruments import instrument_name
from spectrodiff.notes.sequence import from_note_sequence
from spectrodiff.notes.tokenizer import NoteTokenizer

LIMIT = TokenizerConfig().max_tokens
_UNLIMITED = NoteTokenizer(TokenizerConfig(max_tokens=10**6))  # also encodes windows of over LIMIT tokens
_PIECES_PER_WORKER = 20  # as many as one process handles while another starts
_MAX_LISTED = 10  # suspicious pieces in the printed table


@dataclasses.dataclass(frozen=True)
class _PieceSummary:
    """The statistics of a piece; `notes` are counts by instrument, `tokens` the number of tokens of each window."""

    name: str
    split: str
    seconds: float
    stems: int
    notes: dict[str, int]
    tokens: list[int]
    problems: list[str]  # from `alignment_problems`


def summarize(folder: str | os.PathLike, workers: int | None = None) -> dict[str, Any]:
    """Returns statistics of the dataset in `folder` as JSON values, and writes summary.json and summary.png into it.

    They count consecutive windows of 256 frames and the tokens of the default tokenizer. Pieces whose audio does not
    seem to fit their notes are `suspicious`. If the files exist already, they are read instead.
    """
    folder = pathlib.Path(folder)
    path = folder / "summary.json"
    if path.exists() and (folder / "summary.png").exists():
        return json.loads(path.read_text())
    made = path.with_name("dataset_info.json").stat().st_mtime_ns
    dataset = _open(folder, made)
    places = [(split, index) for split in dataset.splits for index in range(len(dataset[split]))]
    processes = worker_count(workers, len(places), _PIECES_PER_WORKER)
    summaries = parallel_map(functools.partial(_summarize_piece, folder, made), places, processes)
    pieces = list(tqdm(summaries, f"summary of {folder.parent.name}", len(places), unit="piece", delay=2.0))
    metadata = json.loads(path.with_name("metadata.json").read_text())
    missing = {name: metadata.get(name, {}) for name in ("known_bad", "skipped")}
    summary = {"name": folder.parent.name, **_summary(dataset.splits, pieces), **missing}
    with replacing(folder / "summary.png") as temporary:
        _draw(temporary, summary, pieces)
    write_json(path, summary)
    return summary


def table(summary: dict[str, Any]) -> str:
    """Returns a summary as a readable table."""
    tokens = summary["tokens_per_window"]
    instruments = list(summary["instruments"].items())
    lines = {
        "hours": f"{summary['hours']:.2f}",
        "pieces": f"{summary['pieces']}" + (f", with {summary['stems']} stems" if summary["stems"] else ""),
        "splits": ", ".join(f"{split} {s['pieces']} ({s['hours']:.2f} h)" for split, s in summary["splits"].items()),
        "instruments": ", ".join(f"{name} {counts['notes']}" for name, counts in instruments[:12])
        + (f", and {len(instruments) - 12} more" if len(instruments) > 12 else "")
        + " notes",
        "windows": f"{tokens['windows']}; tokens: median {tokens['median']:.0f}, 90 % {tokens['p90']:.0f}, "
        f"99 % {tokens['p99']:.0f}, most {tokens['max']}; over {LIMIT}: {tokens['over_limit']:.2%}",
    }
    rows = [f"{name:>12}: {value}" for name, value in lines.items()]
    suspicious, known_bad, skipped = (summary[name] for name in ("suspicious", "known_bad", "skipped"))
    more = f" (the first {_MAX_LISTED} here, all in summary.json)" if len(suspicious) > _MAX_LISTED else ""
    for title, about, named in (
        (
            "suspicious",
            f"{len(suspicious)} of {summary['pieces']} pieces{more}",
            dict(list(suspicious.items())[:_MAX_LISTED]),
        ),
        ("left out", f"{len(known_bad)}, known to be bad; --no-skip_known_bad keeps them", known_bad),
        ("skipped", f"{len(skipped)}; to have them once they are fixed, delete the dataset first", skipped),
    ):
        if named:
            rows += [f"{title:>12}: {about}", *(f"{'':>14}{name}: {why}" for name, why in named.items())]
    return "\n".join(rows)


@functools.lru_cache(maxsize=1)
def _open(folder: pathlib.Path, made: int) -> Dataset:
    """Returns the dataset, cached; `made`, its time of writing, distinguishes it from an earlier one."""
    return open_dataset(folder.parent.parent, f"{folder.parent.name}/{folder.name}")


def _summarize_piece(folder: pathlib.Path, made: int, place: tuple[str, int]) -> _PieceSummary:
    split, index = place
    record = _open(folder, made)[split][index]
    notes = from_note_sequence(record["notes"])
    timeline = _UNLIMITED.timeline(notes)
    counts = collections.Counter(
        "drums" if drum else str(program) for program, drum in zip(notes.program, notes.is_drum, strict=True)
    )
    return _PieceSummary(
        name=record_name(record),
        split=split,
        seconds=count_samples(record["audio"]) / SAMPLE_RATE,
        stems=len(record["stems"]),
        notes=dict(counts),
        tokens=[len(_UNLIMITED.window(timeline, start)) for start in range(0, timeline.frames, WINDOW_FRAMES)],
        problems=alignment_problems(from_flac(record["audio"]), notes),
    )


def _summary(split_names: Sequence[str], pieces: Sequence[_PieceSummary]) -> dict[str, Any]:
    """Returns the statistics of all pieces as JSON values."""
    tokens = np.concatenate([piece.tokens for piece in pieces])
    notes, pieces_with = collections.Counter(), collections.Counter()
    for piece in pieces:
        notes.update(piece.notes)
        pieces_with.update(piece.notes.keys())
    splits = {}
    for split in split_names:
        members = [piece for piece in pieces if piece.split == split]
        hours = sum(piece.seconds for piece in members) / 3600
        windows = sum(len(piece.tokens) for piece in members)
        splits[split] = {"pieces": len(members), "hours": hours, "windows": windows}
    median, p90, p99 = np.percentile(tokens, [50, 90, 99])
    return {
        "hours": sum(piece.seconds for piece in pieces) / 3600,
        "pieces": len(pieces),
        "stems": sum(piece.stems for piece in pieces),
        "splits": splits,
        "instruments": {
            _instrument(key): {"notes": count, "pieces": pieces_with[key]} for key, count in notes.most_common()
        },
        "tokens_per_window": {
            "windows": len(tokens),
            "median": float(median),
            "p90": float(p90),
            "p99": float(p99),
            "max": int(tokens.max()),
            "over_limit": float((tokens > LIMIT).mean()),
        },
        "suspicious": {piece.name: "; ".join(piece.problems) for piece in pieces if piece.problems},
    }


def _instrument(key: str) -> str:
    """Returns the number and General MIDI name of a program."""
    return key if key == "drums" else f"{key} {instrument_name(int(key))}"


def _draw(path: pathlib.Path, summary: dict[str, Any], pieces: Sequence[_PieceSummary]) -> None:
    from matplotlib.figure import Figure  # pyplot would need a display

    figure = Figure(figsize=(12, 7), layout="constrained")
    figure.suptitle(f"{summary['name']}: {summary['hours']:.2f} hours, {summary['pieces']} pieces")
    (windows, lengths), (instruments, splits) = figure.subplots(2, 2)

    tokens = np.concatenate([piece.tokens for piece in pieces])
    windows.hist(tokens, bins=60)
    windows.axvline(LIMIT, color="k", linestyle="--", label=f"limit {LIMIT}")
    for percentile in ("median", "p90", "p99"):
        windows.axvline(summary["tokens_per_window"][percentile], color="C1", linewidth=1)
    windows.set(xlabel="tokens per window (lines: median, 90 %, 99 %)", ylabel="windows", yscale="log")
    windows.legend(loc="upper right")

    lengths.hist([piece.seconds / 60 for piece in pieces], bins=40)
    lengths.set(xlabel="length in minutes", ylabel="pieces")

    most = list(summary["instruments"].items())[:16][::-1]
    instruments.barh([name for name, _ in most], [counts["notes"] for _, counts in most])
    instruments.set(xlabel="notes")

    splits.barh(list(summary["splits"])[::-1], [counts["hours"] for counts in summary["splits"].values()][::-1])
    splits.set(xlabel="hours")
    figure.savefig(path, dpi=110)
