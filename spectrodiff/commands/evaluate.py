"""`evaluate`: how well a checkpoint plays the songs of a dataset."""

import importlib.util
import pathlib

from spectrodiff.commands.common import keep_compiled_programs
from spectrodiff.errors import InputError


def add(commands) -> None:
    parser = commands.add_parser("evaluate", help="render songs of a dataset and compare them with their recordings")
    parser.add_argument("--checkpoint", default="demo", help="weights, as for synthesize (default: demo)")
    parser.add_argument("--vocoder", help="as for synthesize (default: the checkpoint's)")
    parser.add_argument("--data_dir", default="data", help="folder of all datasets (default: data)")
    parser.add_argument("--dataset", default="rendered", help="a prepared dataset (default: rendered)")
    parser.add_argument("--split", default="test", help="train, validation or test (default: test)")
    parser.add_argument(
        "--workdir", required=True, type=pathlib.Path, help="folder of songs and report; an unfinished one is continued"
    )
    parser.add_argument("--steps", type=int, help="sampling steps (default: the checkpoint's)")
    parser.add_argument("--sampler", help="ddpm, ddim or dpmpp (default: the checkpoint's)")
    parser.add_argument("--guidance", type=float, help="weight of the notes, 1 is plain (default: the checkpoint's)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same songs (default: 0)")
    parser.add_argument("--limit", type=int, help="only the first so many songs (default: all)")
    parser.add_argument("--seconds", type=float, help="only so much of the beginning of each song (default: all)")
    parser.add_argument("--batch", type=int, default=4, help="songs rendered at once (default: 4)")
    parser.add_argument(
        "--embedding",
        nargs="+",
        default=["musicnn"],
        metavar="MODEL",
        help="musicnn, vggish=FOLDER or trill=FOLDER, one or more (default: musicnn)",
    )
    parser.add_argument("--no_transcription", action="store_true", help="do not transcribe notes, which takes long")
    parser.add_argument("--shard", help="work on one part of the songs, such as 2/8; then run without it to report")
    parser.add_argument("--examples", type=int, default=3, help="songs to be heard in the report (default: 3)")
    parser.set_defaults(run=_evaluate)


def _evaluate(options) -> None:
    from spectrodiff.data.dataset import open_dataset
    from spectrodiff.evaluation.embeddings import find_embedding
    from spectrodiff.evaluation.evaluate import Share, evaluate
    from spectrodiff.evaluation.report import markdown
    from spectrodiff.synthesizer import Synthesizer

    share = Share.parse(options.shard) if options.shard else None
    if options.examples < 0:
        raise InputError(f"examples is {options.examples}; choose 0 or more")
    records = open_dataset(options.data_dir, options.dataset)[options.split]
    keep_compiled_programs()
    found = evaluate(
        Synthesizer.from_pretrained(options.checkpoint, options.vocoder),
        records,
        options.workdir,
        [find_embedding(name) for name in dict.fromkeys(options.embedding)],
        None if options.no_transcription else find_transcriber(),
        checkpoint=options.checkpoint,
        vocoder=options.vocoder,
        sampler=options.sampler,
        steps=options.steps,
        guidance=options.guidance,
        seed=options.seed,
        seconds=options.seconds,
        limit=options.limit,
        batch=options.batch,
        share=share,
        examples=options.examples,
    )
    if found is None:
        print(f"part {options.shard} of the songs is in {options.workdir}; run without --shard once all parts are")
    else:
        print(markdown(found))
        print(f"{options.workdir / 'report.html'}: scores, pictures and sound of single songs")


def find_transcriber():
    """Basic-pitch where all that it needs is installed, else None."""
    if not all(map(importlib.util.find_spec, ("basic_pitch", "onnxruntime", "mir_eval"))):
        return None
    from spectrodiff.evaluation.basic_pitch import BasicPitch

    return BasicPitch()
