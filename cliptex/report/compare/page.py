"""The page of two runs: a summary, what differs, changes of gains and of models, and what only one of them has."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from cliptex import __version__
from cliptex.core.errors import CliptexError
from cliptex.evaluation.measures import metric_of
from cliptex.report import html, names
from cliptex.report.bootstrap import LEVEL
from cliptex.report.compare.facts import Facts, facts
from cliptex.report.compare.paired import (
    Change,
    ChangeStatus,
    SharedTable,
    baseline_changes,
    gain_changes,
    model_changes,
    shared_tables,
)
from cliptex.report.compare.runs import KINDS, ComparedRun
from cliptex.report.evaluators import ALPHA
from cliptex.report.statistics import Gain, format_interval, sample_std, signed
from cliptex.report.table import MISSING, Cell, Column, Group, Row, Table, text_table
from cliptex.report.tables.cells import metric_label

SYMBOLS = {
    ChangeStatus.BETTER: "▲",
    ChangeStatus.WORSE: "▼",
    ChangeStatus.ONE_SEED_BETTER: "△",
    ChangeStatus.ONE_SEED_WORSE: "▽",
}
TONES = {ChangeStatus.BETTER: "good", ChangeStatus.WORSE: "bad"}
SHORT = ("Result", "A", "B", "Change", "Outcome")


@dataclass(frozen=True)
class Page:
    """first, second: the runs A and B. gains, models: their changes. missing: what only one of them has."""

    first: ComparedRun
    second: ComparedRun
    tables: list[SharedTable]
    gains: list[Change]
    models: list[Change]
    facts: Facts
    missing: list[str]
    sentences: list[str]


def make_page(first: ComparedRun, second: ComparedRun) -> Page:
    """Compare what both have. Raises CliptexError if that is nothing."""
    tables = shared_tables(first, second)
    models, missing = model_changes(tables), [*_missing(first, second)]
    if not models:
        raise CliptexError(
            f"{first.folder} and {second.folder}: no result of the same benchmark, head, model and seed is in both; "
            + (f"{missing[0]} " if missing else "")
            + "finish the runs first"
        )
    differing = facts(first, second, tables)
    sentences = [_counts(models), *_baselines(baseline_changes(tables)), *_untested(tables), *differing.unknown]
    return Page(first, second, tables, gain_changes(tables), models, differing, missing, sentences)


def render(page: Page) -> str:
    sources = {table.scores.source for table in page.tables}
    return html.render(
        "compare/page.html",
        page=page,
        runs=(page.first, page.second),
        same=", ".join(page.facts.same),
        differing=_facts_table(page.facts),
        gains=_gains_table(page.gains) if page.gains else None,
        models=_models_table(page.models),
        miniature="miniature" in sources,
        version=__version__,
    )


def summary(page: Page) -> str:
    """The short text for the terminal: a line for each result of CLIPTeX, else of all models, that is not the same, and
    the page's sentences."""
    own = [change for change in page.models if change.model == names.SUBJECT] or page.models
    changed = [change for change in own if change.status is not ChangeStatus.SAME]
    rows = [SHORT, *map(_short, changed)] if changed else [("",) * len(SHORT)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(SHORT))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    others = [f"{len(rows):,} in {group}" for group, rows in page.facts.differing.items()]
    last = f"What differs: {', '.join(others) or 'nothing that both runs record'}."
    return "\n".join(
        [f"A: {page.first.folder}", f"B: {page.second.folder}", "", *lines, "", *page.sentences, last, *page.missing]
    )


def _short(change: Change) -> tuple[str, ...]:
    pair = change.pair
    metric = metric_of(pair.task, pair.metric)
    means = [metric.format(fmean(values[change.model])) for values, _ in (pair.first, pair.second)]
    cell = _change_cell(change, metric.decimals)
    moved = f"{cell.text} ({cell.bounds})" if cell.bounds else cell.text
    label = names.model(change.model)
    return f"{label}, {pair.title}, {metric_label(pair.task, pair.metric)}", *means, moved, cell.note


# ---- sentences


def _counts(models: Sequence[Change]) -> str:
    counts = Counter(change.status for change in models)
    tested = sum(change.p is not None and change.status is not ChangeStatus.SAME for change in models)
    parts = [f"{status.value} in {counts[status]}" for status in ChangeStatus if counts[status]]
    text = f"B against A, in {len(models)} results of trained models: {'; '.join(parts)}."
    if tested:
        text += f" Corrected for {tested} comparisons by Holm’s method at {100 * ALPHA:.0f} %."
    return text


def _baselines(changes: Sequence[Change]) -> list[str]:
    if not changes:
        return []
    others = sum(change.status is not ChangeStatus.SAME for change in changes)
    if not others:
        return ["The baselines, which no training changes, have the same results in both runs."]
    return [
        f"The baselines, which no training changes, differ in {others} of {len(changes)} results: the evaluation is "
        "not the same in both runs."
    ]


def _untested(tables: Sequence[SharedTable]) -> list[str]:
    out = []
    for table in tables:
        if table.untested:
            where = f"{names.benchmark(table.scores.benchmark, table.scores.source)}, {KINDS[table.kind]}"
            out.append(f"{where}: no intervals and no test, because {table.untested}.")
    return out


def _missing(first: ComparedRun, second: ComparedRun) -> Iterable[str]:
    """What one run has and the other has not."""
    for (name, run), other in ((("B", second), first), (("A", first), second)):
        lacking = [key for key in other.scores if key not in run.scores]
        if lacking:
            listed = ", ".join(f"{names.benchmark(benchmark)} ({KINDS[kind]})" for kind, benchmark in lacking)
            yield f"{name} has no results yet of: {listed}."
        seeds, more_seeds = (
            {row.seed for scores in one.scores.values() for row in scores.results} for one in (run, other)
        )
        if gone := sorted(more_seeds - seeds):
            yield f"{name} has no results of: seed {', '.join(map(str, gone))}."
        for key in sorted(other.scores.keys() & run.scores.keys()):
            rows, others = (
                {(row.model, row.head, row.seed) for row in one.scores[key].results} for one in (run, other)
            )
            if gone := sorted(row for row in others - rows if row[2] in seeds):
                models = ", ".join(dict.fromkeys(f"{model} with {head}, seed {seed}" for model, head, seed in gone[:3]))
                more = f" and {len(gone) - 3} more" if len(gone) > 3 else ""
                yield f"{name} lacks, of {names.benchmark(key[1])} ({KINDS[key[0]]}): {models}{more}."


# ---- tables


def _change_cell(change: Change, digits: int) -> Cell:
    found = change.difference
    note = f"{SYMBOLS.get(change.status, '')} {change.status.value}".strip()
    if found is None:
        return Cell(MISSING, None, note)
    bounds = format_interval(found.interval, digits) if found.interval else ""
    return Cell(signed(found.value, digits), found.value, note, bounds, tone=TONES.get(change.status, ""))


def _gain_cell(gain: Gain) -> Cell:
    bounds = format_interval(gain.percent_interval) if gain.percent_interval else ""
    return Cell(f"{signed(gain.percent)} %", gain.percent, bounds=bounds)


def _gains_table(changes: Sequence[Change]) -> Table:
    rows = [
        {
            "result": Cell(change.pair.title, note=metric_label(change.pair.task, change.pair.metric)),
            "a": _gain_cell(change.gains[0]),
            "b": _gain_cell(change.gains[1]),
            "change": _change_cell(change, 1),
        }
        for change in changes
    ]
    columns = [Column("result", "Result", numeric=False), Column("a", "Gain in A"), Column("b", "Gain in B")]
    columns.append(Column("change", "Change, percentage points", highlighted=True))
    caption = "Gain of CLIPTeX over CLIP-FT in both runs"
    return Table("gains", caption, columns, [Group(rows)], [_NOTE])


def _models_table(changes: Sequence[Change]) -> Table:
    groups: dict[str, list[Change]] = {}
    for change in changes:
        groups.setdefault(f"{change.pair.title}: {metric_label(change.pair.task, change.pair.metric)}", []).append(
            change
        )
    columns = [Column("model", "Model", numeric=False), Column("a", "A"), Column("b", "B")]
    columns.append(Column("change", "Change", highlighted=True))
    body = [Group([_model_row(change) for change in own], title) for title, own in groups.items()]
    return Table("models", "Every model in both runs", columns, body, [_NOTE])


def _model_row(change: Change) -> Row:
    pair = change.pair
    metric = metric_of(pair.task, pair.metric)
    cells = {"model": Cell(names.model(change.model)), "change": _change_cell(change, metric.decimals)}
    for key, (values, _) in (("a", pair.first), ("b", pair.second)):
        own = values[change.model]
        std = sample_std(own)
        note = "" if std is None else f"± {metric.format(std)}"
        cells[key] = Cell(metric.format(fmean(own)), fmean(own), note)
    return cells


def _facts_table(found: Facts) -> Table | None:
    if not found.differing:
        return None
    table = text_table("differing", "What differs between the runs", ("What", "A", "B"), [])
    groups = [
        Group(
            [{"What": Cell(what), "A": Cell(a or MISSING), "B": Cell(b or MISSING)} for what, a, b in rows],
            group.capitalize(),
        )
        for group, rows in found.differing.items()
    ]
    return Table(table.name, table.caption, table.columns, groups)


_NOTE = (
    f"Change: B minus A over the seeds that both have, signed so that positive is better, with its {LEVEL:.0f} % "
    "interval from a paired bootstrap over evaluation images and seeds. ▲ better and ▼ worse: beyond the noise of "
    f"images and seeds after Holm’s correction at {100 * ALPHA:.0f} % for the rows of this table. △ ▽: the same, but "
    "with one seed, which shows no noise of training."
)
