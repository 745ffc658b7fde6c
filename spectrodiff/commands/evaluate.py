"""`evaluate`: renders the songs of a dataset and compares them with their recordings."""

import functools
import importlib
import importlib.util
import pathlib

from spectrodiff.commands.common import keep_compiled_programs
from spectrodiff.commands.options import add_sampling_options, sampling_of
from spectrodiff.errors import InputError, reason


def add(commands) -> None:
    parser = commands.add_parser(
        "evaluate",
        help="render songs of a dataset and compare them with their recordings",
        examples=[
            "evaluate --checkpoint demo --data_dir data --dataset rendered --workdir runs/report",
            "evaluate --checkpoint runs/a/export runs/b/export --guidance 1 2 --limit 20 --workdir runs/grid",
        ],
        usage="%(prog)s --workdir WORKDIR [options]",
    )
    _add_models(parser.add_argument_group("models"))
    add_sampling_options(parser.add_argument_group("sampling"), several=True)
    _add_songs(parser.add_argument_group("songs"))
    _add_measures(parser.add_argument_group("measures"))
    report = parser.add_argument_group("report")
    report.add_argument(
        "--workdir",
        required=True,
        type=pathlib.Path,
        help="folder for songs and report; an unfinished evaluation is continued",
    )
    report.add_argument("--examples", type=int, default=3, help="songs with audio in the report (default: 3)")
    parser.set_defaults(run=_evaluate)


def _add_models(group) -> None:
    group.add_argument(
        "--checkpoint",
        nargs="+",
        default=["demo"],
        help="weights, as for synthesize (default: demo); where there are several, or several --steps or --guidance, "
        "all their combinations are evaluated and joined in one table",
    )
    group.add_argument("--vocoder", help="as for synthesize (default: the checkpoint's)")


def _add_songs(group) -> None:
    group.add_argument("--data_dir", default="data", help="folder of all datasets (default: data)")
    group.add_argument("--dataset", default="rendered", help="a prepared dataset (default: rendered)")
    group.add_argument("--split", default="test", help="train, validation or test (default: test)")
    group.add_argument("--limit", type=int, help="number of songs, from the first (default: all)")
    group.add_argument("--seconds", type=float, help="seconds of each song, from its beginning (default: all)")
    group.add_argument("--batch", type=int, default=4, help="songs rendered at once (default: 4)")
    group.add_argument("--shard", help="one part of the songs, such as 2/8; run again without it for the report")


def _add_measures(group) -> None:
    group.add_argument(
        "--embedding",
        nargs="+",
        default=["musicnn"],
        metavar="MODEL",
        help="musicnn, vggish=SAVED_MODEL, trill=SAVED_MODEL or clap=FILE.onnx, one or more; each a path, or the "
        "address of a file, SavedModels as .tar.gz (default: musicnn)",
    )
    group.add_argument("--no_transcription", action="store_true", help="do not transcribe notes, which is slow")
    group.add_argument(
        "--transcriber",
        metavar="MODULE:NAME",
        help="function that returns a transcriber, see spectrodiff.evaluation.transcription (default: basic-pitch)",
    )
    group.add_argument(
        "--stems", action="store_true", help="render stems alone as well, and score notes by instrument family"
    )
    group.add_argument(
        "--soundfont",
        help="a SoundFont to compare with (default: FluidR3 if it is installed, except for the dataset `rendered`, "
        "which was played by it)",
    )


def _evaluate(options) -> None:
    from spectrodiff.data.dataset import open_dataset
    from spectrodiff.evaluation.embeddings import find_embedding
    from spectrodiff.evaluation.evaluate import Shard, evaluate, evaluate_grid, grid
    from spectrodiff.evaluation.report import joined, markdown
    from spectrodiff.files import local_path
    from spectrodiff.mel_sampler import check_seed
    from spectrodiff.pretrained.formats import open_checkpoint
    from spectrodiff.pretrained.hub import find_checkpoint
    from spectrodiff.synthesizer import Synthesizer

    shard = Shard.parse(options.shard) if options.shard else None
    if options.examples < 0:
        raise InputError(f"examples is {options.examples}; choose 0 or more")
    local_path(options.workdir)
    check_seed(options.seed)
    records = open_dataset(options.data_dir, options.dataset)[options.split]
    cells = grid(options.checkpoint, options.steps or [None], options.guidance or [None])
    given = sampling_of(options)
    decoders = {name: open_checkpoint(find_checkpoint(name)).config.decoder for name in options.checkpoint}
    for cell in cells:  # before any work is done
        decoders[cell.checkpoint].sampled(**given | {"steps": cell.steps, "guidance": cell.guidance})
    soundfont, remarks = find_soundfont(options.soundfont, records.dataset)
    embeddings = [find_embedding(name) for name in dict.fromkeys(options.embedding)]
    transcriber = None if options.no_transcription else find_transcriber(options.transcriber)
    keep_compiled_programs()
    synthesizer = functools.lru_cache(maxsize=1)(Synthesizer.from_pretrained)

    def run(cell, workdir: pathlib.Path):
        return evaluate(
            synthesizer(cell.checkpoint, options.vocoder),
            records,
            workdir,
            embeddings,
            transcriber,
            checkpoint=cell.checkpoint,
            sampling=given | {"steps": cell.steps, "guidance": cell.guidance},
            seed=options.seed,
            seconds=options.seconds,
            limit=options.limit,
            batch=options.batch,
            stems=options.stems,
            soundfont=soundfont,
            remarks=remarks,
            shard=shard,
            examples=options.examples,
        )

    if len(cells) == 1:
        found = run(cells[0], options.workdir)
        table = markdown(found) if found else ""
    else:
        found = evaluate_grid(cells, options.workdir, run)
        table = joined(found) if found else ""
    if not found:
        print(f"part {options.shard} of the songs is in {options.workdir}; run without --shard once all parts are")
        return
    print(table)
    where = options.workdir if len(cells) == 1 else options.workdir / "cells" / "*"
    print(f"{where / 'report.html'}: scores, plots and audio of single songs")


def find_soundfont(path: str | None, dataset: str) -> tuple[str | None, list[str]]:
    """Returns the SoundFont that plays the notes for comparison, and remarks for the report where there is none.

    Raises:
      InputError: the SoundFont at `path` cannot be played.
    """
    from spectrodiff.data.soundfont import SOUNDFONT, require_fluidsynth

    if path is not None:
        require_fluidsynth(path)
        return path, []
    if dataset.split("/")[0] == "rendered":  # the reference audio was played by it
        return None, []
    try:
        require_fluidsynth()
    except InputError as error:
        return None, [f"No SoundFont played the notes: {error}."]
    return SOUNDFONT, []


def find_transcriber(name: str | None = None):
    """Returns the transcriber of a function MODULE:NAME, or by default basic-pitch if it is installed, or else None.

    Raises:
      InputError: there is no such module or function, or it does not return a transcriber.
    """
    if name is not None:
        return _make_transcriber(name)
    if not all(map(importlib.util.find_spec, ("basic_pitch", "onnxruntime", "mir_eval"))):
        return None
    from spectrodiff.evaluation.basic_pitch import BasicPitch

    return BasicPitch()


def _make_transcriber(name: str):
    from spectrodiff.evaluation.transcription import Transcriber

    module, _, attribute = name.partition(":")
    try:
        made = getattr(importlib.import_module(module), attribute)()
    except InputError:
        raise
    except Exception as error:  # modules may raise any exception
        raise InputError(f"no transcriber {name!r}: {reason(error)}; give MODULE:NAME that can be imported") from error
    if not isinstance(made, Transcriber):
        raise InputError(f"{name} does not return a transcriber; see spectrodiff.evaluation.transcription.Transcriber")
    return made
