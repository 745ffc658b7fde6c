"""The exception for errors that the user can correct."""

import textwrap


class InputError(ValueError):
    """An error in the user's input: a file, an option or a config that cannot be used.

    The message is one line that names the problem and, where possible, the remedy. The command line prints it without a
    traceback and exits with status 2; from Python it is a `ValueError`.
    """


def reason(error: Exception) -> str:
    """Returns the message of another library's error as one line of at most 240 characters."""
    return textwrap.shorten(str(error), 240, placeholder=" ...") or type(error).__name__
