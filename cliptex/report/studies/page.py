"""A study's page: one plot, one table, two sentences with its counts and limits, and how far label stores agree.

Reads   results/studies/{study}/probes/, zeroshot/ and agreement.json, results/models/*/train.json, results/experts/.
Writes  results/studies/{study}/: table.csv, table.md, plot.svg, plot.png, and study.json with all numbers and
        sentences; results/studies/{study}.html, last: one file that works offline.
Holds   every sentence follows from the numbers (`cliptex.report.studies.summary`); a page of rendered data says so.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from cliptex import __version__, versions
from cliptex.config import Config
from cliptex.core import paths
from cliptex.core.errors import CliptexError
from cliptex.core.files import replacing, write_json
from cliptex.core.provenance import provenance
from cliptex.core.redact import escape_controls
from cliptex.evaluation.measures import metric_of
from cliptex.labels.agreement import FILE as AGREEMENT_FILE
from cliptex.report import html, names
from cliptex.report.bootstrap import LEVEL, Interval, resampled_over
from cliptex.report.gather import read_expert
from cliptex.report.integrity import check_seeds
from cliptex.report.records import AGREEMENT, EXPERT, STUDIED, read_record
from cliptex.report.seen import SeenData
from cliptex.report.studies import study_of
from cliptex.report.studies.forms import FORMS, Form, StudyResults
from cliptex.report.studies.measures import ComparedModel, StudyMeasure, compare, read_measures
from cliptex.report.studies.summary import limits
from cliptex.report.table import Table
from cliptex.report.tables.data import agreement_of_pairs

COPIED = ("init", "steps", "learning_rate", "tasks", "flops_over_contrastive", "parameters", "seconds", "images_per_s")
"""Keys of train.json in study.json."""
COMMAND = "snakemake --cores 8 study --configfile config/studies/{name}.yaml"


class StudyPage(NamedTuple):
    """A study's plot, table and summary, and the contents of study.json."""

    form: Form
    record: dict[str, Any]
    agreement: Table | None = None
    """Of label stores of one task; None without several."""


def build_study(config: Config, workdir: Path = Path()) -> StudyPage:
    """Write a study's page from the results of its runs in `workdir`; config: the study's (`study_config`)."""
    workdir = Path(workdir)
    page = study_page(config, workdir)
    folder, table = workdir / paths.study(config.study.name), page.form.table
    page.form.chart.save(folder)
    write_json(folder / "study.json", page.record)
    texts = {folder / "table.csv": table.csv(), folder / "table.md": table.markdown()}
    for path, text in (texts | {folder.with_suffix(".html"): render(page)}).items():
        with replacing(path) as scratch:
            scratch.write_text(text, encoding="utf-8")
    return page


def study_page(config: Config, workdir: Path) -> StudyPage:
    """Read and compare the results. Raises CliptexError for the first file that is missing or broken."""
    study = study_of(config)
    labels = {model: names.model(model) for model in study.compared}
    labels |= {model: escape_controls(label) for model, label in study.rows}
    measures = read_measures(config, workdir)
    if not measures:
        raise CliptexError("study: neither `probes` nor `zeroshot` names a benchmark; name at least one")
    seen = SeenData(config, {name: read_expert(workdir / paths.expert(name)) for name in config.experts})
    measures = [_marked(measure, seen, study.compared) for measure in measures]
    resamples = config.report.resamples
    findings = [(measure, compare(measure, study.reference, study.compared, resamples)) for measure in measures]
    seeds_of = {
        model: {seed: read_record(workdir / paths.model(model, seed) / "train.json", STUDIED) for seed in config.seeds}
        for model in labels
    }
    for model, records in seeds_of.items():
        check_seeds(workdir, model, records)
    runs = {model: records[config.seeds[0]] for model, records in seeds_of.items()}
    flops = {model: run["flops_over_contrastive"] for model, run in runs.items()}
    miniature = any(measure.source == "miniature" for measure in measures)
    form = FORMS[study.form](StudyResults(config, findings, labels, flops, miniature))
    table = form.table
    table.notes.extend(_quality_notes(config, workdir))
    official = {measure.benchmark: measure for measure in measures if measure.source != "miniature"}
    table.notes.extend(seen.notes(official.values(), study.compared) if official else ())
    pairs = _agreements(config, workdir)
    record = {
        "schema_version": 1,
        "version": versions.STUDY,
        "study": study.name,
        "title": study.title,
        "question": study.question,
        "source": "miniature" if miniature else "official",
        "command": COMMAND.format(name=study.name),
        "seeds": config.seeds,
        "reference": study.reference,
        "seen": f"{'; '.join(form.lines)}.",
        "not_proved": limits(
            [measure.images for measure in measures],
            len(config.seeds),
            sum(len(compared) - 1 for _, compared in findings),
            study.limits,
            miniature,
        ),
        "interval": {"level_percent": LEVEL, "resamples": resamples, "over": f"{resampled_over(config.seeds)}, paired"},
        "models": {
            model: {"label": labels[model]} | {key: run.get(key) for key in COPIED} for model, run in runs.items()
        },
        "experts": {name: _expert_record(workdir, name) for name in study.experts},
        "results": [_row(measure, row) for measure, compared in findings for row in compared.values()],
        "table": {
            "caption": table.caption,
            "columns": [column.heading for column in table.columns],
            "rows": [
                [[row[column.key].text, row[column.key].note, row[column.key].tone] for column in table.columns]
                for row in table.groups[0].rows
            ],
            "notes": table.notes,
        },
        "plot": {"caption": form.chart.caption, "alt": form.chart.alt},
        **({"agreement": pairs} if pairs else {}),
        "provenance": provenance(study.model_dump(mode="json"))
        | {"model_sha256": {model: run["model_sha256"] for model, run in runs.items()}},
    }
    suffix = " (miniature)" if miniature else ""
    agreement = agreement_of_pairs(pairs) if pairs else None
    return StudyPage(form, record, agreement and replace(agreement, caption=agreement.caption + suffix))


def _marked(measure: StudyMeasure, seen: SeenData, models: Sequence[str]) -> StudyMeasure:
    degree = seen.degree(measure, models)
    return replace(measure, mark=degree.symbol) if degree else measure


def _agreements(config: Config, workdir: Path) -> list[dict[str, Any]]:
    """Pairs of label stores of one task, if they were compared: `cliptex labels agreement`, with this as `--out`."""
    path = workdir / paths.study(study_of(config).name) / AGREEMENT_FILE
    return read_record(path, AGREEMENT)["pairs"] if path.exists() else []


def _expert_record(workdir: Path, name: str) -> dict[str, Any]:
    record = read_record(workdir / paths.expert(name) / "expert.json", EXPERT)
    return {key: record.get(key) for key in ("task", "plugin", "network", "quality", "weights_sha256")}


QUALITY = {"segmentation": "mIoU", "depth": "delta1", "normals": "mean"}
"""Pseudo-label task -> metric of an expert's held-out quality."""


def _quality_notes(config: Config, workdir: Path) -> list[str]:
    own = study_of(config).experts
    all_classes = [name for name in own if not own[name].network.get("classes")]
    others = {store.expert for store in config.label_stores.values() if store.expert} - own.keys()
    notes = []
    for task, metric_name in QUALITY.items():
        metric, values = metric_of(task, metric_name), {}
        for name in (*sorted(others), *all_classes):
            path = workdir / paths.expert(name) / "expert.json"
            record = read_record(path, EXPERT) if path.exists() else {}
            value = (record.get("quality") or {}).get(metric_name)
            if record.get("task") == task and value is not None:
                values[name] = f"{names.head(name)} {metric.format(value)}"
        if values.keys() & own.keys():
            title = f"{metric.title} ({metric.unit}) of {task}"
            notes.append(f"On held-out renders, {title}: {', '.join(values.values())}.")
    return notes


def _row(measure: StudyMeasure, row: ComparedModel) -> dict[str, Any]:
    def pair(bounds: Interval | None) -> list[float] | None:
        return bounds and [bounds.low, bounds.high]

    return {
        "benchmark": measure.benchmark,
        "task": measure.task,
        "head": measure.head,
        "metric": measure.metric,
        "images": measure.images,
        **({"variant": measure.variant} if measure.variant else {}),
        **({"frozen": False} if measure.tuned else {}),
        "model": row.model,
        "value": row.value,
        "value_interval": pair(row.interval),
        "better_by": row.difference,
        "better_by_interval": pair(row.bounds),
        "seed_spread": row.spread,
        "state": row.state,
    }


def render(page: StudyPage) -> str:
    """The page as HTML text, without external resources."""
    chart = page.form.chart
    return html.render(
        "studies/page.html",
        record=page.record,
        lines=page.form.lines,
        miniature=page.record["source"] == "miniature",
        results_table=page.form.table,
        agreement=page.agreement,
        plot=html.embedded_chart(chart.name, chart.caption, chart.alt, chart.svg),
        version=__version__,
    )
