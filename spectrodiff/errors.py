"""The one kind of error that is the user's to mend."""


class InputError(ValueError):
    """Something the user gave cannot be used; the message is one line that says what, and how to mend it.

    The command line prints the message alone and exits with status 2; from Python it is a `ValueError`.
    """
