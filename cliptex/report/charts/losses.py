"""Losses by training step: a panel for each label store, or one of the contrastive loss.

Run this script (`python contrastive_loss.py`, `python task_losses.py`) to draw the CSV file of its name again as SVG
and PDF, after any change here or in style.py.
"""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cliptex.report.charts import style

SMOOTH_SHARE = 1 / 20
"""Of the logged steps, over which the bold line is a running mean."""


def draw(figure: Figure, rows: style.Rows, paper: bool = False) -> None:
    """rows: a logged step of a model and seed each; in a panel `store`, or all in one without a title."""
    stores = list(dict.fromkeys(row["store"] for row in rows))
    panels = (len(stores), 1) if paper else (1, len(stores))
    figure.set_figheight(0.35 + 1.25 * len(stores) if paper else 2.9 if stores == [""] else 2.6)
    every = figure.subplots(*panels, squeeze=False, sharex=paper).ravel()
    order = [model for model in dict.fromkeys(row["model"] for row in rows) if model not in style.MODELS]
    handles = {}
    for axes, store in zip(every, stores, strict=True):
        own = [row for row in rows if row["store"] == store]
        for model in dict.fromkeys(row["model"] for row in own):
            further = order.index(model) if model in order else 0
            handles.setdefault(model, _curves(axes, [row for row in own if row["model"] == model], further, paper))
        axes.set_title(store, loc="left")
        axes.set_ylabel("loss" if store else "contrastive loss")
        axes.set_xlim(left=0)
        axes.grid(color=style.GRID, linewidth=0.5 if paper else 0.8)
        if axes is every[-1] or not paper:
            axes.set_xlabel("step" if store else "step (after those of the model that training starts from)")
    columns = 3 if paper else 5
    figure.legend(handles.values(), handles, loc="outside upper left", ncols=columns, frameon=False, handlelength=3)
    style.stamp(figure, rows[0]["stamp"], 5.5 if paper else 7.5)


def _curves(axes: Axes, rows: style.Rows, further: int, paper: bool):
    """A thin line for each seed of one model and a bold one of its running mean; returns the last."""
    model = rows[0]["model"]
    colour = style.MODELS.get(model, style.FURTHER[further % len(style.FURTHER)])
    dashes = style.LINES.get(model, style.FURTHER_LINES[further % len(style.FURTHER_LINES)])
    for seed in dict.fromkeys(row["seed"] for row in rows):
        steps, values = np.array([(row["step"], row["loss"]) for row in rows if row["seed"] == seed], float).T
        axes.plot(steps, values, color=colour, linewidth=0.3 if paper else 0.6, alpha=0.3)
        (line,) = axes.plot(steps, smooth(values), color=colour, linewidth=1.0 if paper else 1.8, linestyle=dashes)
    return line


def smooth(values: np.ndarray) -> np.ndarray:
    """Running mean over a twentieth of the logged steps, at least three; shorter windows at the ends."""
    reach, places = max(1, int(len(values) * SMOOTH_SHARE / 2)), np.arange(len(values))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    start, stop = np.maximum(places - reach, 0), np.minimum(places + reach + 1, len(values))
    return (sums[stop] - sums[start]) / (stop - start)


if __name__ == "__main__":
    style.run(draw, __file__)
