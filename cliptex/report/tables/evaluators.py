"""Tables of evaluators: all of them, as the verdict counts them, and the rows of those without a trained head."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from cliptex.report import names
from cliptex.report.bootstrap import LEVEL, resampled_over
from cliptex.report.evaluators import ALPHA, CountedEvaluator, evaluators
from cliptex.report.gains import ProbeGain
from cliptex.report.gather import Results, Scores
from cliptex.report.statistics import BETTER, COUNTED
from cliptex.report.table import MISSING, Cell, Column, Group, Row, Table, csv_columns
from cliptex.report.tables.cells import (
    GAIN_COLUMNS,
    fine_notes,
    gain_cell,
    gain_csv_cells,
    gap_cells,
    gap_columns,
    gap_notes,
    image_counts,
    metric_gain_cells,
    model_columns,
    other_pairs,
    pair_cells,
    task_cell,
    task_column,
    value_cells,
    value_columns,
)

GAIN_OF_EVALUATORS = ("outcome", "gain low", "gain high")
NO_HEAD = tuple(family for family in names.FAMILIES if family != "trained_head")
"""The families of the section on evaluators without a trained head."""


def by_family(evaluators: Iterable[CountedEvaluator]) -> dict[str, list[CountedEvaluator]]:
    out: dict[str, list[CountedEvaluator]] = {}
    for one in evaluators:
        out.setdefault(one.family, []).append(one)
    return out


def evaluators_table(results: Results, gains: Sequence[ProbeGain]) -> Table | None:
    """A row for each evaluator of the verdict, grouped by family; None without any. gains: all of frozen encoders."""
    if not (found := evaluators(gains, results.baselines, results.yardstick)):
        return None
    others = {
        pair: _groups(evaluators(gains, results.baselines, results.yardstick, pair)) for pair in other_pairs(results)
    }
    pairs = pair_cells(results, "{} over {}", lambda pair: [row for group in others[pair] for row in group.rows])
    gap = [
        note.replace("the absolute difference of the means in the metric’s unit", "in percent of CLIP-FT")
        for note in gap_notes(results)
    ]
    return Table(
        "evaluators",
        "What the verdict counts",
        [
            Column("evaluator", "Evaluator", numeric=False),
            Column("gain", "CLIPTeX over CLIP-FT"),
            Column("p", "p"),
            Column("adjusted", "p, Holm"),
            *gap_columns(results),
            *csv_columns([*GAIN_OF_EVALUATORS, "heads"]),
        ],
        _groups(found),
        [
            "An evaluator is a dense task of a benchmark, read in one way: by trained heads, without one, or "
            "by text. Its gain is the mean of its heads’ relative gains, seed by seed and draw by draw, so that many "
            f"heads on one set count once. Below each gain its {LEVEL:.0f} % interval over "
            f"{resampled_over(results.config.seeds)}. In the metric’s unit it is the mean of the heads’ differences. "
            "Marks as in the next table, for the mean over the heads.",
            "p: two-sided, of no gain, from the standard deviation of the draws and the normal "
            "distribution. Holm: the same, adjusted for all evaluators; a gain that passes alone counts if this is at "
            f"most {ALPHA:g}.",
            *gap,
        ],
        "family",
        pairs=[
            replace(
                cells,
                headings=cells.headings | {"p": "p", "adjusted": "p, Holm"},
                notes=[group.note for group in others[cells.subject, cells.reference]],
            )
            for cells in pairs
        ],
    )


def _groups(found: Iterable[CountedEvaluator]) -> list[Group]:
    """A group for each family, with its counts."""
    groups = []
    for family, own in by_family(found).items():
        better = sum(one.gain.status in BETTER for one in own)
        counted = sum(one.gain.status in COUNTED for one in own)
        note = f"better in {better} of {len(own)}, beyond the noise in {counted}"
        groups.append(Group([_evaluator_row(one) for one in own], names.FAMILIES[family], note))
    return groups


def _evaluator_row(one: CountedEvaluator) -> Row:
    heads = ", ".join(names.head(head.head) for head in one.heads)
    csv = gain_csv_cells(one.gain)
    return {
        "evaluator": Cell(one.title, note=heads),
        "family": Cell(names.FAMILIES[one.family]),
        "gain": gain_cell(one.gain, one.metric, one.points),
        "p": _p_cell(one.p),
        "adjusted": _p_cell(one.adjusted),
        **gap_cells(one.gap, f"{one.gap.value:.1f} %" if one.gap else MISSING, 1),
        **{column: csv[column] for column in GAIN_OF_EVALUATORS},
        "heads": Cell(heads),
    }


def _p_cell(p: float | None) -> Cell:
    return Cell(MISSING) if p is None else Cell("< 0.001" if p < 0.001 else f"{p:.3f}", p)


def scores_by_benchmark(results: Results) -> dict[str, list[Scores]]:
    """Results files with rows of frozen encoders on dense tasks and on others: probes, and those without training."""
    out: dict[str, list[Scores]] = {}
    for scores in (*results.probes.values(), *results.training_free.values()):
        out.setdefault(scores.benchmark, []).append(scores)
    return out


def untrained_rows(results: Results, gains: Iterable[ProbeGain]) -> dict[str, list[tuple[Scores, ProbeGain]]]:
    """Benchmark -> rows without a trained head, each with its results file; those of probes first."""
    out: dict[str, list[tuple[Scores, ProbeGain]]] = {}
    known = list(gains)
    for benchmark, files in scores_by_benchmark(results).items():
        for scores in files:
            cells = set(scores.cells())
            for gain in known:
                if gain.benchmark == benchmark and gain.family in NO_HEAD and (gain.task, gain.head) in cells:
                    out.setdefault(benchmark, []).append((scores, gain))
    return out


def untrained_table(results: Results, rows: Mapping[str, Sequence[tuple[Scores, ProbeGain]]]) -> Table | None:
    """The main metric of every model, and CLIPTeX's gain over CLIP-FT; None without rows (`untrained_rows`)."""
    if not rows:
        return None
    shown = [*results.models, *results.baselines]

    def row(scores: Scores, gain: ProbeGain) -> Row:
        return {
            "task": task_cell(gain.task, gain.head, gain.metric),
            "family": Cell(names.FAMILIES[gain.family]),
            **metric_gain_cells(gain),
            **value_cells(results, scores, gain.task, gain.head, gain.metric, shown, gain.draws),
            **gain_csv_cells(gain.gain),
        }

    files = {scores.path: scores for own in rows.values() for scores, _ in own}
    return Table(
        "untrained",
        "Frozen encoders without a trained head",
        [
            task_column("Task, variant, metric"),
            Column("family", "Read", numeric=False),
            *model_columns(results.models),
            Column("gain", "CLIPTeX over CLIP-FT"),
            *gap_columns(results),
            *model_columns(results.baselines),
            *value_columns(shown),
            *csv_columns(GAIN_COLUMNS),
        ],
        [
            Group(
                [row(scores, gain) for scores, gain in own],
                names.benchmark(benchmark, own[-1][0].source),
                image_counts(own[-1][0]),
            )
            for benchmark, own in rows.items()
        ],
        ["Intervals and marks as in the first tables, for each row alone.", *gap_notes(results)],
        "benchmark",
        fine_notes(results, files.values(), NO_HEAD),
        pair_cells(
            results,
            "{} over {}",
            lambda pair: [
                metric_gain_cells(gain.between(*pair, results.yardstick)) for own in rows.values() for _, gain in own
            ],
        ),
    )
