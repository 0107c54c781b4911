"""Where CLIP-FT and CLIPTeX differ: on which evaluation images, and in which classes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cliptex.evaluation.per_image import MAIN_METRIC, Arrays, each_image
from cliptex.report import names
from cliptex.report.gather import Results, Scores
from cliptex.report.statistics import direction, signed
from cliptex.report.table import MISSING, Cell, Group, Table
from cliptex.report.tables.cells import ABOUT_COLUMNS, about_cells, fine_notes

MOST_CLASSES = 3


@dataclass(frozen=True)
class Comparison:
    """A task of a benchmark with one head, image by image.

    values: model -> the main metric of each evaluation image by itself [N], mean over seeds; NaN where an image has
    nothing to judge. classes: class -> IoU of CLIPTeX minus that of CLIP-FT in points, of semantic segmentation.
    """

    scores: Scores
    task: str
    head: str
    values: Mapping[str, np.ndarray]
    classes: Mapping[str, float]

    @property
    def metric(self) -> str:
        """The main metric."""
        return MAIN_METRIC[self.task]

    @property
    def title(self) -> str:
        """`NYUv2: depth`."""
        return f"{names.benchmark(self.scores.benchmark)}: {names.task(self.task).lower()}"

    @property
    def differences(self) -> np.ndarray | None:
        """CLIPTeX minus CLIP-FT of each image [N], signed so that positive is better; None where one is missing."""
        if names.SUBJECT not in self.values or names.REFERENCE not in self.values:
            return None
        return direction(self.metric) * (self.values[names.SUBJECT] - self.values[names.REFERENCE])

    def extremes(self, most: int) -> tuple[list[int], list[int]]:
        """The images where CLIPTeX helps most, and those where it hurts most, the largest difference first."""
        found = self.differences
        if found is None:
            return [], []
        known = np.nan_to_num(found)
        helped = [int(index) for index in np.argsort(-known, kind="stable")[:most] if known[index] > 0]
        hurt = [int(index) for index in np.argsort(known, kind="stable")[:most] if known[index] < 0]
        return helped, hurt


def compare(results: Results) -> list[Comparison]:
    """One of each task of each benchmark, with the heaviest of its usual heads, and of each zero-shot task."""
    models = [model for model in results.models if model in names.MODELS] or results.models
    out = []
    for scores in (*results.probes.values(), *results.zeroshot.values()):
        heads: dict[str, list[str]] = {}
        for task, head in scores.cells():
            heads.setdefault(task, []).append(head)
        for task, choices in heads.items():
            known = [head for head in choices if head in names.HEAD_ORDER]
            head = known[-1] if known else choices[0]
            images = {model: seeds for model, seeds in scores.images(task, head).items() if model in models}
            values = {
                model: np.mean([each_image(task, one) for one in seeds], axis=0) for model, seeds in images.items()
            }
            if values:
                out.append(Comparison(scores, task, head, values, _class_differences(scores, task, images)))
    return out


def _class_differences(scores: Scores, task: str, images: Mapping[str, Sequence[Arrays]]) -> dict[str, float]:
    if task != "semantic_segmentation" or names.SUBJECT not in images or names.REFERENCE not in images:
        return {}
    subject, reference = (
        np.mean([_class_ious(one) for one in images[model]], axis=0) for model in (names.SUBJECT, names.REFERENCE)
    )
    return {
        name: float(points)
        for name, points in zip(scores.class_names, subject - reference, strict=True)
        if np.isfinite(points)
    }


def _class_ious(arrays: Arrays) -> np.ndarray:
    """Percent [K] over all images; NaN for a class that the truth does not have."""
    hit, truth, predicted = (arrays[name].sum(0, dtype=np.int64) for name in ("hit", "truth", "predicted"))
    return np.where(truth > 0, 100 * hit / np.maximum(truth + predicted - hit, 1), np.nan)


def differences_table(results: Results, comparisons: Sequence[Comparison]) -> Table | None:
    """On how many images CLIPTeX is better and worse, and the classes that gain and lose most; None without both."""
    rows = []
    for one in comparisons:
        if (found := one.differences) is None:
            continue
        known = found[np.isfinite(found)]
        counts = [int((known > 0).sum()), int((known < 0).sum()), int((known == 0).sum())]
        shares = [Cell(f"{100 * count / max(len(known), 1):.0f} %", count) for count in counts]
        if shares[0].text != shares[1].text:  # what reads the same is not called more
            more = int(counts[1] > counts[0])
            shares[more] = replace(shares[more], best=True)
        ranked = sorted(one.classes.items(), key=lambda item: -item[1])
        gained = [f"{name} {signed(points)}" for name, points in ranked[:MOST_CLASSES] if points > 0]
        lost = [f"{name} {signed(points)}" for name, points in ranked[::-1][:MOST_CLASSES] if points < 0]
        words = [Cell(", ".join(some) or MISSING) for some in (gained, lost)]
        about = f"{names.head(one.head)}, {names.metric(one.metric)} of each image"
        how = about_cells(results, one.scores, one.task, one.head, one.metric)
        rows.append([Cell(one.title, note=about), *shares, *words, Cell(names.head(one.head)), *how])
    if not rows:
        return None
    columns = ["Benchmark", "Better", "Worse", "Same", "Classes that gain most", "Classes that lose most"]
    more = ["head", *ABOUT_COLUMNS]
    several = " Metrics are means over seeds." if len(results.config.seeds) > 1 else ""
    return Table(
        "differences",
        "CLIPTeX against CLIP-FT, image by image",
        [*columns, *more],
        [Group(rows)],
        frozenset({1, 2, 3}),
        [
            "Better, worse, same: share of the evaluation images, each judged by itself; in the CSV their number. "
            f"Classes: points of IoU over all images.{several}"
        ],
        fine=fine_notes(results, {one.scores.path: one.scores for one in comparisons}.values()),
        csv_only=len(more),
    )
