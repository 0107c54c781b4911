"""The studies that the report shows: those whose pages were made in the same working directory.

Reads   results/studies/{study}/study.json and plot.svg (`cliptex.report.studies.page`).
Holds   a study of other weights than the run's own is named and not shown.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cliptex.core import paths
from cliptex.core.errors import CliptexError
from cliptex.core.files import require_file
from cliptex.report.html import embedded_chart
from cliptex.report.records import STUDY, read_record
from cliptex.report.table import Cell, Column, Group, Table


@dataclass(frozen=True)
class FoundStudy:
    """The contents of a study's page. plot: for the macro `chart`."""

    name: str
    title: str
    question: str
    sentences: list[str]
    command: str
    table: Table
    plot: dict[str, str]


def found_studies(workdir: Path, weights: Mapping[str, str]) -> tuple[list[FoundStudy], list[str]]:
    """The studies in `workdir` by name, and a sentence on each that is left out.

    weights: model -> SHA-256 of the run's own, of the first seed. Raises CliptexError for a file that is broken.
    """
    shown, left_out = [], []
    for path in sorted((workdir / paths.study("x")).parent.glob("*/study.json")):
        study, plot = read_record(path, STUDY), path.with_name("plot.svg")
        own = study["provenance"].get("model_sha256", {})
        if differing := [model for model, sha in own.items() if weights.get(model, sha) != sha]:
            left_out.append(
                f"The study “{study['title']}” is of an earlier {differing[0]} and left out; to update it, run "
                f"{study['command']}"
            )
            continue
        try:
            require_file(plot)
            shown.append(_found(study, plot.read_text(encoding="utf-8")))
        except OSError as error:
            raise CliptexError(f"{plot}: cannot be read ({error}); run {study['command']} again") from error
        except ValueError as error:
            raise CliptexError(f"{path}: its table or plot is wrong ({error}); run {study['command']} again") from error
    return shown, left_out


def _found(study: Mapping[str, Any], svg: str) -> FoundStudy:
    table, name = study["table"], f"study-{study['study']}"
    columns = [Column(str(index), heading, numeric=index > 0) for index, heading in enumerate(table["columns"])]
    rows = [
        {column.key: Cell(text, note=note, tone=tone) for column, (text, note, tone) in zip(columns, row, strict=True)}
        for row in table["rows"]
    ]
    return FoundStudy(
        study["study"],
        study["title"],
        study["question"],
        [study["seen"], study["not_proved"]],
        study["command"],
        Table(name, table["caption"], columns, [Group(rows)], table["notes"]),
        embedded_chart(name, study["plot"]["caption"], study["plot"]["alt"], svg),
    )
