"""The command line: spectrodiff synthesize | train | prepare."""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from spectrodiff.errors import InputError

_ROOT = pathlib.Path(__file__).parent.parent  # where configs/ lies in a checkout


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage."""

    def error(self, message):
        self.exit(2, f"{self.prog}: {message}\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a subcommand; what the user can mend ends as one line on stderr and exit status 2."""
    parser = _Parser(prog="spectrodiff", description="MIDI in, music out.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_train(commands)
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except InputError as error:
        print(f"spectrodiff: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("spectrodiff: interrupted", file=sys.stderr)
        sys.exit(130)


def _add_train(commands) -> None:
    train = commands.add_parser("train", help="train a model from a gin config")
    train.add_argument("--gin_file", action="append", required=True, help="config; may be given more than once")
    train.add_argument("--gin_param", action="append", default=[], help='one binding, such as "train.steps = 1000"')
    train.add_argument("--workdir", required=True, help="where checkpoints, logs and the exported weights go")
    train.set_defaults(run=_train)


def _train(options) -> None:
    import gin

    from spectrodiff.training import loop, optimizers, spectrogram  # noqa: F401: registers what configs refer to

    gin.add_config_file_search_path(_ROOT)
    try:
        gin.parse_config_files_and_bindings(options.gin_file, options.gin_param)
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError(f"cannot use the config: {' '.join(str(error).split())}") from error
    loop.train(options.workdir)
