"""Where the lines go: a terminal, with what is running below them, or a pipe or file, as plain text."""

import sys
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

MOST_RUNNING = 8
"""Lines of running jobs on a terminal."""
REFRESH_PER_S = 2


class Status(Protocol):
    """The state of a run, for the lines at the bottom of a terminal."""

    def running(self) -> list[tuple[str, str]]:
        """What each running job does, and for how long."""

    def share(self) -> float:
        """Of the jobs that have ended, 0..1."""

    def summary(self) -> str:
        """`12 of 120 jobs, about 8 min left`."""


class Pipe:
    """Plain lines. Several processes may write to the same file, so each line is written at once."""

    live = False

    def begin(self, status: Status) -> None:
        """Nothing is shown between the lines."""

    def line(self, text: str, style: str = "") -> None:
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()

    def job(self, mark: str, text: str, time: str, summary: str) -> None:
        self.line(f"[{summary}] {mark} {text} ({time})" if mark != "✓" else f"[{summary}] {text} ({time})")

    def end(self) -> None:
        """Nothing to remove."""


class Terminal:
    """Lines that scroll up, and below them the running jobs and a bar over the whole run."""

    live = True

    def __init__(self, color: bool):
        self._console = Console(stderr=True, force_terminal=True, no_color=not color, highlight=False)
        self._live: Live | None = None

    def begin(self, status: Status) -> None:
        shown = _Bottom(status)
        self._live = Live(shown, console=self._console, refresh_per_second=REFRESH_PER_S, transient=True)
        self._live.start()

    def line(self, text: str, style: str = "") -> None:
        self._console.print(Text(text, style), soft_wrap=True)

    def job(self, mark: str, text: str, time: str, summary: str) -> None:
        style = "green" if mark == "✓" else "red"
        self._console.print(_row(Text(f"{mark} ", style).append(text, "default"), Text(time, "dim")))

    def end(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


class _Bottom:
    """Drawn again at every refresh."""

    def __init__(self, status: Status):
        self._status = status

    def __rich__(self) -> RenderableType:
        running = self._status.running()
        lines = [_row(Text(f"… {text}"), Text(time)) for text, time in running[:MOST_RUNNING]]
        if len(running) > MOST_RUNNING:
            lines.append(Text(f"… and {len(running) - MOST_RUNNING} more"))
        bar = Table.grid(padding=(0, 1), expand=True)
        bar.add_column(ratio=1)
        bar.add_column(justify="right", no_wrap=True)
        bar.add_row(ProgressBar(total=1.0, completed=self._status.share()), Text(self._status.summary(), "bold"))
        return Group(*lines, bar)


def _row(left: Text, right: Text) -> Table:
    """One line, however narrow the terminal is."""
    row = Table.grid(padding=(0, 1), expand=True)
    row.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    row.add_column(justify="right", no_wrap=True)
    row.add_row(left, right)
    return row
