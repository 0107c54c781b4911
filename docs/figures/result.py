"""The README's figure of a result, from a finished run:

    python docs/figures/result.py results docs/images/result.png

It shows the first pairs in which the segmentation expert finds something, predictions of the probes on the first
evaluation image of VOC and of NYUv2, and each probe's relative gain. No image is hand-picked.
"""

import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from cliptex.core.files import read_json
from cliptex.core.plugins import find
from cliptex.data.images import decode_image
from cliptex.data.shards import read_shard
from cliptex.evaluation.measures import measure, metric_of
from cliptex.labels.store import LabelFile
from cliptex.report import names
from cliptex.report.statistics import relative_gain, signed
from cliptex.tasks.contact_sheet import class_names
from cliptex.tasks.segmentation import palette

ROWS = 2
STORES = {"segmentation": "classes", "depth": "depth, near is bright", "normals": "normals"}
MODELS = {"clip_ft": "CLIP-FT", "cliptex": "CLIPTeX"}
BLUE, ORANGE, INK, FAINT, GRID = "#0072b2", "#e69f00", "#1d2129", "#5c6370", "#e3e6eb"
IGNORED = 255
PAINTED = 0.05


def show(axes: Axes, pixels: np.ndarray, title: str = "", text: str = "") -> None:
    """Draw uint8 [H, W, 3], or only text if there are no pixels."""
    if pixels is not None:
        axes.imshow(pixels, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, color=INK)
    axes.set_xlabel("\n".join(textwrap.wrap(text, 22)[:3]), color=FAINT)
    axes.spines[:].set_visible(False)


def visible(codes: np.ndarray) -> set[int]:
    """The classes that cover more than 1 % of a mask."""
    classes, counts = np.unique(codes[codes != IGNORED], return_counts=True)
    return set(classes[counts > 0.01 * counts.sum()].tolist())


def legend(figure: Figure, codes: set[int], classes: Sequence[str]) -> None:
    """A legend of class colours below the figure."""
    patches = [Patch(facecolor=palette()[code] / 255, edgecolor=FAINT, label=classes[code]) for code in sorted(codes)]
    figure.legend(handles=patches, loc="outside lower left", ncols=6, fontsize=8, frameon=False)


def draw_pairs(figure: Figure, axes: np.ndarray, results: Path) -> None:
    """The first pairs with a segmented foreground, and their pseudo-labels."""
    tasks = {name: find("tasks", name)() for name in STORES}
    files = {name: LabelFile(results / "labels" / name / "00000.parquet", task) for name, task in tasks.items()}
    painted = zip(files["segmentation"].keys, files["segmentation"].column("foreground"), strict=True)
    keys = [key for key, share in painted if share is not None and share > PAINTED][:ROWS]
    pairs = {pair.key: pair for pair in read_shard(results / "shards" / "00000.tar")}
    seen = set()
    for row, key in enumerate(keys):
        caption = f"“{pairs[key].caption}”"
        show(axes[row, 0], decode_image(pairs[key].image), "" if row else "a pair", caption)
        for column, (name, title) in enumerate(STORES.items(), start=1):
            label = files[name].label(files[name].keys.index(key))
            show(axes[row, column], None if label is None else tasks[name].picture(label), "" if row else title)
            if name == "segmentation":
                seen |= visible(label)
    legend(figure, seen, class_names(tasks["segmentation"]))


def draw_probes(figure: Figure, axes: np.ndarray, results: Path) -> None:
    """The first image of VOC and of NYUv2, the predictions with both encoders, and the ground truth."""
    classes = read_json(results / "probes" / "voc.json")["class_names"]
    voc, nyu = (
        {name: np.load(results / "probes" / benchmark / name / "seed0" / f"{head}.npz") for name in MODELS}
        for benchmark, head in (("voc", "deeplabv3"), ("nyuv2", "linear"))
    )
    colours, normals, seen = palette(), find("tasks", "normals")(), set()
    show(axes[0, 0], voc["cliptex"]["image_0"], "held-out image", "classes")
    maps = {title: voc[name]["prediction_0"] for name, title in MODELS.items()} | {"truth": voc["cliptex"]["truth_0"]}
    for column, (title, codes) in enumerate(maps.items(), start=1):
        show(axes[0, column], colours[codes], title)
        seen |= visible(codes)
    show(axes[1, 0], nyu["cliptex"]["image_0"], text="normals, a colour a direction")
    for column, name in enumerate(MODELS, start=1):
        show(axes[1, column], normals.picture(nyu[name]["normals_prediction_0"]))
    show(axes[1, 3], normals.picture(nyu["cliptex"]["normals_truth_0"]))
    legend(figure, seen, classes)


def draw_gains(axes: Axes, results: Path) -> None:
    """CLIPTeX's relative gain over CLIP-FT, mean over seeds; one bar a probe."""
    bars = {}
    for path in sorted((results / "probes").glob("*.json")):
        table = read_json(path)
        values: dict[tuple[str, str, str], list[float]] = {}
        for item in table["results"]:
            value = item["metrics"][measure(item["task"]).main]
            values.setdefault((item["task"], item["head"], item["model"]), []).append(value)
        for task, head in dict.fromkeys(key[:2] for key in values):
            metric = measure(task).main
            new, old = (fmean(values[task, head, model]) for model in ("cliptex", "clip_ft"))
            label = f"{names.benchmark(table['benchmark'])}: {names.task(task).lower()}, {names.head(head)}"
            info = metric_of(task, metric)
            values_of = " → ".join(map(info.format, (old, new)))
            shown = f"{info.title} {values_of} {info.unit}"
            gain = relative_gain(new, old, info.better)
            if gain is not None:  # undefined if the reference is zero
                bars[label] = (gain, shown)
    places = np.arange(len(bars))
    gains = [gain for gain, _ in bars.values()]
    axes.barh(places, gains, height=0.62, color=[BLUE if gain >= 0 else ORANGE for gain in gains])
    axes.axvline(0, color=INK, linewidth=1)
    axes.set_yticks(places, [f"{label}\n{shown}" for label, (_, shown) in bars.items()], color=INK)
    axes.invert_yaxis()
    for place, gain in zip(places, gains, strict=True):
        axes.annotate(f"{signed(gain, 0)} %", (max(gain, 0), place), (4, 0), textcoords="offset points", va="center")
    axes.set_xlim(min(0, *gains) * 1.2, max(gains) * 1.25)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(lambda value, _: f"{signed(value, 0)} %")
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=GRID)
    axes.set_axisbelow(True)
    axes.spines[["left", "right", "top"]].set_visible(False)


def main(results: Path, out: Path) -> None:
    """Draw the figure of the run in the folder `results`."""
    train = read_json(results / "probes" / "voc.json")
    seeds = len({item["seed"] for item in train["results"]})
    with matplotlib.rc_context(
        {"font.size": 9, "axes.titlesize": 9, "axes.labelsize": 8, "savefig.facecolor": "white"}
    ):
        figure = Figure(figsize=(12, 7.4), layout="constrained")
        left, right = figure.subfigures(1, 2, width_ratios=(6.2, 5.8), wspace=0.03)
        above, below = left.subfigures(2, 1, height_ratios=(1.15, 1))
        above.suptitle("Experts label image-caption pairs", fontweight="bold", color=INK, x=0.02, ha="left")
        draw_pairs(above, above.subplots(ROWS, 4), results)
        below.suptitle("Probes on the frozen encoders", fontweight="bold", x=0.02, ha="left")
        draw_probes(below, below.subplots(ROWS, 4), results)
        right.suptitle("Relative gain of CLIPTeX over CLIP-FT, every probe", fontweight="bold", x=0.02, ha="left")
        draw_gains(right.subplots(), results)
        source = "Rendered stand-in data (the miniature)" if train["source"] == "miniature" else "Official data"
        right.supxlabel(
            f"{source}, {seeds} seed{'s' if seeds > 1 else ''}. Same data, start and steps for both models.",
            fontsize=8,
            color=FAINT,
        )
        figure.savefig(out, dpi=100, pil_kwargs={"optimize": True})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
