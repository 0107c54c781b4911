"""A study's plot. Colours and text as in the report's charts (`cliptex.report.figures`)."""

import textwrap
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cliptex.report import names
from cliptex.report.bootstrap import LEVEL
from cliptex.report.figures import FAINT, FURTHER, GRID, INK, MODELS, STAMP, Chart, stamp
from cliptex.report.statistics import signed
from cliptex.report.studies.measures import Compared, Measure
from cliptex.report.studies.words import Findings

TONES = {"better": MODELS["cliptex"], "worse": FURTHER[1], "no difference seen": FAINT}
MARKERS = "oDs^vP*X<>"
Panel = tuple[Measure, Sequence[tuple[str, Compared]]]
"""A metric, and its rows from above: what they are called, and a difference."""
Point = tuple[float, float, float]
"""A value and the bounds of its interval."""


def dots_plot(panels: Sequence[Panel], caption: str, alt: str, miniature: bool) -> Chart:
    """Differences with their intervals: a panel a metric, the same rows in each."""
    rows = [name for name, _ in panels[0][1]]

    def draw(figure: Figure) -> None:
        every = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (measure, found) in zip(every, panels, strict=True):
            axes.axvline(0, color=INK, linewidth=1)
            for place, (_, one) in enumerate(found):
                _dot(axes, one, place)
            axes.grid(axis="x", color=GRID, linewidth=0.8)
            # beside long names of rows, four panels are narrow
            what = textwrap.fill(measure.what, 16 if len(panels) > 3 else 30)
            axes.set_title(f"{names.benchmark(measure.benchmark)}\n{what}", loc="left", fontsize=8)
            axes.set_xlabel({"%": "points", "": "difference"}.get(measure.unit, measure.unit))
            axes.tick_params(axis="y", length=0)
            axes.spines["left"].set_visible(False)
            axes.locator_params(axis="x", nbins=4)
            axes.xaxis.set_major_formatter(lambda value, _, digits=measure.digits: signed(value, digits))
        every[0].set_yticks(range(len(rows)), rows)
        every[0].set_ylim(len(rows) - 0.4, -0.6)
        handles = [
            every[0].plot([], [], "o-", color=shade, markerfacecolor=_face(state), label=state)[0]
            for state, shade in TONES.items()
        ]
        figure.legend(handles=handles, loc="outside upper left", ncols=3, frameon=False)
        stamp(figure, miniature)

    caption = f"{caption}, with {LEVEL:.0f} % intervals over images; right is better"
    return Chart("plot", caption, alt, 1.55 + 0.26 * len(rows), draw)


def _face(state: str) -> str:
    return "none" if state == "no difference seen" else TONES[state]


def _dot(axes: Axes, one: Compared, place: float) -> None:
    shade = TONES[one.state]
    if one.bounds:
        axes.plot([one.bounds.low, one.bounds.high], [place] * 2, color=shade, linewidth=2, zorder=2)
    axes.plot(one.difference, place, "o", color=shade, markerfacecolor=_face(one.state), markersize=6, zorder=3)


def scatter_plot(
    findings: Findings,
    labels: Mapping[str, str],
    across: Mapping[str, Point],
    across_title: str,
    caption: str,
    alt: str,
    miniature: bool,
) -> Chart:
    """A panel a measure: each model's difference to the reference, upwards, against `across`."""

    def draw(figure: Figure) -> None:
        panels = figure.subplots(1, len(findings), squeeze=False)[0]
        handles = {}
        for axes, (measure, compared) in zip(panels, findings, strict=True):
            axes.axhline(0, color=FAINT, linewidth=0.8)
            for number, (model, one) in enumerate(compared.items()):
                shade = MODELS.get(model, FURTHER[number % len(FURTHER)])
                (x, low, high), y = across[model], one.difference
                axes.plot([low, high], [y, y], color=shade, linewidth=1, alpha=0.5)
                if one.bounds:
                    axes.plot([x, x], [one.bounds.low, one.bounds.high], color=shade, linewidth=1, alpha=0.5)
                marker = MARKERS[number % len(MARKERS)]
                (handles[labels[model]],) = axes.plot(x, y, marker, color=shade, markersize=6.5, linestyle="none")
            axes.set_title(f"{names.benchmark(measure.benchmark)}\n{measure.what}", loc="left", fontsize=8)
            axes.grid(color=GRID, linewidth=0.6)
            axes.yaxis.set_major_formatter(lambda value, _, digits=measure.digits: signed(value, digits))
        figure.supxlabel(across_title, fontsize=9, color=FAINT)
        figure.legend(handles.values(), handles, loc="outside upper left", ncols=2, frameon=False, fontsize=8)
        if miniature:
            figure.text(0.995, 0.005, STAMP, ha="right", va="bottom", fontsize=7.5, color=FAINT)

    height = 3.2 + 0.17 * ((len(findings[0][1]) + 1) // 2)
    return Chart("plot", f"{caption}, with {LEVEL:.0f} % intervals over images; up is better", alt, height, draw)
