"""One self-contained page from the report's parts: no request leaves it, it needs no script."""

import base64
import re
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any

import jinja2
import yaml
from markupsafe import Markup, escape

from cliptex import __version__
from cliptex.plain_text import without_secrets
from cliptex.report import figures, gallery, names, tables
from cliptex.report.gather import Results
from cliptex.report.statistics import Outcome, Verdict, beside, signed, verdict
from cliptex.report.table import Table

SUFFIX = " (miniature)"
SECTIONS = {
    "results": "Results",
    "zeroshot": "Zero-shot",
    "training": "Training and cost",
    "labels": "Labels",
    "pictures": "Pictures",
    "details": "All metrics, time, data left out",
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


def make_parts(results: Results) -> Parts:
    """Build every table and chart. In a miniature run each caption ends with the word."""
    cells = tables.main_cells(results)
    zeroshot = tables.zeroshot_cells(results)
    shown = [*results.baselines, *results.models]
    suffix = SUFFIX if results.miniature else ""
    made = {
        "main": tables.main_table(results, cells),
        "further_values": tables.further_values_table(results, cells),
        "further": tables.further_table(results, cells),
        "zeroshot": tables.zeroshot_table(results),
        "cost": tables.cost_table(results),
        "labels": tables.labels_table(results),
        "experts": tables.experts_table(results),
        "timings": tables.timing_table(results),
        "dropped": tables.dropped_table(results),
        "provenance": tables.provenance_table(results),
        "packages": tables.packages_table(results),
        "weights": tables.weights_table(results),
    }
    metrics = [tables.metrics_table(scores, shown) for scores in results.probes.values()]
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
    )


def render(results: Results, parts: Parts) -> str:
    """The page as HTML text."""
    pairs, pairs_legend = gallery.labelled_pairs(results)
    strips = gallery.prediction_strips(results)
    charts = {name: _embedded(chart) for name, chart in parts.charts.items()}
    there = {
        "zeroshot": "zeroshot" in parts.tables,
        "labels": "labels" in parts.tables,
        "pictures": bool(pairs or strips),
    }
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, finalize=_unbroken)
    source = files("cliptex.report")
    template = environment.from_string(source.joinpath("page.html").read_text())
    optional = ("further_values", "further", "zeroshot", "labels", "experts", "timings", "weights")
    return template.render(
        dict.fromkeys(optional)
        | parts.tables
        | {
            "title": results.config.report.title,
            "css": Markup(source.joinpath("page.css").read_text()),
            "miniature": results.miniature,
            "suffix": SUFFIX if results.miniature else "",
            "verdict": parts.verdict,
            "further_sentences": parts.further,
            "tiles": _tiles(results, parts),
            "sections": [(id_, name) for id_, name in SECTIONS.items() if there.get(id_, True)],
            "titles": SECTIONS,
            "gains": charts.get("gains"),
            "curves": [charts[name] for name in ("contrastive_loss", "task_losses") if name in charts],
            "pairs": pairs,
            "pairs_legend": pairs_legend,
            "strips": strips,
            "metrics": parts.metrics,
            # escaped already, so that its spaces stay as they are and it can be copied
            "config": escape(
                without_secrets(yaml.safe_dump(results.config.plain(), sort_keys=False, allow_unicode=True))
            ),
            "version": __version__,
        }
    )


def _unbroken(value: Any) -> Any:
    """A number, an arrow and a mark stay on one line with what they belong to."""
    return re.sub(r"(?<=[±▲△▼▽=]) | (?=[%↑↓])", "\u00a0", value) if type(value) is str else value


def _embedded(chart: figures.Chart) -> dict[str, str]:
    return {
        "name": chart.name,
        "caption": chart.caption,
        "alt": chart.alt,
        "light": _svg_uri(chart.svg),
        "dark": _svg_uri(chart.dark_svg),
    }


def _svg_uri(svg: str) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"


def _tiles(results: Results, parts: Parts) -> list[dict[str, Any]]:
    """The few numbers at the head of the page."""
    counts = parts.verdict.counts
    text = "dense probes in which CLIPTeX is ahead of CLIP-FT"
    tiles = [{"value": f"{counts['better']} of {counts['cells']}", "text": text}]
    if len(results.config.seeds) > 1:
        text = f"real gains: beyond the spread over {len(results.config.seeds)} seeds, and above both baselines"
        tiles.append({"value": f"{counts[Outcome.REAL]} of {counts['cells']}", "text": text})
    else:
        text = "ahead of both baselines too; one seed, so not called real"
        tiles.append({"value": f"{counts[Outcome.ONE_SEED]} of {counts['cells']}", "text": text})
    for item in tables.zeroshot_cells(results):
        if item.state != "missing":
            text = f"zero-shot top-1 on {item.benchmark}, CLIP-FT to CLIPTeX (chance {item.chance:.1f} %)"
            tiles.append({"value": f"{_mean(item.reference):.1f} → {_mean(item.subject):.1f} %", "text": text})
    if (overhead := tables.step_overhead(results)) is not None:
        tiles.append({"value": f"{signed(overhead, 0)} %", "text": "time of a training step, compared with CLIP-FT"})
    return tiles


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
