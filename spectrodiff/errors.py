"""The one kind of error that is the user's to mend."""

import textwrap


class InputError(ValueError):
    """Something the user gave cannot be used; the message is one line that says what, and how to mend it.

    The command line prints the message alone and exits with status 2; from Python it is a `ValueError`.
    """


def reason(error: Exception) -> str:
    """What an error of another library says, as one line of bearable length."""
    return textwrap.shorten(str(error), 240, placeholder=" ...") or type(error).__name__
