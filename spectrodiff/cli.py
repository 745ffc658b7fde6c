"""The command line: `spectrodiff synthesize | demo | train | export | evaluate | prepare | info | convert | app`."""

import argparse
import sys
from collections.abc import Sequence

from spectrodiff.commands import app, evaluate, export, prepare, synthesize, train, weights
from spectrodiff.errors import InputError


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message):
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a subcommand; what the user can mend ends as one line on stderr and exit status 2."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a name that the terminal cannot show is no reason to stop
            stream.reconfigure(errors="backslashreplace")
    parser = _Parser(prog="spectrodiff", description="MIDI in, music out.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (synthesize, train, export, evaluate, prepare, weights, app):
        module.add(commands)
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except InputError as error:
        print("spectrodiff:", str(error).splitlines()[0], file=sys.stderr)  # what follows is gin's account of calls
        sys.exit(2)
    except KeyboardInterrupt:
        print("spectrodiff: interrupted", file=sys.stderr)
        sys.exit(130)
