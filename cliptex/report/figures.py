"""The report's charts: their numbers and words. How they are drawn is in `cliptex.report.charts`.

Text stays text in the SVG of the page, in a font of the reader's system, and colours are replaced on a dark page.
"""

import inspect
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from types import ModuleType
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from cliptex.core.files import replacing
from cliptex.report import names
from cliptex.report.bootstrap import LEVEL, resampled_over
from cliptex.report.charts import gains, losses, style
from cliptex.report.evaluators import Pair
from cliptex.report.gains import ProbeGain
from cliptex.report.gather import Results
from cliptex.report.statistics import relative_gain
from cliptex.report.table import csv_text
from cliptex.report.tables.cells import other_pairs

FONTS = "system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,'Liberation Sans','DejaVu Sans',sans-serif"
WIDTH_INCHES = 7.6
STAMP = "miniature: rendered stand-in data"
ON_DARK = {
    style.INK: "#e8eaee",
    style.FAINT: "#a3aab6",
    style.GRID: "#343a45",
    style.MODELS["CLIP"]: "#c3c8d0",  # its blue would look like CLIPTeX's lightened one
    style.MODELS["CLIPTeX"]: "#3da5e8",
    style.FURTHER[0]: "#2fc49a",
    style.FURTHER[1]: "#f0783c",
    style.FURTHER[2]: "#dd9bc0",
    style.FURTHER[3]: "#ffffff",
}
"""Colours replaced on a dark page."""


@dataclass(frozen=True)
class Chart:
    """A chart. name: file stem. alt: what it shows, in words. height: inches, unless `draw` sets it. draw: draws into
    the figure."""

    name: str
    caption: str
    alt: str
    height: float
    draw: Callable[[Figure], None]

    @cached_property
    def svg(self) -> str:
        """The chart as an SVG document for a light page; deterministic."""
        # FONTS has single quotes, since the attribute is delimited by double quotes
        return self._render("svg").decode().replace("'DejaVu Sans'", FONTS)

    def save(self, folder: Path) -> None:
        """Write `{name}.svg` and, on white, `{name}.png`."""
        with replacing(folder / f"{self.name}.svg") as scratch:
            scratch.write_text(self.svg, encoding="utf-8")
        with replacing(folder / f"{self.name}.png") as scratch:
            scratch.write_bytes(self._render("png"))

    def _render(self, kind: str) -> bytes:
        with matplotlib.rc_context(style.PAGE):
            figure = Figure(figsize=(WIDTH_INCHES, self.height), layout="constrained")
            self.draw(figure)
            out = io.BytesIO()
            background = "white" if kind == "png" else "none"
            figure.savefig(out, format=kind, metadata={"Date": None} if kind == "svg" else None, facecolor=background)
        return out.getvalue()


@dataclass(frozen=True)
class PaperChart(Chart):
    """A chart that is also drawn for papers. script: the module of `cliptex.report.charts` that draws it. rows: of its
    CSV file. pairs: the same chart of other models that the reader can compare."""

    script: ModuleType
    rows: list[dict[str, Any]]
    pairs: Mapping[Pair, Chart] = field(default_factory=dict)

    def captioned(self, suffix: str) -> "PaperChart":
        """The same with a suffix of its captions."""
        pairs = {pair: replace(chart, caption=chart.caption + suffix) for pair, chart in self.pairs.items()}
        return replace(self, caption=self.caption + suffix, pairs=pairs)

    def save_for_paper(self, folder: Path) -> None:
        """Write `{name}.csv`, `{name}.py` with `style.py`, and what the script makes of it: `{name}.svg`, `.pdf`."""
        scripts = {self.name: self.script, "style": style}
        sources = {f"{name}.py": inspect.getsource(module) for name, module in scripts.items()}
        texts = {
            name: source.replace("from cliptex.report.charts import style\n", "import style\n")
            for name, source in sources.items()
        }
        texts[f"{self.name}.csv"] = csv_text([list(self.rows[0]), *(list(row.values()) for row in self.rows)])
        files = {name: text.encode() for name, text in texts.items()}
        drawn = {kind: style.drawn(self.script.draw, _texts(self.rows), kind) for kind in ("svg", "pdf")}
        files |= {f"{self.name}.{kind}": content for kind, content in drawn.items()}
        for name, content in files.items():
            with replacing(folder / name) as scratch:
                scratch.write_bytes(content)


def _chart(name: str, caption: str, alt: str, script: ModuleType, rows: list[dict[str, Any]]) -> PaperChart:
    return PaperChart(name, caption, alt, 1.0, lambda figure: script.draw(figure, _texts(rows)), script, rows)


def _texts(rows: list[dict[str, Any]]) -> style.Rows:
    """As a script reads them from its CSV file."""
    return [{key: "" if value is None else str(value) for key, value in row.items()} for row in rows]


def on_dark(svg: str) -> str:
    """A chart's SVG with the colours for a dark page."""
    return re.sub("#[0-9a-f]{6}", lambda match: ON_DARK.get(match[0], match[0]), svg)


def _stamp(results: Results) -> str:
    return STAMP if results.miniature else ""


def gains_chart(results: Results, probes: Sequence[ProbeGain]) -> PaperChart | None:
    """Relative gain over CLIP-FT of CLIPTeX (mean, interval, seeds), CLIP and the better baseline, a line a probe.

    The chart's rows and `pairs` also have those of `other_pairs`.
    """
    benchmarks = list(dict.fromkeys(probe.benchmark for probe in probes))
    ordered = [probe for name in benchmarks for probe in probes if probe.benchmark == name]
    default = names.SUBJECT, names.REFERENCE
    charts = {default: _pair_chart(results, ordered, default)}
    if (chart := charts[default]) is None:
        return None
    for pair in other_pairs(results):
        compared = [probe.between(*pair, results.yardstick) for probe in ordered]
        charts[pair] = _pair_chart(results, compared, pair)
    shown = {pair: other for pair, other in charts.items() if other is not None}
    rows = [row for other in shown.values() for row in other.rows]
    return replace(chart, rows=rows, pairs={pair: other for pair, other in shown.items() if pair != default})


def _pair_chart(results: Results, probes: Sequence[ProbeGain], pair: Pair) -> PaperChart | None:
    """The chart of one pair; None if no probe has a relative gain. probes: with the gains of this pair."""
    shown = [probe for probe in probes if probe.gain.percent is not None]
    if not shown:
        return None
    model, reference = map(names.model, pair)
    rows = [_gain_row(results, probe, pair) for probe in shown]
    baselines = [names.model(name) for name in results.baselines if name not in pair]
    better = f". Better baseline: the better of {' and '.join(baselines)}" if len(baselines) > 1 else ""
    compared = [f"of {rows[0]['other']}"] if _has(rows, "other_gain") else []
    if _has(rows, "baseline"):
        compared.append("of the better baseline" if len(baselines) > 1 else f"of {baselines[0]}")
    marks = ", ".join([f"of {model} with its interval", *compared])
    return _chart(
        "gains",
        f"Relative gain over {reference}, with {model}’s {LEVEL:.0f} % interval over "
        f"{resampled_over(results.config.seeds)}{better}",
        "Dot chart with one line for each benchmark, task and head: the relative gain over "
        f"{reference} {marks}, in percent; right is better. The numbers are in the tables.",
        gains,
        rows,
    )


def _has(rows: Sequence[dict[str, Any]], key: str) -> bool:
    return any(row[key] is not None for row in rows)


def _gain_row(results: Results, probe: ProbeGain, pair: Pair) -> dict[str, Any]:
    """A line of the chart, in percent of the reference."""
    model, reference = pair

    def gain(value: float) -> float | None:
        return relative_gain(value, fmean(probe.values[reference]), probe.better)

    shown = [name for name in results.baselines if name not in pair]
    baselines = [gain(fmean(probe.values[name])) for name in shown if name in probe.values]
    other = next(name for name in names.MODELS if name not in pair)  # the first is CLIP
    bounds, seeds = probe.gain.percent_interval, probe.values[model]
    return {
        "model": names.model(model),
        "reference": names.model(reference),
        "benchmark": names.benchmark(probe.benchmark, probe.source),
        "evaluator": f"{names.task(probe.task)}, {names.head(probe.head)}",
        "gain": probe.gain.percent,
        "low": bounds and bounds.low,
        "high": bounds and bounds.high,
        "level": f"{LEVEL:.0f}",
        "seeds": " ".join(str(gain(seed)) for seed in seeds) if len(seeds) > 1 else "",
        "other": names.model(other),
        "other_gain": gain(fmean(probe.values[other])) if other in probe.values else None,
        "baseline": max((value for value in baselines if value is not None), default=None),
        "baseline_name": names.model(shown[0]) if len(shown) == 1 else "better baseline",
        "stamp": _stamp(results),
    }


def loss_chart(results: Results) -> PaperChart | None:
    """Contrastive loss of every trained model by step; None without any."""
    if not (rows := _losses(results, "contrastive")):
        return None
    shown = ", ".join(dict.fromkeys(row["model"] for row in rows))
    return _chart(
        "contrastive_loss",
        "Contrastive loss during training; faint: as logged, bold: smoothed",
        f"Line chart of the contrastive loss against the training step for {shown}; a thin line for each seed, and a "
        "thick smoothed one.",
        losses,
        [row | {"store": ""} for row in rows],
    )


def task_loss_chart(results: Results) -> PaperChart | None:
    """Loss on each label store by step, one panel a store; None without any."""
    if not (rows := [row for store in results.stores for row in _losses(results, store, from_zero=True)]):
        return None
    panels = ", ".join(dict.fromkeys(row["store"] for row in rows))
    return _chart(
        "task_losses",
        "Losses against the pseudo-labels; faint: as logged, bold: smoothed",
        f"Line charts of the loss on each label store ({panels}) against the training step.",
        losses,
        rows,
    )


def _losses(results: Results, key: str, from_zero: bool = False) -> list[dict[str, Any]]:
    """A row for each logged step of each model and seed. from_zero: without the steps of the models started from."""
    return [
        {
            "store": key,
            "model": names.model(name),
            "seed": seed,
            "step": line["step"] + (0 if from_zero else _steps_before(results, name)),
            "loss": line[key],
            "stamp": _stamp(results),
        }
        for name, runs in results.shown_runs.items()
        for seed, run in runs.items()
        for line in run.history
        if line.get(key) is not None
    ]


def _steps_before(results: Results, name: str) -> int:
    """Training steps of the models that this one starts from."""
    models, steps = results.config.models, 0
    while (name := models[name].init) in models:
        steps += next(iter(results.runs[name].values())).record["steps"]
    return steps
