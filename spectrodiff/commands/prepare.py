"""`prepare`: a corpus to train on."""

from spectrodiff.errors import InputError


def add(commands) -> None:
    parser = commands.add_parser("prepare", help="prepare a corpus to train on")
    corpora = parser.add_subparsers(dest="corpus", required=True, metavar="CORPUS")
    rendered = corpora.add_parser("rendered", help="render MIDI from free packages through a SoundFont")
    rendered.add_argument("--data_dir", required=True, help="folder of the corpus; an unfinished one is continued")
    rendered.add_argument("--hours", type=float, default=24.0, help="hours of audio to reach (default: 24)")
    rendered.add_argument("--seed", type=int, default=0, help="which of all possible corpora (default: 0)")
    rendered.add_argument("--workers", type=int, help="processes (default: one per core)")
    rendered.add_argument(
        "--programs",
        choices=("midi_class", "family"),
        default="midi_class",
        help="instruments: the first program of each family of eight, or any of it (default: midi_class)",
    )
    rendered.set_defaults(run=_prepare_rendered)


def _prepare_rendered(options) -> None:
    from spectrodiff.data.builders.rendered import prepare_rendered

    if not options.hours > 0:
        raise InputError(f"hours is {options.hours:g}; choose more than 0")
    prepare_rendered(
        options.data_dir, hours=options.hours, workers=options.workers, seed=options.seed, programs=options.programs
    )
