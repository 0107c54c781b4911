"""A table of the report, rendered to HTML (by the template), CSV (full precision) and Markdown.

Names of classes, models and files come from data: in no format can they become markup, a formula or control characters.
"""

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cliptex.core.redact import escape_controls

MISSING = "–"
FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What makes a text a formula in a spreadsheet."""
MARKUP = r"[\\|*`<>\[\]#~&$]|(?<![^\W_])_|_(?![^\W_])"
"""What may be markup in Markdown; an underscore within a word is not."""


@dataclass(frozen=True)
class Cell:
    """A table cell. value: written to the CSV instead of the text. tone: "good" (a test backs it), "bad" or empty.

    bounds: an interval, shown on its own line between the text and the note. best: shown in bold, if a test backs it.
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
class PairCells:
    """What a table shows if the reader compares two other models.

    subject, reference: names of the models. headings: column key -> heading. rows: column key -> cell, one for each row
    of the table. notes: of the groups; empty if these do not change.
    """

    subject: str
    reference: str
    headings: dict[str, str]
    rows: list[Row]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Table:
    """A captioned table. name: file stem and anchor. The cells of the first column are row headers. pairs: the
    columns that change with the models compared.

    A row's key `family` that is no column is the family of evaluators that it belongs to.

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
    pairs: list[PairCells] = field(default_factory=list)

    @property
    def shown_columns(self) -> list[Column]:
        return [column for column in self.columns if not column.csv_only]

    def csv(self) -> str:
        """Numbers in full precision, without notes and marks."""
        grouped = any(group.title for group in self.groups)
        lines: list[list[Any]] = [[self.group_column] * grouped + [column.heading for column in self.columns]]
        for group in self.groups:
            for row in group.rows:
                lines.append([group.title] * grouped + [row[column.key].raw for column in self.columns])
        return csv_text(lines)

    def markdown(self) -> str:
        """A GitHub-flavoured table: best values in bold, notes in parentheses after the value."""
        columns = self.shown_columns
        lines = [f"**{markdown_text(self.caption)}**", ""]
        lines.append(_line(markdown_text(column.heading) for column in columns))
        lines.append(_line("---:" if column.numeric else "---" for column in columns))
        for group in self.groups:
            if group.title:
                title = f"**{markdown_text(group.title)}**" + (f" {markdown_text(group.note)}" if group.note else "")
                lines.append(_line([title, *[""] * (len(columns) - 1)]))
            lines += [_line(_markdown_cell(row[column.key]) for column in columns) for row in group.rows]
        for note in (*self.notes, *self.fine):
            lines += ["", markdown_text(note)]
        return "\n".join(lines) + "\n"


def text_table(name: str, caption: str, headings: Sequence[str], rows: Iterable[Sequence[str | Cell]]) -> Table:
    """A table of texts; the headings are also the columns' keys."""
    rows = [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in rows]
    body = [dict(zip(headings, row, strict=True)) for row in rows]
    return Table(name, caption, [Column(heading, heading, numeric=False) for heading in headings], [Group(body)])


def _markdown_cell(cell: Cell) -> str:
    text = f"**{markdown_text(cell.text)}**" if cell.best else markdown_text(cell.text)
    return " ".join([text, *(f"({markdown_text(more)})" for more in (cell.bounds, cell.note) if more)])


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def markdown_text(text: str) -> str:
    """Text as Markdown in one line: no character ends the cell or becomes markup."""
    return " ".join(re.sub(MARKUP, r"\\\g<0>", escape_controls(text)).split())


def csv_text(rows: Iterable[Sequence[Any]]) -> str:
    """Rows as CSV. A text that a spreadsheet would take for a formula gets an apostrophe, as OWASP advises."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerows([_cell_text(value) if isinstance(value, str) else value for value in row] for row in rows)
    return out.getvalue()


def _cell_text(text: str) -> str:
    return escape_controls(f"'{text}" if text.startswith(FORMULA) else text)
