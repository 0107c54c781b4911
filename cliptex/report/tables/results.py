"""Tables of results: probes on frozen and fine-tuned encoders, zero-shot, and every metric of every seed."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from cliptex.evaluation.measures import metric_of
from cliptex.report import names
from cliptex.report.bootstrap import LEVEL, resampled_over
from cliptex.report.evaluators import Pair
from cliptex.report.gains import ProbeGain, further_models
from cliptex.report.gather import Results, Scores
from cliptex.report.seen import COLUMN as SEEN_COLUMN
from cliptex.report.seen import SeenData
from cliptex.report.statistics import Gain, GainStatus
from cliptex.report.table import Cell, Column, Group, PairCells, Row, Table, csv_columns
from cliptex.report.tables.cells import (
    BOLD,
    GAIN_COLUMNS,
    PROTOCOL_COLUMNS,
    count,
    fine_notes,
    gain_cell,
    gain_csv_cells,
    gap_columns,
    gap_notes,
    metric_gain_cells,
    model_columns,
    model_key,
    pair_cells,
    probe_groups,
    protocol_cells,
    task_cell,
    task_column,
    value_cells,
    value_columns,
)

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
        _pairs(results, results.probes, gains),
    )


def _pairs(results: Results, benchmarks: Iterable[str], gains: Sequence[ProbeGain]) -> list[PairCells]:
    """The gains of other pairs of models, in the order of `probe_groups`."""
    rows = [gain for name in benchmarks for gain in gains if gain.benchmark == name]
    return pair_cells(
        results,
        "{} over {}",
        lambda pair: [metric_gain_cells(row.between(*pair, results.yardstick)) for row in rows],
    )


def _row(results: Results, scores: Scores, probe: ProbeGain, models: Sequence[str]) -> Row:
    """The main metric of each model, and CLIPTeX's gain over CLIP-FT."""
    return {
        "task": task_cell(probe.task, probe.head, probe.metric),
        "family": Cell(names.FAMILIES.get(probe.family, probe.family)),
        **metric_gain_cells(probe),
        **value_cells(results, scores, probe.task, probe.head, probe.metric, models, probe.draws),
        **gain_csv_cells(probe.gain),
    }


def _main_notes(results: Results, intervals: bool) -> list[str]:
    seeds = len(results.config.seeds)
    better = "↑ higher is better, ↓ lower is better."
    if seeds > 1:
        notes = [f"{better} Mean ± sample standard deviation over {seeds} seeds. {BOLD}"]
    else:
        notes = [f"{better} {BOLD}"]
    if intervals:
        notes.append(
            f"A gain is in the metric’s unit (of a metric in percent: points), signed so that + is better. Below it "
            f"its {LEVEL:.0f} % interval over {resampled_over(results.config.seeds)} (paired bootstrap, "
            f"{count(results.config.report.resamples)} draws), and the gain in percent of the value compared with."
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
        return {
            **_row(results, scores, probe, shown),
            "frozen gain": gain_cell(gain, metric_of(probe.task, probe.metric)),
        }

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
        _finetuned_pairs(results, tuned, frozen),
    )


def _finetuned_pairs(results: Results, tuned: Sequence[ProbeGain], frozen: Sequence[ProbeGain]) -> list[PairCells]:
    both = {(probe.benchmark, probe.task, probe.head): probe for probe in frozen}
    rows = [gain for name in results.finetuned for gain in tuned if gain.benchmark == name]

    def cells(probe: ProbeGain, pair: Pair) -> Row:
        same = both.get((probe.benchmark, probe.task, probe.head))
        gain = same.gain_of(*pair) if same else Gain(GainStatus.MISSING)
        shown = metric_gain_cells(probe.between(*pair, results.yardstick))
        return shown | {"frozen gain": gain_cell(gain, metric_of(probe.task, probe.metric))}

    found = pair_cells(results, "{} over {}", lambda pair: [cells(probe, pair) for probe in rows])
    return [replace(one, headings=one.headings | {"frozen gain": "the same, frozen"}) for one in found]


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
            gain = probe.gain_of(model)
            cell = gain_cell(gain, metric_of(probe.task, probe.metric))
            cells |= {model_key(model): cell, **gain_csv_cells(gain, f"{names.model(model)} ")}
        return cells | protocol_cells(results, scores, probe.task, probe.head, probe.metric)

    more = [f"{names.model(model)} {column}" for model in shown for column in GAIN_COLUMNS]
    return Table(
        "further_models",
        "Gain over CLIP-FT of CLIPTeX and of the further models",
        [task_column(), *model_columns(shown), *csv_columns([*more, *PROTOCOL_COLUMNS])],
        [Group(group.rows, group.title) for group in probe_groups(results.probes, gains, row)],
        [
            "In the metric’s unit and in percent, signed so that + is better; intervals and marks as in the table of "
            "probes."
        ],
        "benchmark",
        fine_notes(results, results.probes.values()),
    )


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
