"""One self-contained page from the report's parts: no request leaves it, and it can be read without its script."""

import base64
import hashlib
import re
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any

import jinja2
import yaml
from markupsafe import Markup, escape

from cliptex import __version__
from cliptex.core.redact import without_secrets
from cliptex.report import figures, gallery, names, tables
from cliptex.report.bootstrap import LEVEL
from cliptex.report.differences import Comparison, compare, differences_table
from cliptex.report.found_studies import found_studies
from cliptex.report.gather import Results
from cliptex.report.pictures import embedded
from cliptex.report.statistics import Outcome, Verdict, beside, ranging, signed, verdict
from cliptex.report.table import Table

SUFFIX = " (miniature)"
SECTIONS = {
    "results": "Results",
    "zeroshot": "Zero-shot",
    "finetuning": "End-to-end fine-tuning",
    "training": "Training and cost",
    "labels": "Label quality",
    "differences": "What differs most",
    "pictures": "Gallery",
    "studies": "Studies",
    "details": "All metrics, time",
    "provenance": "Provenance and how to reproduce",
}


@dataclass(frozen=True)
class Parts:
    """All tables and charts of the report, captions complete; what stands on the page and in results/report/."""

    verdict: Verdict
    further: list[str]
    tables: dict[str, Table]
    metrics: list[Table]
    charts: dict[str, figures.Chart]
    comparisons: list[Comparison]


def make_parts(results: Results) -> Parts:
    """Build every table and chart. In a miniature run each caption ends with the word."""
    cells = tables.main_cells(results)
    zeroshot = tables.zeroshot_cells(results)
    shown = [*results.baselines, *results.models]
    suffix = SUFFIX if results.miniature else ""
    comparisons = compare(results)
    made = {
        "main": tables.main_table(results, cells),
        "further_values": tables.further_values_table(results, cells),
        "further": tables.further_table(results, cells),
        "zeroshot": tables.zeroshot_table(results, zeroshot),
        "finetuned": tables.finetuned_table(results, tables.finetuned_cells(results), cells),
        "cost": tables.cost_table(results),
        "differences": differences_table(results, comparisons),
        "labels": tables.labels_table(results),
        "experts": tables.experts_table(results),
        "timings": tables.timing_table(results),
        "dropped": tables.dropped_table(results),
        "provenance": tables.provenance_table(results),
        "packages": tables.packages_table(results),
        "weights": tables.weights_table(results),
    }
    tuned = [*results.config.finetune.baselines, *results.models]
    metrics = [tables.metrics_table(results, scores, shown) for scores in results.probes.values()]
    metrics += [tables.metrics_table(results, scores, tuned) for scores in results.finetuned.values()]
    charts = {
        "gains": figures.gains_chart(results, cells),
        "contrastive_loss": figures.loss_chart(results),
        "task_losses": figures.task_loss_chart(results),
    }
    says = verdict(
        {cell.label: cell.judgement for cell in tables.dense(cells)},
        zeroshot,
        subject=names.model(names.SUBJECT),
        reference=names.model(names.REFERENCE),
        seeds=len(results.config.seeds),
        show=names.MODELS,
    )
    further = [
        beside(
            names.model(model),
            [tables.judge_model(cell, model, results.baselines) for cell in tables.dense(cells)],
            reference=names.model(names.REFERENCE),
        )
        for model in tables.further_models(results)
    ]
    return Parts(
        says,
        further,
        {name: replace(t, caption=t.caption + suffix) for name, t in made.items() if t is not None},
        [replace(t, caption=t.caption + suffix) for t in metrics],
        {name: replace(c, caption=c.caption + suffix) for name, c in charts.items() if c is not None},
        comparisons,
    )


def render(results: Results, parts: Parts) -> str:
    """The page as HTML text."""
    pairs = gallery.labelled_pairs(results)
    judged = gallery.evaluation_albums(results, parts.comparisons)
    albums = [*([pairs] if pairs else []), *judged.spread]
    charts = {
        name: _drawn(name, chart.caption, chart.alt, chart.svg, chart.dark_svg) for name, chart in parts.charts.items()
    }
    own = {model: runs[results.config.seeds[0]].record.get("model_sha256", "") for model, runs in results.runs.items()}
    studies, left_out = found_studies(results.root, own)
    there = {
        "zeroshot": "zeroshot" in parts.tables,
        "finetuning": "finetuned" in parts.tables,
        "differences": bool(judged.extremes) or "differences" in parts.tables,
        "pictures": bool(albums),
        "studies": bool(studies or left_out),
    }
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, finalize=_unbroken)
    source = files("cliptex.report")
    template = environment.from_string(source.joinpath("page.html").read_text())
    script = source.joinpath("page.js").read_text()
    optional = ("further_values", "further", "zeroshot", "finetuned", "labels", "experts", "differences", "timings")
    return template.render(
        dict.fromkeys((*optional, "weights"))
        | parts.tables
        | {
            "title": results.config.report.title,
            "css": Markup(source.joinpath("page.css").read_text()),
            "script": Markup(f"\n{script}"),
            # of the text between the tags, so that no other script runs
            "script_digest": base64.b64encode(hashlib.sha256(f"\n{script}".encode()).digest()).decode(),
            "miniature": results.miniature,
            "source": _source(results),
            "suffix": SUFFIX if results.miniature else "",
            "verdict": parts.verdict,
            "further_sentences": parts.further,
            "tiles": _tiles(results, parts),
            "sections": [(id_, name) for id_, name in SECTIONS.items() if there.get(id_, True)],
            "titles": SECTIONS,
            "gains": charts.get("gains"),
            "curves": [charts[name] for name in ("contrastive_loss", "task_losses") if name in charts],
            "albums": albums,
            "extremes": judged.extremes,
            "missing_pictures": judged.missing,
            "studies": [
                (study, _drawn(study.table.name, study.caption, study.alt, study.light, study.dark))
                for study in studies
            ],
            "studies_left_out": left_out,
            "metrics": parts.metrics,
            # escaped already, so that its spaces stay as they are and it can be copied
            "config": escape(
                without_secrets(yaml.safe_dump(results.config.plain(), sort_keys=False, allow_unicode=True))
            ),
            "version": __version__,
        }
    )


def _source(results: Results) -> str:
    """Which data the numbers rest on, where none are rendered."""
    pairs = f"{results.shards['num_samples']:,} image-caption pairs".replace(",", "\u202f")
    return f"official benchmark data; encoders trained on {pairs}"


def _unbroken(value: Any) -> Any:
    """A number, an arrow and a mark stay on one line with what they belong to."""
    return re.sub(r"(?<=[±▲△▼▽=]) | (?=[%↑↓])", "\u00a0", value) if type(value) is str else value


def _drawn(name: str, caption: str, alt: str, light: str, dark: str) -> dict[str, str]:
    """A chart for the page. light, dark: SVG."""
    light, dark = (embedded(svg.encode(), "image/svg+xml") for svg in (light, dark))
    return {"name": name, "caption": caption, "alt": alt, "light": light, "dark": dark}


def _tiles(results: Results, parts: Parts) -> list[dict[str, Any]]:
    """The few numbers at the head of the page."""
    counts = parts.verdict.counts
    if len(results.config.seeds) > 1:
        outcome = Outcome.REAL
        text = f"dense probes with a real gain over CLIP-FT; ahead in {counts['better']}"
    else:
        outcome = Outcome.ONE_SEED
        text = f"dense probes with a gain over CLIP-FT beyond the noise of the images; ahead in {counts['better']}"
    tiles = [{"value": f"{counts[outcome]} of {counts['cells']}", "text": text}]
    if (gain := parts.verdict.gain) is not None:
        bounds = parts.verdict.gain_interval
        text = f"median relative gain in the dense probes; {LEVEL:.0f} % interval {ranging(bounds)} %" if bounds else ""
        tiles.append({"value": f"{signed(gain)} %", "text": text or "median relative gain in the dense probes"})
    judged = [item for item in tables.zeroshot_cells(results) if item.state not in ("missing", "at chance")]
    if judged:
        kept = [item for item in judged if item.state.startswith("kept")]
        first = judged[0]
        text = (
            f"zero-shot tasks in which CLIPTeX is not below CLIP-FT by more than the noise; {first.metric} on "
            f"{first.benchmark} {_mean(first.reference):.1f} → {_mean(first.subject):.1f} %"
        )
        tiles.append({"value": f"{len(kept)} of {len(judged)}", "text": text})
    if (overhead := tables.step_overhead(results)) is not None:
        tiles.append({"value": f"{signed(overhead, 0)} %", "text": "time of a training step, compared with CLIP-FT"})
    return tiles


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
