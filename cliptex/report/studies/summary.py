"""A study's summary: for each metric the number of rows with a difference, and the largest and smallest of them."""

from collections.abc import Mapping, Sequence
from statistics import fmean

import numpy as np

from cliptex.report.bootstrap import LEVEL, interval
from cliptex.report.statistics import format_interval, signed
from cliptex.report.studies.measures import ComparedModel, StudyMeasure

Panel = tuple[StudyMeasure, Sequence[tuple[str, ComparedModel]]]
"""A metric, and the labelled rows compared by it."""
MARKS = {"better": "▲", "worse": "▼", "no difference seen": ""}


def amount(measure: StudyMeasure, row: ComparedModel) -> str:
    """`+1.2 (+0.4 to +2.1)`, signed so that + is better."""
    digits = measure.info.decimals
    bounds = f" ({format_interval(row.bounds, digits)})" if row.bounds else ""
    return f"{signed(row.difference, digits)}{bounds}"


def summary(panels: Sequence[Panel]) -> list[str]:
    """Lines such as `mIoU on Pascal VOC (linear): ▲ 5 of 7, “a” +3.7 (+2.1 to +5.2) to “b” +1.5 (+0.4 to +2.6)`."""
    return [f"{measure.title}: {_counts(measure, rows)}" for measure, rows in panels]


def _counts(measure: StudyMeasure, rows: Sequence[tuple[str, ComparedModel]]) -> str:
    parts = []
    for state in ("better", "worse"):
        ranked = sorted((row for row in rows if row[1].state == state), key=lambda row: -abs(row[1].difference))
        if ranked:
            ends = [ranked[0], ranked[-1]] if len(ranked) > 1 else ranked
            amounts = " to ".join(f"“{label}” {amount(measure, row)}" for label, row in ends)
            parts.append(f"{MARKS[state]} {len(ranked)} of {len(rows)}, {amounts}")
    return "; ".join(parts) or f"no difference in {len(rows)}"


def mean_row(rows: Sequence[ComparedModel]) -> ComparedModel:
    """The mean of several differences and its interval."""
    draws = np.mean([row.draws for row in rows], axis=0)
    value, difference = fmean(row.value for row in rows), fmean(row.difference for row in rows)
    return ComparedModel(rows[0].model, value, None, difference, interval(draws), None, draws)


def cheapest(rows: Mapping[str, ComparedModel], best: ComparedModel, cost: Mapping[str, float]) -> ComparedModel:
    """The row of the lowest cost that is not worse than the best one beyond the noise of the images."""
    bounds = {model: interval(row.draws - best.draws) for model, row in rows.items()}
    as_good = [row for model, row in rows.items() if row is best or bounds[model] is None or bounds[model].high >= 0]
    return min(as_good, key=lambda row: cost[row.model])


def limits(images: Sequence[int], seeds: int, intervals: int, not_shown: str, miniature: bool) -> str:
    """The size of a study, how many of its intervals exclude zero by chance, and what it does not show."""
    number = f"{min(images)}" if len(set(images)) == 1 else f"{min(images)} to {max(images)}"
    runs = "one training run a model" if seeds == 1 else f"{seeds} training runs a model"
    chance = (100 - LEVEL) / 100 * intervals
    return (
        f"Limits: {runs}, {number} {'rendered ' * miniature}images a benchmark; about {chance:.1f} of the {intervals} "
        f"intervals exclude zero by chance alone; not shown: {not_shown}."
    )
