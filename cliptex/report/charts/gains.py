"""Relative gain of a model over its reference (mean, interval, seeds), of another model and of the better baseline, a
line a probe.

Run `python gains.py` to draw gains.csv again as gains.svg and gains.pdf, after any change here or in style.py. The CSV
file has every pair of models that can be compared; `PAIR` selects one.
"""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cliptex.report.charts import style

PAIR = ()
"""Model and reference, such as ("CLIP-FT", "CLIP"); empty: the first pair in gains.csv."""
LIMIT = 200.0
"""Percent; what is beyond is an arrow with the number."""
LINE_INCHES, LINE_INCHES_PAPER = 0.27, 0.135
LABEL_POINTS = 6
"""Of the evaluators in a column of a paper."""


def draw(figure: Figure, rows: style.Rows, paper: bool = False) -> None:
    """rows: of gains.csv; numbers may be empty but for `gain`. `seeds` has one number a seed, separated by spaces."""
    model, reference = PAIR or (rows[0]["model"], rows[0]["reference"])
    rows = [row for row in rows if (row["model"], row["reference"]) == (model, reference)]
    if not rows:
        raise SystemExit(f"PAIR: gains.csv has no {model!r} over {reference!r}; see its columns model and reference")
    scale, inches = (0.6, LINE_INCHES_PAPER) if paper else (1.0, LINE_INCHES)
    places, labels, is_title = _places(rows)
    figure.set_figheight((0.9 if paper else 1.35) + inches * len(labels))
    axes = figure.subplots()
    ends = [float(row[key]) for row in rows for key in ("gain", "low", "high", "other_gain", "baseline") if row[key]]
    limits = max(-LIMIT, 1.05 * min(-20.0, *ends)), min(LIMIT, 1.05 * max(20.0, *ends))
    own, other = (style.MODELS.get(name, style.FURTHER[0]) for name in (model, rows[0]["other"]))
    line = style.MODELS.get(reference, style.FAINT)
    wide = {"color": own, "linewidth": 5 * scale, "alpha": 0.35}
    tick = {"color": own, "markersize": 9 * scale}
    axes.axvline(0, color=line, linewidth=1.4 * scale, zorder=1)
    handles = [
        _marks(axes, rows, "gain", places, limits, scale, marker="o", colour=own, label=f"{model}, mean"),
        axes.plot([], [], "-", color=line, label=reference)[0],
        _marks(axes, rows, "other_gain", places, limits, scale, marker="s", colour=other, label=rows[0]["other"]),
        _marks(axes, rows, "baseline", places, limits, scale, "D", style.FAINT, label=rows[0]["baseline_name"]),
    ]
    bars = [(float(row["low"]), float(row["high"]), at) for row, at in zip(rows, places, strict=True) if row["low"]]
    if bars:
        low, high, at = np.array(bars).T
        axes.hlines(at, *np.clip([low, high], *limits), **wide, capstyle="butt", zorder=2)
        label = f"its {rows[0]['level']} % interval"
        handles.insert(1, axes.plot([], [], "-", solid_capstyle="butt", **wide, label=label)[0])
    # the apostrophe keeps spreadsheets from reading -1 2
    seeds = [[float(seed) for seed in row["seeds"].lstrip("'").split()] for row in rows]
    if any(seeds):
        at = np.repeat(places, [len(one) for one in seeds])
        values = np.clip(np.concatenate(seeds), *limits)
        handles.insert(1, axes.plot(values, at, "|", **tick, zorder=3, label=f"{model}, one seed")[0])
    _finish(axes, labels, is_title, limits, scale)
    axes.set_xlabel(f"gain over {reference} (%)")
    handles = [handle for handle in handles if handle is not None]
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
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=style.GRID, linewidth=0.8 * scale)
    axes.spines["left"].set_visible(False)


def _marks(
    axes: Axes,
    rows: style.Rows,
    key: str,
    places: list[int],
    limits: tuple[float, float],
    scale: float,
    marker: str,
    colour: str,
    label: str,
) -> Line2D | None:
    """Draw a marker for each row with a number, or beyond the limits an arrow, and return one of them for the legend;
    None without numbers. Those of the gain are filled, and their arrows have the number."""
    known = [(float(row[key]), place) for row, place in zip(rows, places, strict=True) if row[key]]
    if not known:
        return None
    filled = key == "gain"
    look = {"color": colour, "markerfacecolor": colour if filled else "none", "linestyle": "none", "zorder": 4}
    look["markeredgewidth"] = scale
    (handle,) = axes.plot([], [], marker, markersize=6.5 * scale, **look, label=label)
    inside = [one for one in known if limits[0] <= one[0] <= limits[1]]
    if inside:
        axes.plot(*zip(*inside, strict=True), marker, markersize=6.5 * scale, **look)
    for value, place in known:
        if (value, place) in inside:
            continue
        edge, arrow, side, align = (limits[1], ">", 1, "right") if value > limits[1] else (limits[0], "<", -1, "left")
        axes.plot(edge, place, arrow, markersize=7 * scale, **look)
        if filled:
            moved = {"xytext": (-8 * side, 0), "textcoords": "offset points", "ha": align, "va": "center"}
            axes.annotate(f"{_signed(value)} %", (edge, place), **moved)
    return handle


def _signed(value: float) -> str:
    """Without decimals, with a true minus; zero has no sign."""
    text = f"{value:+.0f}"
    return "0" if float(text) == 0 else text.replace("-", "−")


if __name__ == "__main__":
    style.run(draw, __file__)
