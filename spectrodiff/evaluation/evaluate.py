"""Evaluation of a synthesizer on the songs of a dataset, and of a grid of synthesizers.

An evaluation renders songs, measures them, and writes a report. Each step keeps its results in the workdir and skips
what is there already, so that an interrupted evaluation can be continued. The workdir of a grid holds the workdir of
each evaluation, `cells/CELL`, and `table.md` and `results.json` of all together.
"""

import dataclasses
import importlib.util
import itertools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from flax import nnx
from tqdm import tqdm

from spectrodiff.config import to_dict
from spectrodiff.data.dataset import Records
from spectrodiff.errors import InputError
from spectrodiff.evaluation.embeddings import Embedding
from spectrodiff.evaluation.measurements import (
    is_measured,
    is_transcribed,
    measure,
    read_measured,
    read_transcribed,
    results,
    transcribe,
)
from spectrodiff.evaluation.rendering import (
    ENCODED,
    SYNTHESISED,
    TRUE,
    RenderedSong,
    Run,
    SongMetadata,
    is_rendered,
    read_json,
    render,
    system_audio,
)
from spectrodiff.evaluation.report import Example, joined, markdown, page
from spectrodiff.evaluation.songs import Audio, Song, Songs, Stems
from spectrodiff.evaluation.transcription import Transcriber
from spectrodiff.files import file_name, write_json, write_text
from spectrodiff.fingerprint import fingerprint
from spectrodiff.mel_sampler import check_seed
from spectrodiff.models.layers import Buffer
from spectrodiff.synthesizer import Synthesizer

Results = dict[str, Any]  # what `evaluate` returns


@dataclasses.dataclass(frozen=True)
class Shard:
    """The part of the songs that one process works on: the `number`th, counted from 1, of `of` parts."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Parses a shard given as NUMBER/OF, such as "2/8".

        Raises:
          InputError: the text is not of this form, or NUMBER is not from 1 to OF.
        """
        number, _, of = text.partition("/")
        if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
            raise InputError(f"shard is {text!r}; give 1/8 to 8/8 for eight processes")
        return cls(int(number), int(of))

    def part(self, indices: range) -> range:
        """Returns those of `indices` that belong to this shard: every `of`th of them."""
        return indices[self.number - 1 :: self.of]


def evaluate(
    synthesizer: Synthesizer,
    records: Records,
    workdir: pathlib.Path,
    embeddings: Sequence[Embedding],
    transcriber: Transcriber | None = None,
    *,
    checkpoint: str = "",
    sampling: Mapping[str, Any] | None = None,
    seed: int = 0,
    seconds: float | None = None,
    limit: int | None = None,
    batch: int = 4,
    stems: bool = False,
    soundfont: str | None = None,
    remarks: Sequence[str] = (),
    shard: Shard | None = None,
    examples: int = 3,
) -> dict[str, Any] | None:
    """Renders and measures the first `limit` songs, and writes results.json, table.md and report.html into `workdir`.

    Songs and measurements that are already in `workdir` are not made again. With a `shard`, only the songs of that
    shard are rendered and measured, and no report is written: once all shards are done, a call without one writes it.

    Args:
      synthesizer: the model and the vocoder that are evaluated.
      records: the songs with their notes and, if the dataset has them, their stems.
      workdir: the folder of songs, measurements and report.
      embeddings: the models in whose embeddings Fréchet and kernel distances are measured.
      transcriber: the model that transcribes notes, which are scored; if it is None, no notes are scored.
      checkpoint: the checkpoint's name, for run.json and the report.
      sampling: options of `Synthesizer.mels`.
      seed: the seed from which each song's own is derived.
      seconds: only so much of the beginning of each song is used; None uses all of it.
      limit: the number of songs, the first of the split; None for all.
      batch: the number of songs that are rendered at once.
      stems: whether stems of a single instrument family are rendered alone as well, and their notes scored.
      soundfont: the path of a SoundFont that plays the notes for comparison.
      remarks: lines for the report.
      shard: the part of the songs to work on; None for all, and the report.
      examples: the number of songs that can be listened to in the report.

    Returns:
      The content of results.json; with a `shard`, None.

    Raises:
      InputError: an option is out of range, the workdir holds songs made with other settings, or a song cannot be used.
    """
    if stems and transcriber is None:
        raise InputError("stems are scored by their notes: leave out --stems, or let notes be transcribed")
    sampling = to_dict(synthesizer.mel_sampler.sampling(**sampling or {}))
    check_seed(seed)
    for name, value in (("batch", batch), ("limit", limit), ("seconds", seconds)):
        if value is not None and not 0 < value < float("inf"):
            raise InputError(f"{name} is {value}; choose more than 0")
    run = Run(
        checkpoint=str(checkpoint),
        weights=fingerprint(synthesizer.model, synthesizer.config),
        vocoder=synthesizer.vocoder.identity(),
        dataset=f"{records.dataset} ({records.folder.name})",
        split=records.split,
        seconds=seconds,
        sampling=sampling,
        seed=seed,
        soundfont=soundfont,
    )
    run.claim(workdir)
    claim_embeddings(workdir, embeddings)
    songs = Songs(records, seconds)
    indices = range(min(len(songs), limit or len(songs)))
    names = [songs.name(index) for index in indices]
    own = shard.part(indices) if shard else indices  # those that this process renders and measures
    options = {**sampling, "seed": seed, "batch": batch}

    _render_missing(synthesizer, songs, own, workdir, options)
    missing = [index for index in own if not is_measured(workdir, names[index], embeddings, transcriber)]
    for index in tqdm(missing, "measuring", unit="song", disable=not missing):
        song, rendered = songs[index], RenderedSong.load(workdir, names[index])
        audio = system_audio(song, rendered, songs.audio_after(index), soundfont)
        measure(workdir, song, audio, embeddings, transcriber)

    parts = Stems.of(songs, indices if stems else range(0))
    own = shard.part(range(len(parts))) if shard else range(len(parts))
    _render_missing(synthesizer, parts, own, workdir, options)
    missing = [index for index in own if not is_transcribed(workdir, parts.name(index), transcriber)]
    for index in tqdm(missing, "measuring", unit="stem", disable=not missing):
        stem = parts[index]
        transcribe(workdir, stem, _main_systems(stem, RenderedSong.load(workdir, stem.name)), transcriber)

    if shard:
        return None
    remarks = list(remarks)
    if transcriber is None:
        installed = all(map(importlib.util.find_spec, ("basic_pitch", "onnxruntime", "mir_eval")))
        needed = "" if installed else ": see basic-pitch and eval in what spectrodiff doctor prints"
        remarks.append(f"No notes were transcribed{needed}.")
    if stems and not len(parts):
        remarks.append("There are no stems that a single family plays.")
    found = results(
        [SongMetadata.load(workdir, name) for name in names],
        [read_measured(workdir, name, embeddings, transcriber) for name in names],
        embeddings,
        remarks,
        transcriber,
        [
            (parts.family(index), read_transcribed(workdir, parts.name(index), transcriber))
            for index in range(len(parts))
        ],
    )
    found = {"run": dataclasses.asdict(run), "model": _model_description(synthesizer), **found}
    write_json(workdir / "results.json", found)
    write_text(workdir / "table.md", markdown(found))
    shown = [
        Example(names[index], _main_systems(songs[index], RenderedSong.load(workdir, names[index])))
        for index in indices[:examples]
    ]
    write_text(workdir / "report.html", page(found, shown))
    return found


def claim_embeddings(workdir: pathlib.Path, embeddings: Sequence[Embedding]) -> None:
    """Records by which models a workdir's songs are embedded, or checks that they are the same as before.

    Raises:
      InputError: two of the `embeddings` have the same name, the workdir holds embeddings by another model of the name
        of one of them, or it cannot be written.
    """
    if len({model.name for model in embeddings}) < len(embeddings):
        raise InputError("two embeddings have the same name; evaluate with one after the other, in different workdirs")
    for model in embeddings:
        path, ours = workdir / "embeddings" / f"{model.name}.json", {"identity": model.identity}
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            write_json(path, ours)
        elif read_json(path) != ours:
            raise InputError(f"{workdir} holds embeddings by another model {model.name}; give another workdir")


def _render_missing(
    synthesizer: Synthesizer, songs: Songs | Stems, indices: range, workdir: pathlib.Path, options: dict[str, Any]
) -> None:
    """Renders those of the songs at `indices` that the workdir does not hold yet."""
    missing = [index for index in indices if not is_rendered(workdir, songs.name(index))]
    for rendered in render(synthesizer, songs, missing, **options):
        rendered.save(workdir)


def _main_systems(song: Song, rendered: RenderedSong) -> dict[str, Audio]:
    """Returns the audio that listeners compare: the true one, its mel through the vocoder, and the synthesised one."""
    audio = system_audio(song, rendered)
    return {system: audio[system] for system in (TRUE, ENCODED, SYNTHESISED)}


def _model_description(synthesizer: Synthesizer) -> dict[str, Any]:
    """Returns the properties of a model that the table of a grid lists."""
    leaves = jax.tree.leaves(nnx.state(synthesizer.model, nnx.Any(nnx.Param, Buffer)))
    return {
        "parameters": sum(leaf.size for leaf in leaves),
        "with_context": synthesizer.config.model.with_context,
    }


@dataclasses.dataclass(frozen=True)
class Cell:
    """One evaluation of a grid. If `steps` or `guidance` is None, the checkpoint's default is used."""

    checkpoint: str
    steps: int | None
    guidance: float | None

    @property
    def folder(self) -> str:
        """The name of the evaluation's workdir, which differs from that of any other cell."""
        return f"{file_name(self.checkpoint, 180)}, steps {_format(self.steps)}, guidance {_format(self.guidance)}"


def _format(value: int | float | None) -> str:
    return "default" if value is None else f"{value:g}"


def grid(checkpoints: Sequence[str], steps: Sequence[int | None], guidance: Sequence[float | None]) -> list[Cell]:
    """Returns all combinations without duplicates, in the order of checkpoints, so that each has to be loaded once."""
    return [Cell(*values) for values in dict.fromkeys(itertools.product(checkpoints, steps, guidance))]


def evaluate_grid(
    cells: Sequence[Cell], workdir: pathlib.Path, run: Callable[[Cell, pathlib.Path], Results | None]
) -> list[Results] | None:
    """Calls `run` with each cell and its workdir, and joins the results in one table.

    The table is written after each cell, so that there is one before all are finished. A cell that was interrupted is
    continued. If `run` works on one shard of the songs, it returns None; then there is no table, and None is returned.

    Raises:
      InputError: `run` raises it, or the workdir cannot be written.
    """
    found = []
    for cell in cells:
        result = run(cell, workdir / "cells" / cell.folder)
        if result is None:
            continue
        found.append(result)
        write_json(workdir / "results.json", {"cells": found})
        write_text(workdir / "table.md", joined(found))
    return found or None
