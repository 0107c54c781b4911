"""The error that is shown to the user as one line, without a traceback."""


class CliptexError(Exception):
    """An error that the user can fix: the message names the file or the key, the problem and the remedy."""
