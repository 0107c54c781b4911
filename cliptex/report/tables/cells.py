"""Cells, columns and notes that the tables of the report share."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from statistics import fmean

import numpy as np

from cliptex.evaluation.measures import metric_of
from cliptex.evaluation.metrics.display import Metric
from cliptex.report import names
from cliptex.report.bootstrap import LEVEL
from cliptex.report.evaluators import Pair
from cliptex.report.gains import ProbeGain
from cliptex.report.gather import Results, Scores
from cliptex.report.statistics import (
    Difference,
    Gain,
    GainStatus,
    Gap,
    clear_best,
    format_interval,
    points,
    sample_std,
    signed,
)
from cliptex.report.table import MISSING, Cell, Column, Group, PairCells, Row, csv_columns
from cliptex.report.verdict import mark, tone

ARROWS = {1: "↑", -1: "↓", 0: ""}
PROTOCOL_COLUMNS = ("metric", "seeds", "source", "variant", "split", "training images", "evaluation images")
PROTOCOL_COLUMNS += ("encoders trained on", "protocol")
"""CSV columns that state how a row was measured (`protocol_cells`)."""
GAIN_COLUMNS = ("outcome", "gain low", "gain high", "difference", "difference low", "difference high")
"""CSV columns of a gain (`gain_csv_cells`)."""

GAP_COLUMNS = ("gap low", "gap high", "gain beyond gap low", "gain beyond gap high")
"""CSV columns of the yardstick (`gap_csv_cells`)."""

BOLD = (
    "Bold: better than every other model of the row, each beyond the noise (as for a gain); not corrected for the "
    "number of rows."
)


def count(value: float) -> str:
    """Whole number with a narrow no-break space between thousands."""
    return f"{value:,.0f}".replace(",", "\u202f")


def count_cell(value: float) -> Cell:
    return Cell(count(value), value)


def number_cell(value: float | None) -> Cell:
    return Cell(MISSING) if value is None else Cell(str(value), value)


def metric_label(task: str, name: str) -> str:
    """`RMSE (m) ↓`."""
    metric = metric_of(task, name)
    return f"{metric.title}{f' ({metric.unit})' if metric.unit else ''} {ARROWS[metric.better]}".strip()


def task_cell(task: str, head: str, metric: str) -> Cell:
    """The first cell of a row: task, head, and the metric as its note."""
    return Cell(f"{names.task(task)}, {names.head(head)}", note=metric_label(task, metric))


def task_column(heading: str = "Task, head, metric") -> Column:
    return Column("task", heading, numeric=False)


def model_key(model: str) -> str:
    """Key of a model's column; no model's name can be that of another column."""
    return f"model {model}"


def model_columns(models: Iterable[str]) -> list[Column]:
    """A column for each model; CLIPTeX's is highlighted."""
    return [Column(model_key(name), names.model(name), highlighted=name == names.SUBJECT) for name in models]


def value_cells(
    results: Results,
    scores: Scores,
    task: str,
    head: str,
    metric: str,
    models: Sequence[str],
    draws: Mapping[str, np.ndarray] | None = None,
) -> dict[str, Cell]:
    """The metric of each model, and for the CSV its standard deviation and how it was measured (`value_columns`).

    draws: of the metric, model -> its value in each draw; without them no model is called the best.
    """
    values = scores.values(task, head, metric)
    shown = {model: values.get(model, []) for model in models}
    best = clear_best(shown, metric_of(task, metric).better, draws or {})
    cells = {model_key(model): _value_cell(own, task, metric, model == best) for model, own in shown.items()}
    cells |= {_std_column(model): number_cell(sample_std(values.get(model, []))) for model in models}
    return cells | protocol_cells(results, scores, task, head, metric)


def value_columns(models: Iterable[str]) -> list[Column]:
    """The CSV columns of `value_cells`, after those of the models."""
    return csv_columns([*map(_std_column, models), *PROTOCOL_COLUMNS])


def _std_column(model: str) -> str:
    return f"{names.model(model)} standard deviation"


def _value_cell(values: Sequence[float], task: str, name: str, best: bool) -> Cell:
    if not values:
        return Cell(MISSING)
    metric, mean, std, note = metric_of(task, name), fmean(values), sample_std(values), ""
    if std is not None:
        # one more digit if it would read as zero
        note = f"± {std:.1g}" if not float(metric.format(std)) and std >= 1e-4 else f"± {metric.format(std)}"
    return Cell(metric.format(mean), mean, note, best=best)


def gain_cell(gain: Gain, metric: Metric, difference: Difference | None = None) -> Cell:
    """The gain in the metric's unit with its interval, in percent, and its mark; the CSV has the percent.

    difference: the gain in the metric's unit, where the gain's own is in another.
    """
    against = difference or gain.difference
    if gain.status is GainStatus.MISSING or against is None:
        return Cell(MISSING)
    note = mark(gain.status)
    if gain.status is GainStatus.BASELINE:
        note = f"△ {' and '.join(map(names.model, gain.baselines))} as good"
    if gain.percent is not None:
        note = f"{signed(gain.percent)} %, {note}"
    bounds = format_interval(against.interval, metric.decimals) if against.interval else ""
    return Cell(points(against.value, metric), gain.percent, note, bounds, tone=tone(gain.status))


def other_pairs(results: Results) -> list[Pair]:
    """Pairs of models that the reader can compare instead of CLIPTeX and CLIP-FT: any with any other or a baseline.
    Empty without these two."""
    if not {names.SUBJECT, names.REFERENCE} <= set(results.models):
        return []
    pairs = [(a, b) for a in results.models for b in (*results.models, *results.baselines) if a != b]
    return [pair for pair in pairs if pair != (names.SUBJECT, names.REFERENCE)]


def pair_cells(
    results: Results, heading: str, rows_of: Callable[[Pair], Sequence[Row]], key: str = "gain"
) -> list[PairCells]:
    """The columns of a gain and its yardstick for `other_pairs`.

    heading: of the column `key`, such as `{} over {}`. rows_of: a pair's cells, in the order of the table's rows.
    """
    gap = {column.key: column.heading for column in gap_columns(results) if not column.csv_only}
    return [
        PairCells(*pair, {key: heading.format(*map(names.model, pair))} | gap, list(rows_of(pair)))
        for pair in other_pairs(results)
    ]


def metric_gain_cells(probe: ProbeGain) -> dict[str, Cell]:
    """A row's gain and its yardstick."""
    metric = metric_of(probe.task, probe.metric)
    return {"gain": gain_cell(probe.gain, metric), **metric_gap_cells(probe.gap, probe.task, probe.metric)}


def gain_csv_cells(gain: Gain, prefix: str = "") -> dict[str, Cell]:
    """For the CSV (`GAIN_COLUMNS`): status, bounds of the gain in percent, the difference and its bounds."""
    difference, percent = gain.difference, gain.percent_interval
    bounds = difference.interval if difference else None
    numbers = percent and percent.low, percent and percent.high, difference and difference.value
    cells = [Cell(gain.status.value), *map(number_cell, (*numbers, bounds and bounds.low, bounds and bounds.high))]
    return {f"{prefix}{column}": cell for column, cell in zip(GAIN_COLUMNS, cells, strict=True)}


def gap_columns(results: Results) -> list[Column]:
    """The yardstick's column, next to that of the gain; none without a yardstick."""
    return [Column("gap", "Gap of two recipes"), *csv_columns(GAP_COLUMNS)] if results.yardstick else []


def gap_cells(gap: Gap | None, text: str, decimals: int) -> dict[str, Cell]:
    """The yardstick next to a gain: its size (`text`), interval, and whether the gain is larger."""
    if gap is None:
        return {"gap": Cell(MISSING), **{column: Cell(MISSING) for column in GAP_COLUMNS}}
    change = "gain" if gap.gain >= 0 else "loss"
    note = f"{change} not larger"
    if gap.exceeded:
        note = f"{change} larger" if gap.beyond_noise else f"{change} larger, within noise"
    bounds = gap.interval, gap.excess
    numbers = [getattr(one, end) if one else None for one in bounds for end in ("low", "high")]
    shown = format_interval(gap.interval, decimals) if gap.interval else ""
    cells = {"gap": Cell(text, gap.value, note, shown)}
    return cells | dict(zip(GAP_COLUMNS, map(number_cell, numbers), strict=True))


def metric_gap_cells(gap: Gap | None, task: str, metric: str) -> dict[str, Cell]:
    """The yardstick in the metric's unit."""
    about = metric_of(task, metric)
    return gap_cells(gap, about.format(gap.value) if gap else MISSING, about.decimals)


def gap_notes(results: Results) -> list[str]:
    """What the yardstick is; none without one."""
    if not results.yardstick:
        return []
    pair = " and ".join(map(names.model, results.yardstick))
    return [
        f"Gap of two recipes: between {pair}, two models that differ by an ordinary recipe, under the same protocol; "
        f"the absolute difference of the means in the metric’s unit, and its {LEVEL:.0f} % interval. Larger: |gain| is "
        "more than |gap| in that unit, beyond the noise if the interval of |gain| − |gap| is above zero."
    ]


def probe_groups(
    benchmarks: dict[str, Scores], gains: Sequence[ProbeGain], row: Callable[[Scores, ProbeGain], Row]
) -> list[Group]:
    """A group for each benchmark with a row for each of its gains."""
    rows = {
        name: [row(scores, gain) for gain in gains if gain.benchmark == name] for name, scores in benchmarks.items()
    }
    return [
        Group(rows[name], names.benchmark(name, scores.source), image_counts(scores))
        for name, scores in benchmarks.items()
    ]


# ---- how a result was measured


def protocol_cells(results: Results, scores: Scores, task: str, head: str, metric: str) -> dict[str, Cell]:
    """For the CSV (`PROTOCOL_COLUMNS`): how a row's numbers were measured."""
    rows = [row for row in scores.results if (row.task, row.head) == (task, head)]
    cells = [
        Cell(metric),
        Cell(" ".join(map(str, sorted({row.seed for row in rows})))),
        Cell(scores.source),
        Cell(scores.variant or MISSING),
        Cell(scores.split),
        number_cell(scores.num_train),
        number_cell(scores.num_eval),
        Cell(_training_set(results)),
        Cell("; ".join(dict.fromkeys(row.protocol for row in rows if row.protocol))),
    ]
    return dict(zip(PROTOCOL_COLUMNS, cells, strict=True))


def image_counts(scores: Scores) -> str:
    """Source of the data and numbers of images, in words."""
    described = {"miniature": ["rendered stand-in"], "subset": ["a subset of the official images"]}
    parts = list(described.get(scores.source, []))
    if scores.variant and scores.source != "miniature":
        parts.append(f"variant {scores.variant}")
    evaluated = f"evaluated on {count(scores.num_eval)}"
    if scores.num_train:
        trained = "heads" if scores.frozen else "encoders and heads"
        parts += [f"{trained} trained on {count(scores.num_train)} of its images", evaluated]
    else:
        parts.append(f"{evaluated} images")
    return f"{', '.join(parts)} ({scores.split})"


def fine_notes(
    results: Results, benchmarks: Iterable[Scores], families: Collection[str] = tuple(names.FAMILIES)
) -> list[str]:
    """Notes under a table of results: protocol and images of each benchmark, training data of the encoders, seeds.

    families: of the rows in the table (`names.FAMILIES`).
    """
    notes = []
    for scores in benchmarks:
        protocols = [f"{tasks}: {protocol}" for protocol, tasks in _protocols(scores, families).items()]
        benchmark = names.benchmark(scores.benchmark, scores.source)
        notes.append(f"{benchmark}: {'. '.join([image_counts(scores), *protocols])}.")
    config = results.config
    if results.shards["num_samples"]:
        notes.append(f"Encoders were trained on {_training_set(results)}.")
    for name, model in config.models.items():
        if model.tasks:
            stores = [f"{store} by {names.head(config.label_stores[store].origin)}" for store in model.tasks]
            notes.append(f"{names.model(name)} was also trained on pseudo-labels: {', '.join(stores)}.")
    seeds = config.seeds
    return [*notes, f"{'Seeds' if len(seeds) > 1 else 'Seed'}: {', '.join(map(str, seeds))}."]


def _training_set(results: Results) -> str:
    kind = {"miniature": "rendered image-caption pairs", "urls": "image-caption pairs from a list of urls"}
    pairs = count(results.shards["num_samples"])
    return f"{pairs} {kind.get(results.config.dataset.source, 'image-caption pairs')}"


def _protocols(scores: Scores, families: Collection[str]) -> dict[str, str]:
    """Protocol -> the tasks and heads that follow it, in words."""
    heads_of: dict[str, dict[str, dict[str, None]]] = {}
    for row in scores.results:
        if row.protocol and scores.family(row.task, row.head) in families:
            heads_of.setdefault(row.protocol, {}).setdefault(row.task, {})[names.head(row.head)] = None
    return {
        protocol: "; ".join(f"{names.task(task)}, {', '.join(heads)}" for task, heads in tasks.items())
        for protocol, tasks in heads_of.items()
    }
