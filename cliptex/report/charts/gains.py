"""Relative gain over CLIP-FT of CLIPTeX (mean, interval, seeds), CLIP and the better baseline, a line a probe.

Run `python gains.py` to draw gains.csv again as gains.svg and gains.pdf, after any change here or in style.py.
"""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cliptex.report.charts import style

LIMIT = 200.0
"""Percent; what is beyond is an arrow with the number."""
LINE_INCHES, LINE_INCHES_PAPER = 0.27, 0.135
LABEL_POINTS = 6
"""Of the evaluators in a column of a paper."""


def draw(figure: Figure, rows: style.Rows, paper: bool = False) -> None:
    """rows: of gains.csv; numbers may be empty but for `gain`. `seeds` has one number a seed, separated by spaces."""
    scale, inches = (0.6, LINE_INCHES_PAPER) if paper else (1.0, LINE_INCHES)
    places, labels, is_title = _places(rows)
    figure.set_figheight((0.9 if paper else 1.35) + inches * len(labels))
    axes = figure.subplots()
    ends = [float(row[key]) for row in rows for key in ("gain", "low", "high", "baseline") if row[key]]
    limits = max(-LIMIT, 1.05 * min(-20.0, *ends)), min(LIMIT, 1.05 * max(20.0, *ends))
    blue, orange = style.MODELS["CLIPTeX"], style.MODELS["CLIP-FT"]
    wide = {"color": blue, "linewidth": 5 * scale, "alpha": 0.35, "solid_capstyle": "butt"}
    tick = {"color": blue, "markersize": 9 * scale}
    axes.axvline(0, color=orange, linewidth=1.4 * scale, zorder=1)
    for row, place in zip(rows, places, strict=True):
        if row["low"]:
            axes.plot(np.clip([float(row["low"]), float(row["high"])], *limits), [place] * 2, **wide, zorder=2)
        seeds = [float(seed) for seed in row["seeds"].lstrip("'").split()]  # ' keeps spreadsheets from reading -1 2
        axes.plot(np.clip(seeds, *limits), [place] * len(seeds), "|", **tick, zorder=3)
        _mark(axes, row["gain"], place, limits, "o", blue, scale, filled=True)
        _mark(axes, row["baseline"], place, limits, "D", style.FAINT, scale)
        _mark(axes, row["clip"], place, limits, "s", style.MODELS["CLIP"], scale)
    _finish(axes, labels, is_title, limits, scale)
    empty = {"markersize": 6.5 * scale, "linestyle": "none", "markerfacecolor": "none"}
    handles = [
        axes.plot([], [], "o", color=blue, markersize=6.5 * scale, label="CLIPTeX, mean")[0],
        axes.plot([], [], "-", color=orange, label="CLIP-FT")[0],
        axes.plot([], [], marker="s", color=style.MODELS["CLIP"], label="CLIP", **empty)[0],
        axes.plot([], [], marker="D", color=style.FAINT, label="better baseline", **empty)[0],
    ]
    if any(row["low"] for row in rows):
        handles.insert(1, axes.plot([], [], **wide, label=f"its {rows[0]['level']} % interval")[0])
    if any(row["seeds"] for row in rows):
        handles.insert(1, axes.plot([], [], "|", **tick, label="CLIPTeX, one seed")[0])
    columns = 3 if paper else len(handles)
    figure.legend(handles=handles, loc="outside upper left", ncols=columns, frameon=False, columnspacing=1.0)
    style.stamp(figure, rows[0]["stamp"], 5.5 if paper else 7.5)


def _places(rows: style.Rows) -> tuple[list[int], list[str], list[bool]]:
    """The line of each row, the labels of all lines, and which of these are the benchmarks' names."""
    places, labels, is_title, previous = [], [], [], None
    for row in rows:
        if row["benchmark"] != previous:
            labels.append(row["benchmark"])
            is_title.append(True)
            previous = row["benchmark"]
        places.append(len(labels))
        labels.append(row["evaluator"])
        is_title.append(False)
    return places, labels, is_title


def _finish(axes: Axes, labels: list[str], is_title: list[bool], limits: tuple[float, float], scale: float) -> None:
    axes.set_yticks(range(len(labels)), labels)
    for label, title in zip(axes.get_yticklabels(), is_title, strict=True):
        label.set(fontweight="bold" if title else "normal", fontsize=LABEL_POINTS if scale < 1 else None)
    axes.set_ylim(len(labels) - 0.3, -0.7)
    axes.set_xlim(1.06 * limits[0], 1.06 * limits[1])
    axes.locator_params(axis="x", nbins=6 if scale == 1 else 4)  # more of these labels would touch
    axes.xaxis.set_major_formatter(lambda value, _: _signed(value))
    axes.set_xlabel("gain over CLIP-FT (%)")
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=style.GRID, linewidth=0.8 * scale)
    axes.spines["left"].set_visible(False)


def _mark(
    axes: Axes,
    text: str,
    place: int,
    limits: tuple[float, float],
    marker: str,
    colour: str,
    scale: float,
    filled: bool = False,
) -> None:
    """Draw a marker, or beyond the limits an arrow with the number."""
    if not text:
        return
    value, look = float(text), {"color": colour, "markerfacecolor": colour if filled else "none", "zorder": 4}
    look["markeredgewidth"] = scale
    if limits[0] <= value <= limits[1]:
        axes.plot(value, place, marker, markersize=6.5 * scale, **look)
        return
    edge, arrow, side, align = (limits[1], ">", 1, "right") if value > limits[1] else (limits[0], "<", -1, "left")
    axes.plot(edge, place, arrow, markersize=7 * scale, **look)
    if filled:
        moved = {"xytext": (-8 * side, 0), "textcoords": "offset points", "ha": align, "va": "center"}
        axes.annotate(f"{_signed(value)} %", (edge, place), **moved)


def _signed(value: float) -> str:
    """Without decimals, with a true minus; zero has no sign."""
    text = f"{value:+.0f}"
    return "0" if float(text) == 0 else text.replace("-", "−")


if __name__ == "__main__":
    style.run(draw, __file__)
