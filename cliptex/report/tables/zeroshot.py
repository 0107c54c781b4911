"""The table of zero-shot classification and retrieval."""

from collections.abc import Sequence

from cliptex.config import PUBLISHED_TOLERANCE
from cliptex.report import names
from cliptex.report.bootstrap import LEVEL, resampled_over
from cliptex.report.gather import Results, Scores
from cliptex.report.statistics import ZeroShot, format_interval, signed
from cliptex.report.table import MISSING, Cell, Column, Group, Row, Table, csv_columns
from cliptex.report.tables.cells import (
    fine_notes,
    image_counts,
    metric_label,
    model_columns,
    number_cell,
    task_column,
    value_cells,
    value_columns,
)
from cliptex.report.verdict import mark, tone


def zeroshot_table(results: Results, zeroshot: Sequence[ZeroShot]) -> Table | None:
    """Zero-shot metrics with their chance levels; None without results."""
    if not results.zeroshot:
        return None
    evaluated = {row.model for scores in results.zeroshot.values() for row in scores.rows}
    models = [*(name for name in results.baselines if name in evaluated), *results.models]
    differences = {item.key: item for item in zeroshot}
    groups = []
    for name, scores in results.zeroshot.items():
        rows = [
            _row(results, scores, task, head, metric, models, differences.get((name, task)))
            for task, head in scores.cells()
            for metric in scores.metric_names(task, head)
        ]
        classes = f", {len(scores.class_names)} classes" if scores.class_names else ""
        groups.append(Group(rows, names.benchmark(name), image_counts(scores) + classes))
    notes = [
        "Last column, for the first metric of each task: difference of the means in points, its "
        f"{LEVEL:.0f} % interval over {resampled_over(results.config.seeds)} (paired bootstrap), and whether zero-shot "
        "is kept: not below CLIP-FT by more than the noise."
    ]
    notes += [
        f"{names.benchmark(name)}: the published value of {names.model(model)} is {published:g} %; ours is within "
        f"{PUBLISHED_TOLERANCE} points."
        for name, scores in results.zeroshot.items()
        for model, published in scores.published.items()
    ]
    return Table(
        "zeroshot",
        "Zero-shot",
        [
            task_column("Task, metric"),
            Column("chance", "Chance"),
            *model_columns(models),
            Column("difference", "CLIPTeX − CLIP-FT"),
            *value_columns(models),
            *csv_columns(["difference low", "difference high"]),
        ],
        groups,
        notes,
        "benchmark",
        fine_notes(results, results.zeroshot.values()),
    )


def _row(
    results: Results,
    scores: Scores,
    task: str,
    head: str,
    metric: str,
    models: Sequence[str],
    difference: ZeroShot | None,
) -> Row:
    chance = scores.chance_level(task, metric)
    against = difference.against if difference and metric == scores.main_metric(task, head) else None
    bounds = against.interval if against else None
    return {
        "task": Cell(names.task(task), note=metric_label(task, metric)),
        "chance": Cell(MISSING) if chance is None else Cell(f"{chance:.1f}", chance),
        "difference": _difference_cell(difference) if against else Cell(MISSING),
        **value_cells(results, scores, task, head, metric, models),
        "difference low": number_cell(bounds and bounds.low),
        "difference high": number_cell(bounds and bounds.high),
    }


def _difference_cell(item: ZeroShot) -> Cell:
    """CLIPTeX minus CLIP-FT in points, with its interval and mark."""
    bounds = format_interval(item.against.interval) if item.against.interval else ""
    return Cell(signed(item.against.value), item.against.value, mark(item.state), bounds, tone=tone(item.state))
