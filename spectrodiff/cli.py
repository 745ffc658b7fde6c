"""The command line of spectrodiff: one subcommand a module of `spectrodiff.commands`."""

import argparse
import os
import re
import signal
import sys
from collections.abc import Sequence

import spectrodiff
from spectrodiff.commands import app, doctor, evaluate, export, prepare, synthesize, train, weights
from spectrodiff.errors import InputError


class _Parser(argparse.ArgumentParser):
    """A parser whose help begins with examples, and whose errors are one line.

    `examples` are commands without the leading `spectrodiff`.
    """

    def __init__(self, *args, examples: Sequence[str] = (), **options):
        super().__init__(*args, **options)
        self._examples = examples

    def format_help(self):
        if not self._examples:
            return super().format_help()
        lines = "\n".join(f"  spectrodiff {example}" for example in self._examples)
        return f"{'examples' if len(self._examples) > 1 else 'example'}:\n{lines}\n\n{super().format_help()}"

    def error(self, message):
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


class _PrintCompletion(argparse.Action):
    """Prints the script that completes commands and options in a shell."""

    def __call__(self, parser, namespace, shell, option_string=None):
        try:
            import shtab
        except ImportError:
            parser.error('completion needs shtab: pip install "spectrodiff[completion]"')
        print(shtab.complete(parser, shell))
        parser.exit()


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of all commands, without importing what they run."""
    parser = _Parser(
        prog="spectrodiff",
        description="MIDI in, music out.",
        examples=["demo", "synthesize --midi song.mid --out song.wav"],
    )
    parser.add_argument("--version", action="version", version=f"spectrodiff {spectrodiff.__version__}")
    parser.add_argument(
        "--print_completion",
        choices=("bash", "zsh", "fish", "tcsh"),
        action=_PrintCompletion,
        help='print the script of completion for a shell, such as: eval "$(spectrodiff --print_completion bash)"',
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (synthesize, app, train, export, evaluate, prepare, weights, doctor):
        module.add(commands)
    return parser


def _as_typed(message: str, arguments: Sequence[str]) -> str:
    """Returns an error message in which the options that were typed are named with their dashes, such as --steps.

    Errors are raised by functions that are also called from Python, and name parameters: "seed is -1; choose ...", of
    sampling "options: steps is 0; choose ..." and "the texture decoder has no guidance; its options are ...".
    """
    for option in {argument.partition("=")[0] for argument in arguments if argument.startswith("--")}:
        name = re.escape(option.removeprefix("--"))
        message = re.sub(rf"^(?:options: )?{name}(?= is )|\b{name}\b(?=.*; its options are )", option, message)
    return message


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a subcommand; what the user can mend ends as one line on stderr and exit status 2."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a name that the terminal cannot show is no reason to stop
            stream.reconfigure(errors="backslashreplace")
    arguments = sys.argv[1:] if arguments is None else arguments
    options = make_parser().parse_args(arguments)
    try:
        options.run(options)
        sys.stdout.flush()
    except InputError as error:
        line = str(error).splitlines()[0]  # what follows is gin's account of calls
        print("spectrodiff:", _as_typed(line, arguments), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("spectrodiff: interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # as in `spectrodiff doctor | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes at its end
        print("spectrodiff: broken pipe", file=sys.stderr)
        sys.exit(128 + signal.SIGPIPE)
