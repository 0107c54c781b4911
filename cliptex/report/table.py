"""A table of the report, once for the page (by the template), for CSV (full precision) and for Markdown."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Cell:
    """What stands in a cell. `value` goes to the CSV where it is not the text; `tone` is "good", "bad" or nothing.

    bounds: an interval in words, on a line of its own between the text and the note.
    """

    text: str
    value: float | str | None = None
    note: str = ""
    bounds: str = ""
    best: bool = False
    tone: str = ""

    @property
    def raw(self) -> float | str:
        """The CSV's value: the number in full precision; empty where it is missing."""
        if self.value is not None:
            return self.value
        return "" if self.text == MISSING else self.text


MISSING = "–"


@dataclass(frozen=True)
class Group:
    """Rows under a heading of their own; the first cell of a row is its header."""

    rows: list[list[Cell]]
    title: str = ""
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A captioned table. name: file stem and anchor. numeric: columns set flush right, by position.

    fine: notes on protocol, samples, training sets and seeds, folded away on the page. csv_only: how many of the last
    columns are in the CSV alone.
    """

    name: str
    caption: str
    columns: list[str]
    groups: list[Group]
    numeric: frozenset[int] = frozenset()
    notes: list[str] = field(default_factory=list)
    group_column: str = "group"
    """Heading of the CSV column that holds the groups' titles."""
    key: int | None = None
    """Position of the column that the eye should find first."""
    fine: list[str] = field(default_factory=list)
    csv_only: int = 0

    @property
    def shown_columns(self) -> list[str]:
        """The columns without those of the CSV alone."""
        return self.columns[: len(self.columns) - self.csv_only]

    def shown(self, row: Sequence[Cell]) -> Sequence[Cell]:
        """A row's cells without those of the CSV alone."""
        return row[: len(self.columns) - self.csv_only]

    def csv(self) -> str:
        """Numbers in full precision; notes and marks are left out."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        grouped = any(group.title for group in self.groups)
        writer.writerow(([self.group_column] if grouped else []) + self.columns)
        for group in self.groups:
            for row in group.rows:
                writer.writerow(([group.title] if grouped else []) + [cell.raw for cell in row])
        return out.getvalue()

    def markdown(self) -> str:
        """GitHub's tables: best values in bold, notes after the value."""
        lines = [f"**{_plain(self.caption)}**", ""]
        columns = self.shown_columns
        lines.append(_line(_plain(column) for column in columns))
        lines.append(_line("---:" if i in self.numeric else "---" for i in range(len(columns))))
        for group in self.groups:
            if group.title:
                title = f"**{_plain(group.title)}**" + (f" {_plain(group.note)}" if group.note else "")
                lines.append(_line([title, *[""] * (len(columns) - 1)]))
            for row in group.rows:
                lines.append(_line(_cell(cell) for cell in self.shown(row)))
        for note in (*self.notes, *self.fine):
            lines += ["", _plain(note)]
        return "\n".join(lines) + "\n"


def text_row(*cells: str | Cell) -> list[Cell]:
    """A row of plain texts."""
    return [cell if isinstance(cell, Cell) else Cell(cell) for cell in cells]


def best_of(values: Sequence[float | None], better: int) -> float | None:
    """The best value by the metric's direction; None where there is none, or no direction."""
    known = [value for value in values if value is not None]
    if not known or not better:
        return None
    return max(known) if better > 0 else min(known)


def _cell(cell: Cell) -> str:
    text = _plain(cell.text)
    text = f"**{text}**" if cell.best else text
    text = f"{text} ({_plain(cell.bounds)})" if cell.bounds else text
    return f"{text} ({_plain(cell.note)})" if cell.note else text


def _line(cells) -> str:
    return "| " + " | ".join(cells) + " |"


def _plain(text: str) -> str:
    """Nothing in a caption, a class name or an error may end the cell or become markup."""
    for character in "\\|*_`<>[]":
        text = text.replace(character, "\\" + character)
    return " ".join(text.split())
