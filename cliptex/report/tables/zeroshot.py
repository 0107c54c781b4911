"""The table of zero-shot classification and retrieval."""

from collections.abc import Mapping, Sequence
from statistics import fmean

import numpy as np

from cliptex.config import PUBLISHED_TOLERANCE
from cliptex.report import names
from cliptex.report.bootstrap import LEVEL, resampled_over
from cliptex.report.evaluators import Pair
from cliptex.report.gather import Results, Scores
from cliptex.report.statistics import format_interval, relative_gain, signed
from cliptex.report.table import MISSING, Cell, Column, Group, Row, Table, csv_columns
from cliptex.report.tables.cells import (
    BOLD,
    fine_notes,
    gap_columns,
    image_counts,
    metric_gap_cells,
    metric_label,
    model_columns,
    number_cell,
    pair_cells,
    task_column,
    value_cells,
    value_columns,
)
from cliptex.report.verdict import mark, tone
from cliptex.report.zeroshot import ZeroShot


def zeroshot_table(results: Results, zeroshot: Sequence[ZeroShot]) -> Table | None:
    """Zero-shot metrics with their chance levels; None without results."""
    if not results.zeroshot:
        return None
    evaluated = {row.model for scores in results.zeroshot.values() for row in scores.results}
    models = [*(name for name in results.baselines if name in evaluated), *results.models]
    differences = {item.key: item for item in zeroshot}
    groups = []
    for name, scores in results.zeroshot.items():
        rows = [
            value_cells(results, scores, task, head, metric, models, _draws(differences, scores, task, head, metric))
            | _zeroshot_row(scores, task, head, metric, differences.get((name, task)))
            for task, head in scores.cells()
            for metric in scores.metric_names(task, head)
        ]
        classes = f", {len(scores.class_names)} classes" if scores.class_names else ""
        groups.append(Group(rows, names.benchmark(name, scores.source), image_counts(scores) + classes))
    notes = [
        "CLIPTeX − CLIP-FT, for the first metric of each task: difference of the means in points, its "
        f"{LEVEL:.0f} % interval over {resampled_over(results.config.seeds)} (paired bootstrap), the difference in "
        "percent of CLIP-FT, and whether zero-shot is better by more than the noise, kept (not lower, or lower within "
        f"the noise), or lost. {BOLD}"
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
            *gap_columns(results),
            *value_columns(models),
            *csv_columns(["difference low", "difference high"]),
        ],
        groups,
        notes,
        "benchmark",
        fine_notes(results, results.zeroshot.values()),
        pair_cells(results, "{} − {}", lambda pair: _zeroshot_pair(results, differences, pair), "difference"),
    )


def _draws(
    shots: Mapping[tuple[str, str], ZeroShot], scores: Scores, task: str, head: str, metric: str
) -> Mapping[str, np.ndarray]:
    """Of the main metric; empty for others."""
    shot = shots.get((scores.benchmark, task))
    return shot.measured[1] if shot and metric == scores.main_metric(task, head) else {}


def _zeroshot_pair(results: Results, shots: Mapping[tuple[str, str], ZeroShot], pair: Pair) -> list[Row]:
    """The row of each task and metric with another pair of models."""
    return [
        _zeroshot_row(scores, task, head, metric, shot and shot.between(*pair, results.yardstick))
        for name, scores in results.zeroshot.items()
        for task, head in scores.cells()
        for shot in [shots.get((name, task))]
        for metric in scores.metric_names(task, head)
    ]


def _zeroshot_row(scores: Scores, task: str, head: str, metric: str, difference: ZeroShot | None) -> Row:
    chance = scores.chance_level(task, metric)
    against = difference.against if difference and metric == scores.main_metric(task, head) else None
    bounds = against.interval if against else None
    return {
        "task": Cell(names.task(task), note=metric_label(task, metric)),
        **metric_gap_cells(difference.gap if against else None, task, metric),
        "chance": Cell(MISSING) if chance is None else Cell(f"{chance:.1f}", chance),
        "difference": _difference_cell(difference) if against else Cell(MISSING),
        "difference low": number_cell(bounds and bounds.low),
        "difference high": number_cell(bounds and bounds.high),
    }


def _difference_cell(item: ZeroShot) -> Cell:
    bounds = format_interval(item.against.interval) if item.against.interval else ""
    percent = relative_gain(fmean(item.subject), fmean(item.reference), 1)
    note = mark(item.state) if percent is None else f"{signed(percent)} %, {mark(item.state)}"
    return Cell(f"{signed(item.against.value)} points", item.against.value, note, bounds, tone=tone(item.state))
