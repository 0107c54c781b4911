"""The one exception that is shown to the user as a sentence, without a traceback."""


class CliptexError(Exception):
    """Something the user can mend: the message names the file or the key, what is wrong with it, and the remedy."""
