"""The error that is shown to the user as one line, without a traceback."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from cliptex.core.redact import without_credentials

SUBJECT = "while working on "


LONGEST = 2000
"""Characters of a message; of a longer one, which quotes a broken file, the end with the remedy is kept."""


class CliptexError(Exception):
    """An error that the user can fix: one line that names the file or the key, the problem and the remedy, whatever
    line breaks a library's own message has. Credentials in URLs are replaced by ***."""

    def __init__(self, message: str):
        super().__init__(_line(without_credentials(message)))


def _line(text: str) -> str:
    text = " ".join(text.split("\n"))
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"


class ConfigError(CliptexError):
    """Mistakes in a configuration, a line each."""

    def __init__(self, lines: list[str]):
        self.lines = [_line(line) for line in lines]
        Exception.__init__(self, without_credentials("\n".join(self.lines)))


def environment_number(name: str, default: int) -> int:
    """The whole number in an environment variable. Raises CliptexError for anything else."""
    text = os.environ.get(name, str(default))
    if not text.isascii() or not text.isdigit():
        raise CliptexError(f"{name}={text[:40]!r}: must be a whole number; unset this environment variable")
    return int(text)


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
