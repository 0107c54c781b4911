"""The error that is shown to the user as one line, without a traceback."""

from collections.abc import Iterator
from contextlib import contextmanager

SUBJECT = "while working on "


class CliptexError(Exception):
    """An error that the user can fix: the message names the file or the key, the problem and the remedy."""


@contextmanager
def working_on(subject: object) -> Iterator[None]:
    """Add `subject` (a file, or a file and a key) to an unexpected error, so that its one line names it.

    The innermost subject is shown. A `CliptexError` already names its file and passes unchanged.
    """
    try:
        yield
    except Exception as error:
        if not isinstance(error, CliptexError):
            error.add_note(f"{SUBJECT}{subject}")
        raise


def subject(error: BaseException) -> str | None:
    """What was worked on when an unexpected error was raised: the innermost subject, or None."""
    notes = (note.removeprefix(SUBJECT) for note in getattr(error, "__notes__", ()) if note.startswith(SUBJECT))
    return next(notes, None)
