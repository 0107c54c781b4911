"""The plot of a study, in the style of the report's charts (`cliptex.report.charts`)."""

import textwrap
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cliptex.report import names
from cliptex.report.bootstrap import LEVEL
from cliptex.report.charts.style import FAINT, FURTHER, GRID, INK, MODELS, stamp
from cliptex.report.figures import STAMP, Chart
from cliptex.report.statistics import signed
from cliptex.report.studies.measures import ComparedModel, Findings
from cliptex.report.studies.summary import Panel

TONES = {"better": MODELS["CLIPTeX"], "worse": FURTHER[1], "no difference seen": FAINT}
MARKERS = "oDs^vP*X<>"
Point = tuple[float, float, float]
"""A value and the bounds of its interval."""


def dots_plot(panels: Sequence[Panel], caption: str, alt: str, miniature: bool) -> Chart:
    """Differences with their intervals; one panel a metric, all with the same rows."""
    rows = [name for name, _ in panels[0][1]]

    def draw(figure: Figure) -> None:
        all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (measure, compared) in zip(all_axes, panels, strict=True):
            axes.axvline(0, color=INK, linewidth=1)
            for position, (_, row) in enumerate(compared):
                _dot(axes, row, position)
            axes.grid(axis="x", color=GRID, linewidth=0.8)
            # four panels next to long row names are narrow
            title = textwrap.fill(measure.metric_title, 16 if len(panels) > 3 else 30)
            axes.set_title(f"{measure.where}\n{title}", loc="left", fontsize=8)
            axes.set_xlabel({"%": "points", "": "difference"}.get(measure.info.unit, measure.info.unit))
            axes.tick_params(axis="y", length=0)
            axes.spines["left"].set_visible(False)
            axes.locator_params(axis="x", nbins=4)
            axes.xaxis.set_major_formatter(lambda value, _, digits=measure.info.decimals: signed(value, digits))
        all_axes[0].set_yticks(range(len(rows)), rows)
        all_axes[0].set_ylim(len(rows) - 0.4, -0.6)
        handles = [
            all_axes[0].plot([], [], "o-", color=shade, markerfacecolor=_face(state), label=state)[0]
            for state, shade in TONES.items()
        ]
        figure.legend(handles=handles, loc="outside upper left", ncols=3, frameon=False)
        stamp(figure, STAMP if miniature else "")

    caption = f"{caption}, with {LEVEL:.0f} % intervals over images; right is better"
    return Chart("plot", caption, alt, 1.55 + 0.26 * len(rows), draw)


def _face(state: str) -> str:
    return "none" if state == "no difference seen" else TONES[state]


def _dot(axes: Axes, row: ComparedModel, position: float) -> None:
    shade = TONES[row.state]
    if row.bounds:
        axes.plot([row.bounds.low, row.bounds.high], [position] * 2, color=shade, linewidth=2, zorder=2)
    axes.plot(row.difference, position, "o", color=shade, markerfacecolor=_face(row.state), markersize=6, zorder=3)


def scatter_plot(
    findings: Findings,
    labels: Mapping[str, str],
    across: Mapping[str, Point],
    across_title: str,
    caption: str,
    alt: str,
    miniature: bool,
) -> Chart:
    """One panel a measure: the difference of each model to the reference (y) against `across` (x)."""

    def draw(figure: Figure) -> None:
        panels = figure.subplots(1, len(findings), squeeze=False)[0]
        handles = {}
        for axes, (measure, compared) in zip(panels, findings, strict=True):
            axes.axhline(0, color=FAINT, linewidth=0.8)
            for number, (model, row) in enumerate(compared.items()):
                shade = MODELS.get(names.model(model), FURTHER[number % len(FURTHER)])
                (x, low, high), y = across[model], row.difference
                axes.plot([low, high], [y, y], color=shade, linewidth=1, alpha=0.5)
                if row.bounds:
                    axes.plot([x, x], [row.bounds.low, row.bounds.high], color=shade, linewidth=1, alpha=0.5)
                marker = MARKERS[number % len(MARKERS)]
                (handles[labels[model]],) = axes.plot(x, y, marker, color=shade, markersize=6.5, linestyle="none")
            axes.set_title(f"{measure.where}\n{measure.metric_title}", loc="left", fontsize=8)
            axes.grid(color=GRID, linewidth=0.6)
            axes.yaxis.set_major_formatter(lambda value, _, digits=measure.info.decimals: signed(value, digits))
        figure.supxlabel(across_title, fontsize=9, color=FAINT)
        figure.legend(handles.values(), handles, loc="outside upper left", ncols=2, frameon=False, fontsize=8)
        if miniature:
            figure.text(0.995, 0.005, STAMP, ha="right", va="bottom", fontsize=7.5, color=FAINT)

    height = 3.2 + 0.17 * ((len(findings[0][1]) + 1) // 2)
    return Chart("plot", f"{caption}, with {LEVEL:.0f} % intervals over images; up is better", alt, height, draw)
