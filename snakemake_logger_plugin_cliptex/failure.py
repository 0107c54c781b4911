"""What is shown of a failed job: its error in one line, its log, and the command that repeats it."""

import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cliptex.core.redact import escape_controls

ERROR = re.compile(r"^(?:\d\d:\d\d:\d\d )?error: (.+)$", re.M)
"""An error in a log of cliptex."""
TAIL = 65_536
"""Bytes at the end of a log in which the error is looked for."""
EVERYTHING = ("-F", "--forceall")
"""Options of Snakemake with which a job would not be repeated alone."""


@dataclass(frozen=True)
class Failure:
    """label: what the job does. log: None if the job wrote none. command: a line for a shell."""

    label: str
    error: str
    log: Path | None
    command: str

    @property
    def lines(self) -> list[str]:
        log = "none was written; see the lines above" if self.log is None else self.log
        return [f"failed: {self.label}", f"   error: {self.error}", f"     log: {log}", f"  repeat: {self.command}"]


def failure(label: str, logs: Sequence[str], target: str, started_in: Path) -> Failure:
    """logs: of the job, relative to the working directory. target: one of its files, or its rule."""
    log = next((Path(log) for log in logs if Path(log).is_file()), None)
    return Failure(label, last_error(log), log and shown_path(log, started_in), repeat(sys.argv, target))


def shown_path(path: Path, started_in: Path) -> Path:
    """A file of the working directory, relative to where the user started Snakemake if it is in there."""
    path = path.absolute()
    return path.relative_to(started_in) if path.is_relative_to(started_in) else path


def last_error(log: Path | None) -> str:
    """The last error in a log, else its last line."""
    text = ""
    if log is not None:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - TAIL))
            text = file.read().decode("utf-8", "replace")
    errors = ERROR.findall(text) or text.split("\n")
    last = next((line.strip() for line in reversed(errors) if line.strip()), "")
    return escape_controls(last) or "the job ended with an error and wrote nothing about it"


def repeat(argv: Sequence[str], target: str) -> str:
    """The command that was given, with `target` instead of its own targets."""
    options = [text for text in _without_targets(list(argv[1:])) if text not in EVERYTHING]
    return shlex.join(["snakemake", *options, "--", target])


def _without_targets(words: list[str]) -> list[str]:
    """Snakemake's parser finds the targets, since some options take several values."""
    from snakemake.cli import get_argument_parser

    parse = get_argument_parser().parse_args
    parsed, again = vars(parse(words)), vars(parse(words))
    options = {key: value for key, value in parsed.items() if key != "targets" and value == again[key]}
    targets = list(parsed["targets"])
    for start in range(len(words) - len(targets), -1, -1) if targets else ():
        if words[start : start + len(targets)] == targets:
            rest = [*words[:start], *words[start + len(targets) :]]
            rest = rest[:-1] if rest[-1:] == ["--"] else rest
            left = vars(parse(rest))
            if not left["targets"] and all(left[key] == value for key, value in options.items()):
                return rest
    return words
