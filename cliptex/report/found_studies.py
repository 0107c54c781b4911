"""Studies beside the run: what the report shows of those whose pages were made in the same working directory.

Reads   results/studies/{study}/study.json and plot.svg (`cliptex.report.studies.page`).
Holds   a study of other weights than the run's own is named and not shown.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cliptex.core import paths
from cliptex.core.errors import CliptexError
from cliptex.core.files import read_json
from cliptex.report.figures import on_dark
from cliptex.report.table import Cell, Group, Table


@dataclass(frozen=True)
class FoundStudy:
    """A study as its page says it. light, dark: its plot as SVG."""

    name: str
    title: str
    question: str
    seen: str
    not_proved: str
    command: str
    table: Table
    caption: str
    alt: str
    light: str
    dark: str


def found_studies(root: Path, weights: dict[str, str]) -> tuple[list[FoundStudy], list[str]]:
    """The studies under `root` by name, and a sentence on each that is left out.

    weights: model -> SHA-256 of the run's own, of the first seed. Raises CliptexError for a file that is broken.
    """
    shown, left_out = [], []
    for path in sorted((root / paths.study("x")).parent.glob("*/study.json")):
        about = read_json(path)
        try:
            own = about["provenance"]["model_sha256"]
            if differing := [model for model, sha in own.items() if weights.get(model, sha) != sha]:
                what = f"The study “{about['title']}” is of an earlier {differing[0]}, and left out"
                left_out.append(f"{what}; to see it, run {about['command']}")
                continue
            shown.append(_found(about, path.with_name("plot.svg").read_text()))
        except (KeyError, TypeError, OSError) as error:
            raise CliptexError(f"{path}: not a study's results ({error!r}); run {_command(about)} again") from error
    return shown, left_out


def _command(about: Any) -> str:
    return about.get("command", "the study") if isinstance(about, dict) else "the study"


def _found(about: dict[str, Any], svg: str) -> FoundStudy:
    name, kept = about["study"], about["table"]
    rows = [[Cell(text, note=note, tone=tone) for text, note, tone in row] for row in kept["rows"]]
    numeric = frozenset(range(1, len(kept["columns"])))
    table = Table(f"study-{name}", kept["caption"], kept["columns"], [Group(rows)], numeric, kept["notes"])
    return FoundStudy(
        name,
        about["title"],
        about["question"],
        about["seen"],
        about["not_proved"],
        about["command"],
        table,
        about["plot"]["caption"],
        about["plot"]["alt"],
        svg,
        on_dark(svg),
    )
