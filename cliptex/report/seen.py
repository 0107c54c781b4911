"""Marks on results whose data an expert has seen in its own training, before its labels trained a compared model.

In      the configuration and the experts' records (`cliptex.experts.trained_on`).
Out     tables with marks and footnotes. Without anything to mark, and for rendered stand-in data, nothing is changed.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from enum import StrEnum
from typing import Any, Protocol

from cliptex.config import Config
from cliptex.experts.trained_on import training_sets
from cliptex.experts.training_sets import NOT_STATED, TrainingSet, in_words, parse
from cliptex.report import names
from cliptex.report.gather import Scores
from cliptex.report.table import Cell, Group, Row, Table, csv_columns
from cliptex.report.tables.cells import model_key

COLUMN = "seen by experts"


class Degree(StrEnum):
    """How much of a benchmark an expert has seen; the value is written to CSV files."""

    DATA_SET = "data set"
    IMAGES = "images"

    @property
    def symbol(self) -> str:
        return "†" if self is Degree.DATA_SET else "‡"


MEANINGS = {
    Degree.DATA_SET: "An expert was trained on the data set, as far as stated not on the evaluated images",
    Degree.IMAGES: "An expert may have been trained on the evaluated images",
}


def stores_of(config: Config, name: str) -> list[str]:
    """The label stores that a model was trained on, including those of the models it starts from."""
    model = config.models[name]
    stores = dict.fromkeys(model.tasks)
    for other in model.sources():
        if other in config.models:
            stores |= dict.fromkeys(stores_of(config, other))
    return list(stores)


class OfBenchmark(Protocol):
    """Results on a benchmark. source: of its data (`cliptex.evaluation.results.Result`)."""

    @property
    def benchmark(self) -> str: ...

    @property
    def source(self) -> str | None: ...


class SeenData:
    """Which benchmarks the experts have seen. experts: name -> expert.json; None if there is none."""

    def __init__(self, config: Config, experts: Mapping[str, Mapping[str, Any] | None]):
        self.config = config
        self.sets: dict[str, tuple[TrainingSet, ...]] = {
            name: training_sets(experts.get(name) or {}, settings.trained_on)
            for name, settings in config.experts.items()
        }

        self._sources = {name: (experts.get(name) or {}).get("source") for name in config.experts}

    def words(self, expert: str) -> str:
        """What an expert was trained on."""
        if sets := self.sets.get(expert):
            return in_words(sets)
        if expert in self.sets and self.config.experts[expert].trained_on is not None:
            return "none of the benchmarks’ data sets"
        made_here = {"miniature": "rendered scenes", "random": "nothing, random weights", "none": "no weights"}
        return made_here.get(self._sources.get(expert), NOT_STATED)

    def by(self, scores: OfBenchmark, models: Iterable[str]) -> dict[Degree, list[str]]:
        """Degree -> each expert whose labels one of the models learned from, with its training sets that hold data of
        the benchmark (`Mask R-CNN: COCO train2017`). Empty without any."""
        out: dict[Degree, list[str]] = {}
        if scores.source == "miniature":
            return out
        name = scores.benchmark
        if captions := self.config.zeroshot.retrieval.get(name):
            name = captions.benchmark or parse(name).name
        for expert in self._experts(models):
            held = {one: degree for one in self.sets.get(expert, ()) if (degree := one.has_images_of(name))}
            if held:
                worst = max(map(Degree, held.values()), key=list(Degree).index)
                out.setdefault(worst, []).append(f"{names.head(expert)}: {', '.join(one.text for one in held)}")
        return out

    def degree(self, scores: OfBenchmark, models: Iterable[str]) -> Degree | None:
        return max(self.by(scores, models), key=list(Degree).index, default=None)

    def not_stated(self, models: Iterable[str]) -> list[str]:
        """Experts of the models with training sets that nobody states."""
        experts = self._experts(models)
        return [name for name in experts if any(one.name == NOT_STATED for one in self.sets.get(name, ()))]

    def _experts(self, models: Iterable[str]) -> list[str]:
        experts: dict[str, None] = {}
        for model in models:
            for store in stores_of(self.config, model) if model in self.config.models else ():
                settings = self.config.label_stores.get(store)
                while settings is not None:
                    experts[settings.expert] = None
                    settings = self.config.label_stores.get(settings.of) if settings.of else None
        return list(experts)

    def notes(self, benchmarks: Iterable[OfBenchmark], models: Iterable[str]) -> list[str]:
        """Footnotes of a table: what each mark means here, and what is not known."""
        models, found = list(models), {}
        for scores in benchmarks:
            for degree, experts in self.by(scores, models).items():
                label = names.benchmark(scores.benchmark, scores.source)
                found.setdefault(degree, {})[label] = f"{label} by {'; '.join(experts)}"
        return footnotes({degree: found[degree].values() for degree in found}, self.not_stated(models))

    def marked(self, table: Table | None, scores_of: Callable[[int, int], Scores]) -> Table | None:
        """The table with marks in its first column, footnotes and a CSV column. scores_of: (group, row) -> the results
        of that row. Models are those with a column; of a table without any, CLIPTeX and CLIP-FT."""
        if table is None:
            return None
        keys = {column.key for column in table.columns}
        models = [name for name in self.config.models if model_key(name) in keys] or compared(self.config)
        places = [[scores_of(g, r) for r in range(len(group.rows))] for g, group in enumerate(table.groups)]
        benchmarks = {scores.path: scores for row in places for scores in row}.values()
        official = [scores for scores in benchmarks if scores.source != "miniature"]
        notes = self.notes(official, models) if official else []
        if not notes:
            return table
        first, columns, groups = table.columns[0].key, table.columns, []
        degrees = [[self.degree(scores, models) for scores in row] for row in places]
        if any(degree for row in degrees for degree in row):
            columns = [*columns, *csv_columns([COLUMN])]
        for group, found in zip(table.groups, degrees, strict=True):
            rows = [_marked(row, first, degree) for row, degree in zip(group.rows, found, strict=True)]
            groups.append(Group(rows, group.title, group.note))
        return replace(table, columns=columns, groups=groups, notes=[*table.notes, *notes])


def footnotes(found: Mapping[Degree, Iterable[str]], not_stated: Iterable[str]) -> list[str]:
    """A sentence on each degree (degree -> "benchmark by experts"), and one on experts of unknown training sets."""
    notes = [f"{degree.symbol} {MEANINGS[degree]}: {'. '.join(found[degree])}." for degree in Degree if degree in found]
    if unknown := ", ".join(map(names.head, not_stated)):
        notes.append(f"Training sets not stated, or not all of them: {unknown}. They may have seen any of the data.")
    return notes


def compared(config: Config) -> list[str]:
    """CLIPTeX and CLIP-FT, as far as the configuration has them."""
    return [name for name in (names.SUBJECT, names.REFERENCE) if name in config.models]


def _marked(row: Row, first: str, degree: Degree | None) -> Row:
    cells = {**row, COLUMN: Cell(degree or "")}
    if degree:
        cells[first] = replace(row[first], text=f"{row[first].text} {degree.symbol}", value=row[first].raw)
    return cells
