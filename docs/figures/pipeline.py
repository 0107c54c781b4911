"""Draw the figure of the pipeline in the README:

python docs/figures/pipeline.py docs/images/pipeline.svg
"""

import sys
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

INK, FAINT, DATA, MODEL, EVALUATION = "#1d2129", "#5c6370", "#e8f1f8", "#fdf1da", "#e5f4ee"
FONTS = ["Segoe UI", "Roboto", "Helvetica Neue", "Arial", "Liberation Sans", "DejaVu Sans", "sans-serif"]
WIDTH, HEIGHT = 1.86, 0.92
# name: left, bottom, colour, title, further lines
BOXES = {
    "pairs": (0.1, 2.15, DATA, "image-caption pairs", ["URLs, tars, the Hub,", "or rendered"]),
    "shards": (2.35, 2.15, DATA, "shards", ["WebDataset tars,", "every row accounted for"]),
    "experts": (4.6, 2.85, MODEL, "experts", ["Mask R-CNN, DPT,", "NLL-AngMF, your own"]),
    "labels": (6.85, 2.85, DATA, "label stores", ["classes, depth, normals", "in Parquet"]),
    "train": (6.85, 1.2, MODEL, "train", ["contrastive + task losses,", "heads discarded later"]),
    "models": (9.1, 1.2, DATA, "models", ["CLIP, CLIP-FT,", "CLIPTeX, in open_clip"]),
    "probes": (
        9.1,
        2.85,
        EVALUATION,
        "encoder evaluation",
        ["segmentation, detection, depth,", "normals, classes, zero-shot"],
    ),
    "report": (11.55, 2.15, EVALUATION, "report.html", ["verdict, tables, images,", "how to reproduce"]),
}
ARROWS = [
    ("pairs", "shards"),
    ("shards", "experts"),
    ("experts", "labels"),
    ("shards", "train"),
    ("labels", "train"),
    ("train", "models"),
    ("models", "probes"),
    ("probes", "report"),
]
WIDE = {"probes": 2.15}


def _centre(name: str) -> tuple[float, float]:
    left, bottom, *_ = BOXES[name]
    return left + WIDE.get(name, WIDTH) / 2, bottom + HEIGHT / 2


def _draw(axes: Axes) -> None:
    patches = {}
    for name, (left, bottom, colour, title, lines) in BOXES.items():
        width = WIDE.get(name, WIDTH)
        patches[name] = FancyBboxPatch(
            (left, bottom), width, HEIGHT, boxstyle="round,pad=0,rounding_size=0.1", facecolor=colour, edgecolor=FAINT
        )
        axes.add_patch(patches[name])
        middle = left + width / 2
        axes.text(middle, bottom + 0.68, title, ha="center", va="center", fontsize=10.5, fontweight="bold", color=INK)
        for number, line in enumerate(lines):
            axes.text(middle, bottom + 0.43 - 0.22 * number, line, ha="center", va="center", fontsize=8.2, color=FAINT)
    for start, end in ARROWS:
        axes.add_patch(
            FancyArrowPatch(
                _centre(start),
                _centre(end),
                patchA=patches[start],
                patchB=patches[end],
                arrowstyle="-|>",
                mutation_scale=13,
                shrinkA=2,
                shrinkB=3,
                color=FAINT,
            )
        )
    axes.set(xlim=(0, 13.5), ylim=(1.1, 3.87), aspect="equal")
    axes.axis("off")


def main(out: Path) -> None:
    """Write the SVG. The same version of matplotlib gives the same bytes."""
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "cliptex", "font.sans-serif": FONTS}):
        figure = Figure(figsize=(13.5, 2.77), facecolor="white")
        _draw(figure.add_axes((0, 0, 1, 1)))
        figure.savefig(out, metadata={"Date": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
