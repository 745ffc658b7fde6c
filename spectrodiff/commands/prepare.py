"""`prepare`: makes a dataset from a corpus."""

import argparse

from spectrodiff.errors import InputError

_SKIP_KNOWN_BAD = {
    "--skip_known_bad": {
        "action": argparse.BooleanOptionalAction,
        "default": True,
        "help": "leave out recordings with labels that are known to be wrong (default: yes)",
    }
}

# The options of each corpus that has to be downloaded: the flags are fields of its class.
_OPTIONS = {
    "maestro": {},
    "slakh": {
        "--submixes": {"type": int, "default": 0, "help": "random sub-mixes of each training song (default: 0)"},
        "--seed": {"type": int, "default": 0, "help": "seed of the sub-mixes (default: 0)"},
        **_SKIP_KNOWN_BAD,
    },
    "cerberus4": _SKIP_KNOWN_BAD,
    "guitarset": {
        "--audio": {
            "choices": ("mic", "pickup_mix", "both"),
            "default": "mic",
            "help": "the microphone, the pickups, or each excerpt with both (default: mic)",
        },
        **_SKIP_KNOWN_BAD,
    },
    "musicnet": {},
    "urmp": {},
    "groove": {},
    "folder": {
        "--csv": {
            "help": "table with columns name, split and program (default: splits.csv in the folder, if it exists)"
        },
        "--name": {"default": "folder", "help": "name of the dataset (default: folder)"},
    },
}


def add(commands) -> None:
    parser = commands.add_parser("prepare", help="make a dataset from a corpus")
    corpora = parser.add_subparsers(dest="corpus", required=True, metavar="CORPUS")
    _add_rendered(corpora)
    for name, special in _OPTIONS.items():
        about = "pairs of audio and MIDI files of your own" if name == "folder" else f"the corpus {name}"
        parser = corpora.add_parser(name, help=about)
        _add_common(parser)
        parser.add_argument("--manual_dir", help="folder of the corpus, as its authors distribute it")
        parser.add_argument(
            "--skip_bad", action="store_true", help="leave out, and list, recordings that cannot be used"
        )
        parser.add_argument("--beam", action="store_true", help="read and write with Apache Beam")
        parser.add_argument("--beam_options", help='options of Beam, such as "--runner=FlinkRunner"; implies --beam')
        for flag, arguments in special.items():
            parser.add_argument(flag, **arguments)
        parser.set_defaults(run=_prepare)


def _add_common(parser) -> None:
    parser.add_argument("--data_dir", required=True, help="folder of all datasets; an unfinished dataset is continued")
    parser.add_argument("--workers", type=int, help="processes (default: one per core)")


def _add_rendered(corpora) -> None:
    parser = corpora.add_parser("rendered", help="MIDI from free packages, played by a SoundFont")
    _add_common(parser)
    parser.add_argument("--hours", type=float, default=24.0, help="hours of audio, in all (default: 24)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the corpus (default: 0)")
    parser.add_argument(
        "--programs",
        choices=("midi_class", "family"),
        default="midi_class",
        help="instruments: the first program of each General MIDI family, or any of it (default: midi_class)",
    )
    parser.set_defaults(run=_prepare_rendered)


def _prepare(options) -> None:
    from spectrodiff.data.builders import corpus
    from spectrodiff.data.builders.preparation import prepare

    special = [flag.removeprefix("--") for flag in _OPTIONS[options.corpus]]
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
