"""The report's charts, drawn with matplotlib for light and dark pages.

Colours are Okabe and Ito's, which are distinct with every common kind of colour blindness; line styles or markers
repeat the distinction. Text stays text in the SVG, in a font of the reader's system.
"""

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cliptex.core.files import replacing
from cliptex.evaluation.measures import metric_of
from cliptex.report import names
from cliptex.report.bootstrap import LEVEL, resampled_over
from cliptex.report.gains import ProbeGain
from cliptex.report.gather import Results
from cliptex.report.statistics import relative_gain, signed

FONTS = "system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,'Liberation Sans','DejaVu Sans',sans-serif"
WIDTH_INCHES = 7.6
SMOOTH_SHARE = 1 / 20
MAX_GAIN = 200.0
STAMP = "miniature: rendered stand-in data"

INK, FAINT, GRID = "#1d2129", "#5c6370", "#e3e6eb"
MODELS = {"clip": "#56b4e9", "clip_ft": "#e69f00", "cliptex": "#0072b2"}
FURTHER = ("#009e73", "#d55e00", "#cc79a7", "#000000")
STYLES = {"clip": (0, (1, 1.2)), "clip_ft": (0, (5, 2)), "cliptex": "-"}
ON_DARK = {
    INK: "#e8eaee",
    FAINT: "#a3aab6",
    GRID: "#343a45",
    MODELS["clip"]: "#c3c8d0",  # its blue would look like CLIPTeX's lightened one
    MODELS["cliptex"]: "#3da5e8",
    FURTHER[0]: "#2fc49a",
    FURTHER[1]: "#f0783c",
    FURTHER[2]: "#dd9bc0",
    FURTHER[3]: "#ffffff",
}
"""Colours replaced on a dark page."""


@dataclass(frozen=True)
class Chart:
    """A chart. name: file stem. alt: what it shows, in words. height: inches. draw: draws into the figure."""

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
        with matplotlib.rc_context(STYLE):
            figure = Figure(figsize=(WIDTH_INCHES, self.height), layout="constrained")
            self.draw(figure)
            out = io.BytesIO()
            background = "white" if kind == "png" else "none"
            figure.savefig(out, format=kind, metadata={"Date": None} if kind == "svg" else None, facecolor=background)
        return out.getvalue()


def on_dark(svg: str) -> str:
    """A chart's SVG with the colours for a dark page."""
    return re.sub("#[0-9a-f]{6}", lambda match: ON_DARK.get(match[0], match[0]), svg)


def gains_chart(results: Results, probes: Sequence[ProbeGain]) -> Chart | None:
    """Relative gain over CLIP-FT of CLIPTeX (mean, interval, seeds), CLIP and the better baseline, a line a probe."""
    shown = [probe for probe in probes if probe.gain.percent is not None]
    if not shown:
        return None

    def gain(probe: ProbeGain, value: float) -> float | None:
        return relative_gain(value, fmean(probe.values[names.REFERENCE]), metric_of(probe.task, probe.metric).better)

    def best_baseline(probe: ProbeGain) -> float | None:
        values = [gain(probe, fmean(probe.values[name])) for name in results.baselines if name in probe.values]
        return max((value for value in values if value is not None), default=None)

    ends = []
    for probe in shown:
        bounds = probe.gain.percent_interval
        values = [best_baseline(probe), probe.gain.percent, *((bounds.low, bounds.high) if bounds else ())]
        ends += [value for value in values if value is not None]
    low, high = max(-MAX_GAIN, 1.05 * min(-20.0, *ends)), min(MAX_GAIN, 1.05 * max(20.0, *ends))

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        positions, tick, labels, previous = [], 0.0, [], None
        for probe in shown:
            tick += 1.0 if previous in (None, probe.benchmark) else 1.5
            previous = probe.benchmark
            positions.append(tick)
            benchmark = names.benchmark(probe.benchmark, probe.source)
            labels.append(f"{benchmark}  {names.task(probe.task)}, {names.head(probe.head)}")
        blue, orange = MODELS["cliptex"], MODELS["clip_ft"]
        wide = {"color": blue, "linewidth": 5, "alpha": 0.35, "solid_capstyle": "butt"}
        axes.axvline(0, color=orange, linewidth=1.4, zorder=1)
        for position, probe in zip(positions, shown, strict=True):
            if bounds := probe.gain.percent_interval:
                axes.plot(np.clip([bounds.low, bounds.high], low, high), [position] * 2, **wide, zorder=2)
            if len(probe.values[names.SUBJECT]) > 1:
                seeds = [gain(probe, seed) for seed in probe.values[names.SUBJECT]]
                axes.plot(np.clip(seeds, low, high), [position] * len(seeds), "|", color=blue, markersize=9, zorder=3)
            _mark(axes, probe.gain.percent, position, (low, high), "o", blue, filled=True)
            if (baseline := best_baseline(probe)) is not None:
                _mark(axes, baseline, position, (low, high), "D", FAINT)
            if (values := probe.values.get("clip")) is not None and (start := gain(probe, fmean(values))) is not None:
                _mark(axes, start, position, (low, high), "s", MODELS["clip"])
        axes.set_yticks(positions, labels)
        axes.set_ylim(positions[-1] + 0.8, positions[0] - 0.8)
        axes.set_xlim(1.06 * low, 1.06 * high)
        axes.locator_params(axis="x", nbins=6)  # more of these labels would touch
        axes.xaxis.set_major_formatter(lambda value, _: f"{signed(value, 0)} %")
        axes.set_xlabel("relative gain over CLIP-FT (signed so that right is better)")
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", color=GRID, linewidth=0.8)
        axes.spines["left"].set_visible(False)
        handles = [
            axes.plot([], [], "o", color=blue, label="CLIPTeX, mean")[0],
            axes.plot([], [], "-", color=orange, label="CLIP-FT")[0],
            axes.plot([], [], "s", color=MODELS["clip"], markerfacecolor="none", label="CLIP")[0],
            axes.plot([], [], "D", color=FAINT, markerfacecolor="none", label="better baseline")[0],
        ]
        if any(probe.gain.percent_interval for probe in shown):
            handles.insert(1, axes.plot([], [], **wide, label=f"its {LEVEL:.0f} % interval")[0])
        if len(results.config.seeds) > 1:
            handles.insert(1, axes.plot([], [], "|", color=blue, markersize=9, label="CLIPTeX, one seed")[0])
        figure.legend(handles=handles, loc="outside upper left", ncols=len(handles), frameon=False)
        stamp(figure, results.miniature)

    return Chart(
        "gains",
        f"Relative gain over CLIP-FT, with CLIPTeX’s {LEVEL:.0f} % interval over "
        f"{resampled_over(results.config.seeds)}. Better baseline: the better of Random and Position",
        "Dot chart with one line for each benchmark, task and head: the relative gain over CLIP-FT of CLIPTeX with its "
        "interval, of CLIP and of the better baseline, in percent; right is better. The numbers are in the "
        "tables.",
        1.35 + 0.27 * len(shown),
        draw,
    )


def loss_chart(results: Results) -> Chart | None:
    """Contrastive loss of every trained model by step; None without any."""
    trained = _models_with(results, "contrastive")
    if not trained:
        return None

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for name in trained:
            _curves(axes, results, name, "contrastive", _steps_before(results, name))
        _finish(axes, "contrastive loss")
        axes.set_xlabel("step (continues the count of the model that training starts from)")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=5, frameon=False)
        stamp(figure, results.miniature)

    shown = ", ".join(map(names.model, trained))
    return Chart(
        "contrastive_loss",
        "Contrastive loss during training; faint: as logged, bold: smoothed",
        f"Line chart of the contrastive loss against the training step for {shown}; a thin line for each seed, and a "
        "thick smoothed one.",
        2.9,
        draw,
    )


def task_loss_chart(results: Results) -> Chart | None:
    """Loss on each label store by step, one panel a store; None without any."""
    panels = {store: models for store in results.stores if (models := _models_with(results, store))}
    if not panels:
        return None

    def draw(figure: Figure) -> None:
        every = figure.subplots(1, len(panels), squeeze=False)[0]
        handles = {}
        for axes, (store, models) in zip(every, panels.items(), strict=True):
            for name in models:
                _curves(axes, results, name, store)
            axes.set_title(store, loc="left")
            _finish(axes, "loss" if axes is every[0] else "")
            handles |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
        figure.legend(handles.values(), handles, loc="outside upper left", ncols=5, frameon=False)
        stamp(figure, results.miniature)

    return Chart(
        "task_losses",
        "Losses against the pseudo-labels; faint: as logged, bold: smoothed",
        f"Line charts of the loss on each label store ({', '.join(panels)}) against the training step.",
        2.6,
        draw,
    )


def _models_with(results: Results, key: str) -> list[str]:
    return [
        name for name, runs in results.shown_runs.items() if any(_series(run.history, key) for run in runs.values())
    ]


def _steps_before(results: Results, name: str) -> int:
    """Training steps of the models that this one starts from."""
    models, steps = results.config.models, 0
    while (name := models[name].init) in models:
        steps += next(iter(results.runs[name].values())).record["steps"]
    return steps


def _curves(axes: Axes, results: Results, name: str, key: str, start: int = 0) -> None:
    further = [model for model in results.shown_runs if model not in names.MODELS]
    shade = MODELS[name] if name in MODELS else FURTHER[further.index(name) % len(FURTHER)]
    label = names.model(name)
    for run in results.runs[name].values():
        if not (series := _series(run.history, key)):
            continue
        steps, values = np.array(series).T
        steps = steps + start
        axes.plot(steps, values, color=shade, linewidth=0.6, alpha=0.3)
        style = {"color": shade, "linewidth": 1.8, "linestyle": STYLES.get(name, "-.")}
        axes.plot(steps, _smooth(values), **style, label=label)
        label = "_"  # one legend entry for all seeds


def _series(history: list[dict[str, float]], key: str) -> list[tuple[float, float]]:
    return [(line["step"], line[key]) for line in history if line.get(key) is not None]


def _smooth(values: np.ndarray) -> np.ndarray:
    """Running mean over a twentieth of the logged steps, at least three; shorter windows at the ends."""
    reach, places = max(1, int(len(values) * SMOOTH_SHARE / 2)), np.arange(len(values))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    start, stop = np.maximum(places - reach, 0), np.minimum(places + reach + 1, len(values))
    return (sums[stop] - sums[start]) / (stop - start)


def _finish(axes: Axes, label: str) -> None:
    axes.set_xlabel("step")
    axes.set_ylabel(label)
    axes.set_xlim(left=0)
    axes.grid(color=GRID, linewidth=0.8)


def _mark(
    axes: Axes,
    value: float,
    position: float,
    limits: tuple[float, float],
    marker: str,
    shade: str,
    filled: bool = False,
) -> None:
    """Draw a marker, or beyond the limits an arrow with the number."""
    style = {"color": shade, "markerfacecolor": shade if filled else "none", "zorder": 4}
    if limits[0] <= value <= limits[1]:
        axes.plot(value, position, marker, markersize=6.5, **style)
        return
    edge, arrow, side, align = (limits[1], ">", 1, "right") if value > limits[1] else (limits[0], "<", -1, "left")
    axes.plot(edge, position, arrow, markersize=7, **style)
    if filled:
        moved = {"xytext": (-8 * side, 0), "textcoords": "offset points", "ha": align, "va": "center"}
        axes.annotate(f"{signed(value, 0)} %", (edge, position), **moved)


def stamp(figure: Figure, miniature: bool) -> None:
    """Mark a figure of stand-in data, since figures are copied without their caption."""
    if miniature:
        figure.supxlabel(STAMP, x=1.0, ha="right", fontsize=7.5, color=FAINT)


STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "cliptex",
    "font.family": "DejaVu Sans",
    "text.parse_math": False,  # a dollar sign in a label is one
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": FAINT,
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": FAINT,
    "ytick.labelcolor": INK,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "savefig.dpi": 150,
}
