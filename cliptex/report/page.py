"""The report's page: one self-contained file that can also be read without its script."""

from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml
from markupsafe import escape

from cliptex import __version__
from cliptex.core import paths
from cliptex.core.redact import escape_controls, without_secrets
from cliptex.report import figures, gallery, html, names
from cliptex.report.bootstrap import LEVEL
from cliptex.report.differences import Comparison, compare, differences_table
from cliptex.report.evaluators import evaluators
from cliptex.report.found_studies import found_studies
from cliptex.report.gains import (
    finetuned_gains,
    further_models,
    probe_gains,
    training_free_gains,
    zeroshot_results,
)
from cliptex.report.gather import Results, Scores
from cliptex.report.integrity import check
from cliptex.report.links import Link, file_links, paper_links, relative
from cliptex.report.seen import SeenData, compared
from cliptex.report.statistics import GainStatus, format_interval, signed
from cliptex.report.table import Table
from cliptex.report.tables import data, provenance, suite, training, zeroshot
from cliptex.report.tables import evaluators as evaluated
from cliptex.report.tables import results as evaluation
from cliptex.report.tables.cells import count, other_pairs
from cliptex.report.verdict import Verdict, further_sentence, verdict
from cliptex.report.zeroshot import ZERO_SHOT_KEPT, ZeroShot, ZeroShotState

SUFFIX = " (miniature)"
SUITE = ("suite_published", "suite", "few_shot")
PAPER_FILES = {"svg": "SVG", "pdf": "PDF", "py": "script"}
SECTIONS = {
    "results": "Results",
    "untrained": "Without a trained head",
    "zeroshot": "Zero-shot",
    "suite": "Zero-shot on DataComp's evaluation sets",
    "finetuning": "End-to-end fine-tuning",
    "training": "Training and cost",
    "labels": "Label quality",
    "differences": "Largest differences",
    "gallery": "Gallery",
    "studies": "Studies",
    "details": "All metrics, time",
    "provenance": "Provenance and how to reproduce",
}


@dataclass(frozen=True)
class Parts:
    """All tables (None for an optional one without rows) and charts of the page, captions complete."""

    verdict: Verdict
    zeroshot: list[ZeroShot]
    further: list[str]
    tables: dict[str, Table | None]
    metrics: list[Table]
    charts: dict[str, figures.PaperChart]
    comparisons: list[Comparison]
    families: list[str]
    """Of the evaluators."""
    notes: list[str]
    """What could not be checked (`cliptex.report.integrity`)."""


def make_parts(results: Results) -> Parts:
    """Check the results and build every table and chart. Captions of stand-in data end with `SUFFIX`."""
    notes = check(results)
    gains, shots, free = probe_gains(results), zeroshot_results(results), training_free_gains(results)
    counted = evaluators([*gains, *free], results.baselines, results.yardstick)
    headless = evaluated.untrained_rows(results, [*gains, *free])
    comparisons = compare(results)
    seen = SeenData(results.config, results.experts)
    tables = {
        "evaluators": evaluated.evaluators_table(results, [*gains, *free]),
        "main": evaluation.main_table(results, [gain for gain in gains if gain.family == "trained_head"]),
        "untrained": evaluated.untrained_table(results, headless),
        "further_values": evaluation.further_values_table(results, gains),
        "further": evaluation.further_table(results, gains),
        "zeroshot": zeroshot.zeroshot_table(results, shots),
        "suite_published": suite.published_table(results),
        "suite": suite.suite_table(results),
        "few_shot": suite.few_shot_table(results),
        "finetuned": evaluation.finetuned_table(results, finetuned_gains(results), gains),
        "cost": training.cost_table(results),
        "differences": differences_table(results, comparisons),
        "labels": data.labels_table(results, seen.sets),
        "agreement": data.agreement_table(results),
        "experts": data.experts_table(results),
        "timings": provenance.timing_table(results),
        "dropped": data.dropped_table(results),
        "provenance": provenance.provenance_table(results),
        "packages": provenance.packages_table(results),
        "weights": provenance.weights_table(results),
    }
    shown, tuned = ([*selected, *results.models] for selected in (results.baselines, results.config.finetune.baselines))
    for name, benchmarks in {
        **dict.fromkeys(("main", "further_values", "further"), results.probes),
        "zeroshot": results.zeroshot,
        "finetuned": results.finetuned,
    }.items():
        each = list(benchmarks.values())
        tables[name] = seen.marked(tables[name], lambda group, _, each=each: each[group])
    files = evaluated.scores_by_benchmark(results)
    families = list(evaluated.by_family(counted).values())
    tables["evaluators"] = seen.marked(tables["evaluators"], lambda g, row: files[families[g][row].benchmark][0])
    tables["untrained"] = seen.marked(tables["untrained"], lambda g, row: list(headless.values())[g][row][0])
    rows = [comparison.scores for comparison in comparisons if comparison.differences is not None]
    tables["differences"] = seen.marked(tables["differences"], lambda _, row: rows[row])
    metrics = [
        seen.marked(evaluation.metrics_table(results, scores, models), lambda *_, scores=scores: scores)
        for models, benchmarks in (
            (shown, results.probes),
            (shown, results.training_free),
            (tuned, results.finetuned),
        )
        for scores in benchmarks.values()
    ]
    charts = {
        "gains": figures.gains_chart(results, [*gains, *free]),
        "contrastive_loss": figures.loss_chart(results),
        "task_losses": figures.task_loss_chart(results),
    }
    suffix = SUFFIX if results.miniature else ""

    def has_seen(scores: Scores) -> bool:
        return seen.degree(scores, compared(results.config)) is not None

    return Parts(
        verdict(
            counted,
            shots,
            seeds=len(results.config.seeds),
            seen=[one.label for one in counted if has_seen(files[one.benchmark][0])],
            seen_zeroshot=[shot.key for shot in shots if has_seen(results.zeroshot[shot.key[0]])],
            yardstick=results.yardstick,
        ),
        shots,
        [
            further_sentence(names.model(model), [one.gain_of(model, results.baselines) for one in counted])
            for model in further_models(results)
        ],
        {
            # DataComp's sets are never stand-ins
            name: table and (table if name in SUITE else replace(table, caption=table.caption + suffix))
            for name, table in tables.items()
        },
        [replace(table, caption=table.caption + suffix) for table in metrics],
        {name: chart.captioned(suffix) for name, chart in charts.items() if chart is not None},
        comparisons,
        list(evaluated.by_family(counted)),
        notes,
    )


def render(results: Results, parts: Parts, path: Path) -> str:
    """path: of the page, to which its links are relative."""
    tables = f"{relative(results.workdir / paths.REPORT, path).rstrip('/')}/"
    pairs = gallery.labelled_pairs(results)
    evaluated = gallery.evaluation_albums(results, parts.comparisons)
    albums = [*([pairs] if pairs else []), *evaluated.spread]
    charts = {
        name: html.embedded_chart(name, chart.caption, chart.alt, chart.svg, chart.pairs)
        | {"files": [Link(title, f"{tables}figures/{name}.{kind}") for kind, title in PAPER_FILES.items()]}
        for name, chart in parts.charts.items()
    }
    weights = {
        model: runs[results.config.seeds[0]].record.get("model_sha256", "") for model, runs in results.runs.items()
    }
    studies, left_out = found_studies(results.workdir, weights)
    present = {
        "untrained": parts.tables["untrained"],
        "zeroshot": parts.tables["zeroshot"],
        "suite": parts.tables["suite"],
        "finetuning": parts.tables["finetuned"],
        "differences": evaluated.extremes or parts.tables["differences"],
        "gallery": albums,
        "studies": studies or left_out,
    }
    plain = results.config.plain()
    config = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
    if escape_controls(config) != config:
        config = yaml.safe_dump(plain, sort_keys=False)  # escapes them so that it still can be copied
    return html.render(
        "page.html",
        **parts.tables,
        title=results.config.report.title,
        miniature=results.miniature,
        num_pairs=count(results.shards["num_samples"]),
        suffix=SUFFIX if results.miniature else "",
        verdict=parts.verdict,
        notes=parts.notes,
        further_sentences=parts.further,
        tiles=_tiles(results, parts),
        about=provenance.about_run(results),
        choices=_choices(results, parts),
        folder=tables,
        study_pages=f"{relative(results.workdir / paths.study('x').parent, path).rstrip('/')}/",
        files=file_links(results, path),
        papers=paper_links(results),
        sections=[(id_, name) for id_, name in SECTIONS.items() if present.get(id_, True)],
        titles=SECTIONS,
        gains=charts.get("gains"),
        curves=[charts[name] for name in ("contrastive_loss", "task_losses") if name in charts],
        albums=albums,
        extremes=evaluated.extremes,
        missing_images=evaluated.missing,
        studies=studies,
        studies_left_out=left_out,
        metrics=parts.metrics,
        # escaped here, so that its spaces stay as they are and it can be copied
        config=escape(without_secrets(config)),
        version=__version__,
    )


def _choices(results: Results, parts: Parts) -> dict[str, Any] | None:
    """What the reader can compare and show; None if there is nothing to choose."""
    if not other_pairs(results):
        return None
    titled = {"models": results.models, "baselines": results.baselines}
    shown = {key: [(name, names.model(name)) for name in own] for key, own in titled.items()}
    families = [names.FAMILIES[family] for family in parts.families]
    default = {"subject": names.SUBJECT, "reference": names.REFERENCE}
    text = f"{names.model(names.SUBJECT)} with {names.model(names.REFERENCE)}"
    return {**shown, **default, "families": families, "models_text": text}


def _tiles(results: Results, parts: Parts) -> list[dict[str, Any]]:
    counts = parts.verdict.counts
    if len(results.config.seeds) > 1:
        status, gain = GainStatus.REAL, "a real gain over CLIP-FT, after correction for their number"
    else:
        status, gain = (
            GainStatus.ONE_SEED,
            "a gain over CLIP-FT beyond the noise of the images, corrected",
        )
    text = f"evaluators of dense tasks with {gain}; better in {counts['better']}"
    if parts.verdict.unseen:
        text += f"; {parts.verdict.unseen}"
    tiles = [{"value": f"{counts[status]} of {counts['cells']}", "text": text}]
    if (percent := parts.verdict.gain) is not None:
        bounds = parts.verdict.gain_interval
        interval = f"; {LEVEL:.0f} % interval {format_interval(bounds)} %" if bounds else ""
        tiles.append(
            {
                "value": f"{signed(percent)} %",
                "text": f"median relative gain in the evaluators{interval}; {', '.join(parts.verdict.points[:2])}",
            }
        )
    informative = [
        shot for shot in parts.zeroshot if shot.state not in (ZeroShotState.MISSING, ZeroShotState.AT_CHANCE)
    ]
    if informative:
        kept = [shot for shot in informative if shot.state in ZERO_SHOT_KEPT]
        first = informative[0]
        text = (
            f"zero-shot tasks in which CLIPTeX is not below CLIP-FT by more than the noise; {first.metric} on "
            f"{first.benchmark} {fmean(first.reference):.1f} → {fmean(first.subject):.1f} %"
        )
        tiles.append({"value": f"{len(kept)} of {len(informative)}", "text": text})
    if cost := training.controlled_cost(results):
        tiles.append({"value": cost[0], "text": cost[1]})
    return tiles
