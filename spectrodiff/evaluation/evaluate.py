"""An evaluation from a checkpoint and a dataset to its report, in steps that each go on where they stopped."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from spectrodiff.data.dataset import Records
from spectrodiff.errors import InputError
from spectrodiff.evaluation.embeddings import Embedding
from spectrodiff.evaluation.report import Example, markdown, page
from spectrodiff.evaluation.results import results
from spectrodiff.evaluation.runs import Rendered, Run, Songs, fingerprint, is_rendered, render
from spectrodiff.evaluation.systems import ENCODED, SYNTHESISED, TRUE, is_measured, measure, read_measured, system_audio
from spectrodiff.evaluation.transcription import Transcriber
from spectrodiff.files import replacing, write_json
from spectrodiff.synthesizer import Synthesizer


@dataclasses.dataclass(frozen=True)
class Share:
    """Part `number`, from 1, of `of` parts of the songs: one process's work."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> "Share":
        """Of "2/8".

        Raises:
          InputError: it is nothing of that kind.
        """
        number, _, of = text.partition("/")
        if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
            raise InputError(f"shard is {text!r}; give 1/8 to 8/8 for eight processes")
        return cls(int(number), int(of))


def evaluate(
    synthesizer: Synthesizer,
    records: Records,
    workdir: pathlib.Path,
    embeddings: Sequence[Embedding],
    transcriber: Transcriber | None = None,
    *,
    checkpoint: str = "",
    vocoder: str | None = None,
    sampler: str | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    seed: int = 0,
    seconds: float | None = None,
    limit: int | None = None,
    batch: int = 4,
    share: Share | None = None,
    examples: int = 3,
) -> dict[str, Any] | None:
    """Renders and measures the first `limit` songs, and writes results.json, table.md and report.html.

    What lies in the workdir is not made again. With a `share`, only that part of the songs is worked on, and None
    returned: the report is for a call without. Options of sampling as `Synthesizer.mels`; `seconds` cuts each song;
    `checkpoint` and `vocoder` are only noted. Returns what results.json holds.

    Raises:
      InputError: an option is out of range, the workdir is another run's, or a song cannot be used.
    """
    sampler, steps, guidance = synthesizer.check_sampling(sampler, steps, guidance, seed)
    for name, value in (("batch", batch), ("limit", limit), ("seconds", seconds)):
        if value is not None and not 0 < value < float("inf"):
            raise InputError(f"{name} is {value}; choose more than 0")
    run = Run(
        checkpoint=str(checkpoint),
        weights=fingerprint(synthesizer.model),
        vocoder=str(vocoder) if vocoder else type(synthesizer.vocoder).__name__,
        dataset=f"{records.dataset} ({records.folder.name})",
        split=records.split,
        seconds=seconds,
        sampler=sampler,
        steps=steps,
        guidance=guidance,
        seed=seed,
    )
    run.claim(workdir)
    songs = Songs(records, seconds)
    indices = range(min(len(songs), limit or len(songs)))
    ours = indices[share.number - 1 :: share.of] if share else indices
    names = {index: songs.name(index) for index in indices}

    missing = [index for index in ours if not is_rendered(workdir, names[index])]
    options = {"sampler": sampler, "steps": steps, "guidance": guidance, "seed": seed, "batch": batch}
    for rendered in render(synthesizer, songs, missing, **options):
        rendered.save(workdir)

    missing = [index for index in ours if not is_measured(workdir, names[index], embeddings, transcriber)]
    for index in tqdm(missing, "measuring", unit="song", disable=not missing):
        song, rendered = songs[index], Rendered.load(workdir, names[index])
        audio = system_audio(song, rendered, songs.audio_after(index))
        measure(workdir, song, audio, embeddings, transcriber)

    if share:
        return None
    remarks = (
        [] if transcriber else ["No notes were transcribed; to do so needs basic-pitch, onnxruntime and mir_eval."]
    )
    found = results(
        [Rendered.load(workdir, name) for name in names.values()],
        [read_measured(workdir, name, embeddings, transcriber) for name in names.values()],
        embeddings,
        remarks,
    )
    found = {"run": dataclasses.asdict(run), **found}
    write_json(workdir / "results.json", found)
    with replacing(workdir / "table.md") as temporary:
        temporary.write_text(markdown(found), encoding="utf-8")
    shown = [_example(songs, index, Rendered.load(workdir, names[index])) for index in indices[:examples]]
    with replacing(workdir / "report.html") as temporary:
        temporary.write_text(page(found, shown), encoding="utf-8")
    return found


def _example(songs: Songs, index: int, rendered: Rendered) -> Example:
    audio = system_audio(songs[index], rendered, None)
    return Example(rendered.name, {system: audio[system] for system in (TRUE, ENCODED, SYNTHESISED)})
