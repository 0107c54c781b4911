"""Tables of results: probes on frozen and fine-tuned encoders, zero-shot, and every metric of every seed."""

from collections.abc import Sequence
from typing import Any

from cliptex.config import PUBLISHED_TOLERANCE
from cliptex.report import names
from cliptex.report.bootstrap import LEVEL, resampled_over
from cliptex.report.gains import ProbeGain, further_models
from cliptex.report.gather import Results, Scores
from cliptex.report.seen import COLUMN as SEEN_COLUMN
from cliptex.report.seen import SeenData
from cliptex.report.statistics import Gain, GainStatus, ZeroShot, format_interval, signed
from cliptex.report.table import MISSING, Cell, Column, Group, Row, Table, csv_columns
from cliptex.report.tables.cells import (
    GAIN_COLUMNS,
    PROTOCOL_COLUMNS,
    count,
    fine_notes,
    gain_cell,
    gain_csv_cells,
    gap_columns,
    gap_notes,
    image_counts,
    metric_gap_cells,
    metric_label,
    model_columns,
    model_key,
    number_cell,
    probe_groups,
    protocol_cells,
    task_cell,
    task_column,
    value_cells,
    value_columns,
)
from cliptex.report.verdict import mark, tone

ONE_SEED = (
    "The interval covers which images were evaluated. It does not cover how training or a head would turn out with "
    "another seed, so with one seed no gain is called real."
)


def main_table(results: Results, gains: Sequence[ProbeGain]) -> Table:
    """The main metric of every model and baseline, and CLIPTeX's gain over CLIP-FT. gains: of trained heads."""
    models = [model for model in results.models if model in names.MODELS]
    shown = [*models, *results.baselines]
    return Table(
        "main",
        "Dense and classification probes on frozen encoders",
        [
            task_column(),
            *model_columns(models),
            Column("gain", "CLIPTeX over CLIP-FT"),
            *gap_columns(results),
            *model_columns(results.baselines),
            *value_columns(shown),
            *csv_columns(GAIN_COLUMNS),
        ],
        probe_groups(results.probes, gains, lambda scores, probe: _row(results, scores, probe, shown)),
        [*_main_notes(results, any(probe.gain.percent_interval for probe in gains)), *gap_notes(results)],
        "benchmark",
        fine_notes(results, results.probes.values(), ["trained_head"]),
    )


def _row(results: Results, scores: Scores, probe: ProbeGain, models: Sequence[str]) -> Row:
    """The main metric of each model, and CLIPTeX's gain over CLIP-FT."""
    return {
        "task": task_cell(probe.task, probe.head, probe.metric),
        "gain": gain_cell(probe.gain),
        **metric_gap_cells(probe.gap, probe.task, probe.metric),
        **value_cells(results, scores, probe.task, probe.head, probe.metric, models),
        **gain_csv_cells(probe.gain),
    }


def _main_notes(results: Results, intervals: bool) -> list[str]:
    seeds = len(results.config.seeds)
    better = "↑ higher is better, ↓ lower is better."
    if seeds > 1:
        notes = [f"{better} Mean ± sample standard deviation over {seeds} seeds; the best mean of a row is bold."]
    else:
        notes = [f"{better} The best value of a row is bold."]
    if intervals:
        notes.append(
            f"Below each gain its {LEVEL:.0f} % interval over {resampled_over(results.config.seeds)} (paired "
            f"bootstrap, {count(results.config.report.resamples)} draws; in percent of CLIP-FT’s value)."
        )
    above_zero = ", and with an interval above zero" if intervals else ""
    if seeds > 1:
        notes.append(
            "Real: the mean is better than that of CLIP-FT, Random and Position, each by more than the pooled standard "
            "deviation of the two models compared, √(Σ squared deviations from each model's own mean / "
            f"(n₁ + n₂ − 2)){above_zero}. Within noise: better by less."
        )
    else:
        notes.append(f"One seed: better than CLIP-FT and both baselines{above_zero}. {ONE_SEED}")
    notes.append(
        "Random: an untrained encoder. Position: an encoding of the patch position, the same for every image. If a "
        "baseline is as good, the gain may not come from the image."
    )
    return notes


def finetuned_table(results: Results, tuned: Sequence[ProbeGain], frozen: Sequence[ProbeGain]) -> Table | None:
    """The main metric of fine-tuned encoders, and CLIPTeX's gain next to that of frozen ones; None without any."""
    if not tuned:
        return None
    shown = [*results.models, *results.config.finetune.baselines]
    gains = {(probe.benchmark, probe.task, probe.head): probe.gain for probe in frozen}

    def row(scores: Scores, probe: ProbeGain) -> Row:
        gain = gains.get((probe.benchmark, probe.task, probe.head), Gain(GainStatus.MISSING))
        return {**_row(results, scores, probe, shown), "frozen gain": gain_cell(gain)}

    return Table(
        "finetuned",
        "End-to-end fine-tuning",
        [
            task_column(),
            *model_columns(shown),
            Column("gain", "CLIPTeX over CLIP-FT"),
            *gap_columns(results),
            Column("frozen gain", "the same, frozen"),
            *value_columns(shown),
            *csv_columns(GAIN_COLUMNS),
        ],
        probe_groups(results.finetuned, tuned, row),
        [
            "Encoder and head are trained on the benchmark. Next to CLIPTeX's relative gain over CLIP-FT with "
            "fine-tuned encoders stands that with frozen ones; intervals and marks as in the table of probes. Random: "
            "trained from scratch."
        ],
        "benchmark",
        fine_notes(results, results.finetuned.values()),
    )


def further_values_table(results: Results, gains: Sequence[ProbeGain]) -> Table | None:
    """Values of further models, with those of CLIP-FT and CLIPTeX; None without further models."""
    further = further_models(results)
    if not further:
        return None
    shown = [model for model in (names.REFERENCE, names.SUBJECT) if model in results.models] + further
    return Table(
        "further_values",
        "Further models compared with CLIP-FT and CLIPTeX",
        [task_column(), *model_columns(shown), *value_columns(shown)],
        probe_groups(results.probes, gains, lambda scores, probe: _row(results, scores, probe, shown)),
        ["As in the table of probes."],
        "benchmark",
        fine_notes(results, results.probes.values()),
    )


def further_table(results: Results, gains: Sequence[ProbeGain]) -> Table | None:
    """Gains over CLIP-FT of CLIPTeX and of further models; None without further models."""
    further = further_models(results)
    shown = [names.SUBJECT] * (names.SUBJECT in results.models) + further
    if not further or names.REFERENCE not in results.models:
        return None

    def row(scores: Scores, probe: ProbeGain) -> Row:
        cells = {"task": task_cell(probe.task, probe.head, probe.metric)}
        for model in shown:
            gain = probe.gain_of(model, results.baselines)
            cells |= {model_key(model): gain_cell(gain), **gain_csv_cells(gain, f"{names.model(model)} ")}
        return cells | protocol_cells(results, scores, probe.task, probe.head, probe.metric)

    more = [f"{names.model(model)} {column}" for model in shown for column in GAIN_COLUMNS]
    return Table(
        "further_models",
        "Gain over CLIP-FT of CLIPTeX and of the further models",
        [task_column(), *model_columns(shown), *csv_columns([*more, *PROTOCOL_COLUMNS])],
        [Group(group.rows, group.title) for group in probe_groups(results.probes, gains, row)],
        ["Relative gain in percent, signed so that + is better; intervals and marks as in the table of probes."],
        "benchmark",
        fine_notes(results, results.probes.values()),
    )


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
            value_cells(results, scores, task, head, metric, models)
            | _zeroshot_row(scores, task, head, metric, differences.get((name, task)))
            for task, head in scores.cells()
            for metric in scores.metric_names(task, head)
        ]
        classes = f", {len(scores.class_names)} classes" if scores.class_names else ""
        groups.append(Group(rows, names.benchmark(name, scores.source), image_counts(scores) + classes))
    notes = [
        "CLIPTeX − CLIP-FT, for the first metric of each task: difference of the means in points, its "
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
            *gap_columns(results),
            *value_columns(models),
            *csv_columns(["difference low", "difference high"]),
        ],
        groups,
        notes,
        "benchmark",
        fine_notes(results, results.zeroshot.values()),
    )


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
    return Cell(signed(item.against.value), item.against.value, mark(item.state), bounds, tone=tone(item.state))


def metrics_table(results: Results, scores: Scores, models: Sequence[str]) -> Table:
    """Every metric of one results file; one row for each task, head and metric."""
    rows = [
        {"task": task_cell(task, head, metric), **value_cells(results, scores, task, head, metric, models)}
        for task, head in scores.cells()
        for metric in scores.metric_names(task, head)
    ]
    kind = scores.path.parent.name
    how = {"finetuned": ", fine-tuned", "training_free": ", nothing trained"}.get(kind, "")
    return Table(
        f"{kind}_{scores.benchmark}",
        f"{names.benchmark(scores.benchmark, scores.source)}{how}, all metrics",
        [task_column(), *model_columns(models), *value_columns(models)],
        [Group(rows)],
        fine=fine_notes(results, [scores]),
    )


def long_rows(results: Results) -> list[list[Any]]:
    """Every metric of every seed for all_metrics.csv, one row each, after the header.

    The last column, how much of the data an expert of the model has seen, is there only if one has.
    """
    seen = SeenData(results.config, results.experts)
    columns = ["kind", "benchmark", "source", "variant", "split", "num_train", "num_eval"]
    columns += ["task", "head", "protocol", "model", "seed", "metric", "value"]
    out: list[list[Any]] = []
    for kind, scores in results.all_scores:
        data = [kind, scores.benchmark, scores.source, scores.variant, scores.split, scores.num_train, scores.num_eval]
        degrees = {model: seen.degree(scores, [model]) or "" for model in results.models}
        for row in scores.results:
            measured = [*data, row.task, row.head, row.protocol, row.model, row.seed]
            out += [[*measured, metric, value, degrees.get(row.model, "")] for metric, value in row.metrics.items()]
    out = [[*columns, SEEN_COLUMN], *out]
    return out if any(line[-1] for line in out[1:]) else [line[:-1] for line in out]
