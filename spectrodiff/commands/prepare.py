"""`prepare`: makes a dataset from a corpus."""

import argparse
import textwrap
from typing import NamedTuple

from spectrodiff.errors import InputError

_SKIP_KNOWN_BAD = {
    "--skip_known_bad": {
        "action": argparse.BooleanOptionalAction,
        "default": True,
        "help": "leave out recordings with labels that are known to be wrong (default: yes)",
    }
}

_SUBMIXES = {
    "--submixes": {"type": int, "default": 0, "help": "random sub-mixes of each training song (default: 0)"},
    "--seed": {"type": int, "default": 0, "help": "seed of the sub-mixes (default: 0)"},
}
_AUDIO = {
    "--audio": {
        "choices": ("mic", "pickup_mix", "both"),
        "default": "mic",
        "help": "the microphone, the pickups, or each excerpt with both (default: mic)",
    }
}
_FOLDER = {
    "--csv": {"help": "table with columns name, split and program (default: splits.csv in the folder, if it exists)"},
    "--name": {"default": "folder", "help": "name of the dataset (default: folder)"},
}


class _Corpus(NamedTuple):
    """What the help says of a corpus, and its own options, which are fields of its class."""

    title: str
    about: str  # size and contents, place, licence
    options: dict[str, dict] = {}  # noqa: RUF012 (not changed)


_RENDERED = _Corpus(
    "music from free packages, played by a SoundFont",
    "As many hours as are asked for, with exact note times, made on this machine from packages of Debian, Ubuntu and "
    "PyPI: `spectrodiff doctor` says which are missing, and nothing is downloaded. Licences of its sources: exercises "
    "and chord charts made by rule, no rights reserved, the charts played in the styles of MMA (GPL-2 or later); music "
    "of the game Freedoom (BSD-3-Clause); scores of the music21 corpus, whose terms vary by encoder (CC BY-SA 4.0 for "
    "example) and may exclude commercial use; the SoundFont FluidR3 Mono (MIT).",
)
_CORPORA = {
    "maestro": _Corpus(
        "MAESTRO v3, piano",
        "199 hours of performances on pianos that recorded their keys; a zip of 101 GB, unpacked 120 GB. From "
        "https://magenta.tensorflow.org/datasets/maestro. Licence: CC BY-NC-SA 4.0.",
    ),
    "slakh": _Corpus(
        "Slakh2100-redux, bands and orchestras, with stems",
        "1710 songs, in proportion 118 hours, rendered with sampled instruments: Slakh2100 (2100 songs, 145 hours) "
        "without its duplicates; an archive of 104 GB. From https://zenodo.org/records/4599666. Licence: CC BY 4.0.",
        _SUBMIXES | _SKIP_KNOWN_BAD,
    ),
    "cerberus4": _Corpus(
        "quartets of bass, drums, guitar and piano in Slakh2100-redux",
        "All combinations of one of each in a song, mixed from the stems of Slakh2100-redux, which is all that it "
        "needs. Gardner et al. (2022) had 542.6 hours from 1327 songs, and do not say whether of redux. From "
        "https://zenodo.org/records/4599666, an archive of 104 GB. Licence: CC BY 4.0.",
        _SKIP_KNOWN_BAD,
    ),
    "guitarset": _Corpus(
        "GuitarSet, acoustic guitar",
        "3 hours, comping and solos of six players; 0.7 GB with the audio of the microphone or of the pickups. From "
        "https://zenodo.org/records/3371780. Licence: CC BY 4.0.",
        _AUDIO | _SKIP_KNOWN_BAD,
    ),
    "musicnet": _Corpus(
        "MusicNet, classical music",
        "34 hours of solo and chamber music, with notes aligned by dynamic time warping; an archive of 11 GB. From "
        "https://zenodo.org/records/5120004. Licence: CC BY 4.0.",
    ),
    "urmp": _Corpus(
        "URMP, chamber music, with stems",
        "1.3 hours of duets to quintets of strings, woodwinds and brass; 12.5 GB with its videos. From "
        "https://labsites.rochester.edu/air/projects/URMP.html. Licence: for research that is not commercial.",
    ),
    "groove": _Corpus(
        "Groove MIDI, drums",
        "13.6 hours of drumming on an electronic kit that recorded its pads; a zip of 4.8 GB. From "
        "https://magenta.tensorflow.org/datasets/groove. Licence: CC BY 4.0.",
    ),
    "folder": _Corpus(
        "recordings of your own",
        "Audio files (wav, flac, mp3, ogg, aiff and others, of any sample rate) beside MIDI files of the same names. "
        "Size and licence are those of your recordings.",
        _FOLDER,
    ),
}


def add(commands) -> None:
    parser = commands.add_parser(
        "prepare",
        help="make a dataset from a corpus",
        description=_corpora(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        examples=[
            "prepare rendered --data_dir data --hours 24",
            "prepare maestro --manual_dir maestro-v3.0.0 --data_dir data",
            "prepare folder --manual_dir my/recordings --data_dir data --name mine",
        ],
    )
    corpora = parser.add_subparsers(dest="corpus", required=True, metavar="CORPUS")
    _add_rendered(corpora)
    for name, corpus in _CORPORA.items():
        parser = corpora.add_parser(
            name,
            help=corpus.title,
            description=_sentence(corpus),
            examples=[f"prepare {name} --manual_dir FOLDER --data_dir data"],
            usage="%(prog)s --manual_dir MANUAL_DIR --data_dir DATA_DIR [options]",
        )
        folders = _add_folders(parser)
        folders.add_argument("--manual_dir", help="folder of the corpus, as its authors distribute it")
        if corpus.options:
            own = parser.add_argument_group("recordings")
            for flag, arguments in corpus.options.items():
                own.add_argument(flag, **arguments)
        work = _add_work(parser)
        work.add_argument("--skip_bad", action="store_true", help="leave out, and list, recordings that cannot be used")
        work.add_argument("--beam", action="store_true", help="read and write with Apache Beam")
        work.add_argument("--beam_options", help='options of Beam, such as "--runner=FlinkRunner"; implies --beam')
        parser.set_defaults(run=_prepare)


def _sentence(corpus: _Corpus) -> str:
    return f"{corpus.title[0].upper()}{corpus.title[1:]}. {corpus.about}"


def _corpora() -> str:
    """Describes all corpora, for the help."""
    wrapper = textwrap.TextWrapper(96, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False)
    corpora = {"rendered": _RENDERED, **_CORPORA}
    return "\n".join(f"{name}\n{wrapper.fill(_sentence(corpus))}" for name, corpus in corpora.items())


def _add_folders(parser):
    folders = parser.add_argument_group("folders")
    folders.add_argument("--data_dir", required=True, help="folder of all datasets; an unfinished dataset is continued")
    return folders


def _add_work(parser):
    work = parser.add_argument_group("reading and writing")
    work.add_argument("--workers", type=int, help="processes (default: one per core)")
    return work


def _add_rendered(corpora) -> None:
    parser = corpora.add_parser(
        "rendered",
        help=_RENDERED.title,
        description=_sentence(_RENDERED),
        examples=["prepare rendered --data_dir data --hours 24"],
        usage="%(prog)s --data_dir DATA_DIR [options]",
    )
    _add_folders(parser)
    music = parser.add_argument_group("music")
    music.add_argument("--hours", type=float, default=24.0, help="hours of audio, in all (default: 24)")
    music.add_argument("--seed", type=int, default=0, help="seed of the corpus (default: 0)")
    music.add_argument(
        "--programs",
        choices=("midi_class", "family"),
        default="midi_class",
        help="instruments: the first program of each General MIDI family, or any of it (default: midi_class)",
    )
    _add_work(parser)
    parser.set_defaults(run=_prepare_rendered)


def _prepare(options) -> None:
    from spectrodiff.data.builders import corpus
    from spectrodiff.data.builders.preparation import prepare

    special = [flag.removeprefix("--") for flag in _CORPORA[options.corpus].options]
    chosen = corpus(options.corpus, **{name: getattr(options, name) for name in special})
    if options.manual_dir is None:
        where = f"; it comes from {chosen.homepage}" if chosen.homepage else ""
        raise InputError(f"prepare {options.corpus} needs --manual_dir, the folder of the corpus{where}")
    beam_options = "" if options.beam and options.beam_options is None else options.beam_options
    folder = prepare(
        chosen,
        options.manual_dir,
        options.data_dir,
        workers=options.workers,
        skip_bad=options.skip_bad,
        beam_options=beam_options,
    )
    _print_summary(folder, options.workers)


def _prepare_rendered(options) -> None:
    from spectrodiff.data.builders.rendered.corpus import prepare_rendered

    if not options.hours > 0:
        raise InputError(f"hours is {options.hours:g}; choose more than 0")
    folder = prepare_rendered(
        options.data_dir, hours=options.hours, workers=options.workers, seed=options.seed, programs=options.programs
    )
    _print_summary(folder, options.workers)


def _print_summary(folder, workers) -> None:
    """Prints the statistics of the dataset."""
    from spectrodiff.data.builders.summary import summarize, table

    print(f"{folder} is prepared:\n{table(summarize(folder, workers))}")
