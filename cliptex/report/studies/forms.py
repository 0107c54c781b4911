"""The forms of a study: which summary, plot and table its results get."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cliptex.config import Config
from cliptex.core.errors import CliptexError
from cliptex.evaluation.corruptions import CLEAN
from cliptex.report.bootstrap import LEVEL, Interval, resampled_over
from cliptex.report.figures import Chart
from cliptex.report.studies.measures import ComparedModel, Findings, StudyMeasure
from cliptex.report.studies.plots import Point, dots_plot, scatter_plot
from cliptex.report.studies.summary import MARKS, Panel, amount, cheapest, mean_row, summary
from cliptex.report.table import Cell, Column, Group, Row, Table

TONES = {"better": "good", "worse": "bad", "no difference seen": ""}


@dataclass(frozen=True)
class StudyResults:
    """The input of a form. flops: forward computation of a training step relative to contrastive training."""

    config: Config
    findings: Findings
    labels: Mapping[str, str]
    flops: Mapping[str, float]
    miniature: bool

    @property
    def reference(self) -> str:
        return self.config.study.reference

    @property
    def subject(self) -> str:
        """The other model, in forms that compare two."""
        others = [model for model in self.labels if model != self.reference]
        if len(others) != 1:
            raise CliptexError(f"study.shown: the form {self.config.study.form!r} compares two models; name one")
        return others[0]

    @property
    def dense(self) -> Findings:
        return [finding for finding in self.findings if finding[0].dense]

    def others(self, compared: Mapping[str, ComparedModel]) -> dict[str, ComparedModel]:
        return {model: row for model, row in compared.items() if model != self.reference}

    def panels(self, findings: Findings, without: frozenset[str] = frozenset()) -> list[Panel]:
        """The models other than the reference, and other than `without`, by each measure."""
        return [
            (measure, [(self.labels[m], row) for m, row in self.others(compared).items() if m not in without])
            for measure, compared in findings
        ]


@dataclass(frozen=True)
class Form:
    """The lines of the summary, the plot and the table of a study."""

    lines: list[str]
    chart: Chart
    table: Table


def _differences(study: StudyResults) -> Form:
    """Every model against the reference."""
    panels = study.panels(study.findings)
    caption = f"Difference to “{study.labels[study.reference]}”"
    chart = dots_plot(panels, caption, _alt("dot", study, "each model"), study.miniature)
    return Form(summary(panels), chart, _models_table(study))


def _tradeoff(study: StudyResults) -> Form:
    """Dense metrics against zero-shot."""
    zeroshot = [finding for finding in study.findings if finding[0].head == "zero_shot"]
    if len(zeroshot) != 1 or not study.dense:
        raise CliptexError(
            "study.form: `tradeoff` needs one benchmark in study.zeroshot and a dense one in study.probes"
        )
    ((measure, compared),) = zeroshot
    lost = frozenset(model for model, row in compared.items() if row.state == "worse")
    lines = summary(study.panels(zeroshot))
    lines += [f"zero-shot kept: {line}" for line in summary(study.panels(study.dense, without=lost))]
    chart = scatter_plot(
        study.dense,
        study.labels,
        {model: _point(row) for model, row in compared.items()},
        f"{measure.title}: difference, points",
        f"Differences to “{study.labels[study.reference]}”: dense metrics against zero-shot",
        _alt("scatter", study, "each model"),
        study.miniature,
    )
    return Form(lines, chart, _models_table(study))


def _cost(study: StudyResults) -> Form:
    """Dense metrics against the forward computation."""
    if not study.dense:
        raise CliptexError("study.form: `cost` needs a dense benchmark in study.probes")
    lines = summary(study.panels(study.dense))
    for measure, compared in study.dense:
        best = max(study.others(compared).values(), key=lambda row: row.difference)
        if best.state == "better":
            row = cheapest(study.others(compared), best, study.flops)
            cost = f"“{study.labels[row.model]}” at {study.flops[row.model]:.2f} times the forward computation"
            lines.append(f"cheapest without a difference to the best in {measure.title}: {cost}")
    chart = scatter_plot(
        study.dense,
        study.labels,
        {model: (value, value, value) for model, value in study.flops.items()},
        "forward computation in training, contrastive alone = 1",
        f"Difference to “{study.labels[study.reference]}” against cost",
        _alt("scatter", study, "each model"),
        study.miniature,
    )
    return Form(lines, chart, _models_table(study))


def _robustness(study: StudyResults) -> Form:
    """Two models on clean and on corrupted images."""
    variants = list(dict.fromkeys(measure.variant for measure, _ in study.findings))
    if CLEAN not in variants:
        raise CliptexError("study.corruptions: is missing; the form `robustness` needs it")
    rows = {variant: variant.replace("-", " ") for variant in variants}
    panels, chart, table = _two_models(study, rows, lambda measure: measure.variant, "images")
    corrupted = [(measure, [row for row in rows if row[0] != CLEAN]) for measure, rows in panels]
    means = [
        f"{measure.title}: mean {amount(measure, mean_row([row for _, row in rows]))}" for measure, rows in corrupted
    ]
    return Form([*summary(corrupted), *means], chart, table)


def _finetuning(study: StudyResults) -> Form:
    """Two models, frozen and fine-tuned."""
    rows = {False: "frozen", True: "fine-tuned"}
    panels, chart, table = _two_models(study, rows, lambda measure: measure.tuned, "encoders")
    return Form(summary(panels), chart, table)


FORMS: Mapping[str, Callable[[StudyResults], Form]] = {
    "differences": _differences,
    "tradeoff": _tradeoff,
    "cost": _cost,
    "robustness": _robustness,
    "finetuning": _finetuning,
}


def _two_models(
    study: StudyResults, rows: Mapping[Any, str], row_of: Callable[[StudyMeasure], Any], heading: str
) -> tuple[list[Panel], Chart, Table]:
    """The subject against the reference: a row for each value of `row_of` (label by `rows`), a column a metric."""
    subject, labels = study.subject, study.labels
    cells = {
        (measure.key, row_of(measure)): (measure, compared[subject], compared[study.reference])
        for measure, compared in study.findings
    }
    measures: dict[str, StudyMeasure] = {}
    for measure, _ in study.findings:
        measures.setdefault(measure.key, measure)
    panels = [
        (measure, [(label, cells[key, row][1]) for row, label in rows.items()]) for key, measure in measures.items()
    ]
    caption = f"“{labels[subject]}” against “{labels[study.reference]}”"
    alt = _alt("dot", study, f"the two models for each kind of {heading}")
    chart = dots_plot(panels, caption, alt, study.miniature)
    body = [
        {"row": Cell(label), **{key: _pair_cell(*cells[key, row]) for key in measures}} for row, label in rows.items()
    ]
    columns = [_column(key, measure) for key, measure in measures.items()]
    note = f"Values: {labels[study.reference]} → {labels[subject]}; below them the difference. {_signed_note(study)}"
    return panels, chart, _table(study, [Column("row", heading, numeric=False), *columns], body, note)


def _models_table(study: StudyResults) -> Table:
    columns = [_column(str(index), measure) for index, (measure, _) in enumerate(study.findings)]
    body = []
    for model, label in study.labels.items():
        cells = {str(index): _value_cell(one, rows[model]) for index, (one, rows) in enumerate(study.findings)}
        body.append({"row": Cell(label), **cells, "cost": Cell(f"{study.flops[model]:.2f}", study.flops[model])})
    return _table(
        study,
        [Column("row", "Model", numeric=False), *columns, Column("cost", "Forward computation, contrastive = 1")],
        body,
        f"Below each value the difference to “{study.labels[study.reference]}”. {_signed_note(study)}",
    )


def _signed_note(study: StudyResults) -> str:
    return (
        f"Differences are signed so that + is better, with their {LEVEL:.0f} % interval over "
        f"{resampled_over(study.config.seeds)}; where it holds zero, no difference is seen."
    )


def _table(study: StudyResults, columns: list[Column], body: list[Row], note: str) -> Table:
    suffix = " (miniature)" if study.miniature else ""
    return Table("table", f"{study.config.study.title}{suffix}", columns, [Group(body)], [note])


def _column(key: str, measure: StudyMeasure) -> Column:
    unit = f" ({measure.info.unit})" if measure.info.unit else ""
    return Column(key, f"{measure.title}{unit} {'↑' if measure.info.better > 0 else '↓'}")


def _value_cell(measure: StudyMeasure, row: ComparedModel) -> Cell:
    note = f"{amount(measure, row)} {MARKS[row.state]}".rstrip() if row.bounds else ""
    return Cell(measure.info.format(row.value), row.value, note, tone=TONES[row.state])


def _pair_cell(measure: StudyMeasure, row: ComparedModel, reference: ComparedModel) -> Cell:
    text = f"{measure.info.format(reference.value)} → {measure.info.format(row.value)}"
    return Cell(text, row.difference, f"{amount(measure, row)} {MARKS[row.state]}".rstrip(), tone=TONES[row.state])


def _point(row: ComparedModel) -> Point:
    bounds = row.bounds or Interval(row.difference, row.difference)
    return row.difference, bounds.low, bounds.high


def _alt(kind: str, study: StudyResults, rows: str) -> str:
    return (
        f"{kind.capitalize()} charts, one for each metric: the difference of {rows} to "
        f"{study.labels[study.reference]}. The numbers are in the table."
    )
