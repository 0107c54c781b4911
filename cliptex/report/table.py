"""A table of the report, rendered to HTML (by the template), CSV (full precision) and Markdown."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

MISSING = "–"


@dataclass(frozen=True)
class Cell:
    """A table cell. value: written to the CSV instead of the text. tone: "good", "bad" or empty.

    bounds: an interval, shown on its own line between the text and the note. best: shown in bold.
    """

    text: str
    value: float | str | None = None
    note: str = ""
    bounds: str = ""
    best: bool = False
    tone: str = ""

    @property
    def raw(self) -> float | str:
        """Value for the CSV: the number in full precision; empty if missing."""
        if self.value is not None:
            return self.value
        return "" if self.text == MISSING else self.text


Row = Mapping[str, Cell]
"""Column key -> cell."""


@dataclass(frozen=True)
class Column:
    """A column. key: its name in the rows. highlighted: tinted on the page. csv_only: left out of page and Markdown."""

    key: str
    heading: str
    numeric: bool = True
    highlighted: bool = False
    csv_only: bool = False


def csv_columns(keys: Iterable[str]) -> list[Column]:
    """Columns that are only in the CSV, with their keys as headings."""
    return [Column(key, key, csv_only=True) for key in keys]


@dataclass(frozen=True)
class Group:
    rows: list[Row]
    title: str = ""
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A captioned table. name: file stem and anchor. The cells of the first column are row headers.

    group_column: heading of the CSV column with the groups' titles. fine: notes on protocol, number of images, training
    data and seeds, collapsed on the page.
    """

    name: str
    caption: str
    columns: list[Column]
    groups: list[Group]
    notes: list[str] = field(default_factory=list)
    group_column: str = "group"
    fine: list[str] = field(default_factory=list)

    @property
    def shown_columns(self) -> list[Column]:
        return [column for column in self.columns if not column.csv_only]

    def csv(self) -> str:
        """Numbers in full precision, without notes and marks."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        grouped = any(group.title for group in self.groups)
        writer.writerow([self.group_column] * grouped + [column.heading for column in self.columns])
        for group in self.groups:
            for row in group.rows:
                writer.writerow([group.title] * grouped + [row[column.key].raw for column in self.columns])
        return out.getvalue()

    def markdown(self) -> str:
        """A GitHub-flavoured table: best values in bold, notes in parentheses after the value."""
        columns = self.shown_columns
        lines = [f"**{_escaped(self.caption)}**", ""]
        lines.append(_line(_escaped(column.heading) for column in columns))
        lines.append(_line("---:" if column.numeric else "---" for column in columns))
        for group in self.groups:
            if group.title:
                title = f"**{_escaped(group.title)}**" + (f" {_escaped(group.note)}" if group.note else "")
                lines.append(_line([title, *[""] * (len(columns) - 1)]))
            lines += [_line(_markdown_cell(row[column.key]) for column in columns) for row in group.rows]
        for note in (*self.notes, *self.fine):
            lines += ["", _escaped(note)]
        return "\n".join(lines) + "\n"


def text_table(name: str, caption: str, headings: Sequence[str], rows: Iterable[Sequence[str | Cell]]) -> Table:
    """A table of texts; the headings are also the columns' keys."""
    rows = [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in rows]
    body = [dict(zip(headings, row, strict=True)) for row in rows]
    return Table(name, caption, [Column(heading, heading, numeric=False) for heading in headings], [Group(body)])


def best_of(values: Iterable[float | None], better: int) -> float | None:
    """The best value; None without values or if `better` (+1, -1) is 0."""
    known = [value for value in values if value is not None]
    if not known or not better:
        return None
    return max(known) if better > 0 else min(known)


def _markdown_cell(cell: Cell) -> str:
    text = f"**{_escaped(cell.text)}**" if cell.best else _escaped(cell.text)
    return " ".join([text, *(f"({_escaped(more)})" for more in (cell.bounds, cell.note) if more)])


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _escaped(text: str) -> str:
    """Text as Markdown in one line: no character ends the cell or becomes markup."""
    for character in "\\|*_`<>[]":
        text = text.replace(character, "\\" + character)
    return " ".join(text.split())
