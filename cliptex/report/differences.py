"""The differences between CLIP-FT and CLIPTeX by evaluation image and by class."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cliptex.core.errors import CliptexError, working_on
from cliptex.evaluation.measures import measure, metric_of, shown
from cliptex.evaluation.metrics.base import Arrays
from cliptex.evaluation.per_image import each_image
from cliptex.report import names
from cliptex.report.evaluators import ALPHA
from cliptex.report.gather import PUT_BACK, Results, Scores
from cliptex.report.statistics import holm, signed
from cliptex.report.table import MISSING, Cell, Column, Group, Row, Table, csv_columns
from cliptex.report.tables.cells import PROTOCOL_COLUMNS, fine_notes, protocol_cells

MOST_CLASSES = 3


@dataclass(frozen=True)
class Comparison:
    """A task of a benchmark with one head, image by image.

    values: model -> the main metric of each evaluation image alone [N], mean over seeds; NaN if it is undefined for the
    image. classes: class -> metric of CLIPTeX minus that of CLIP-FT in points, for tasks with a metric by class.
    """

    scores: Scores
    task: str
    head: str
    values: Mapping[str, np.ndarray]
    classes: Mapping[str, float]

    @property
    def metric(self) -> str:
        return measure(self.task).main

    @property
    def metric_title(self) -> str:
        return metric_of(self.task, self.metric).title

    @property
    def title(self) -> str:
        return f"{names.benchmark(self.scores.benchmark, self.scores.source)}: {names.task(self.task).lower()}"

    @property
    def differences(self) -> np.ndarray | None:
        """CLIPTeX minus CLIP-FT for each image [N], signed so that positive is better; None if a model is missing."""
        if names.SUBJECT not in self.values or names.REFERENCE not in self.values:
            return None
        return metric_of(self.task, self.metric).better * (self.values[names.SUBJECT] - self.values[names.REFERENCE])

    def extremes(self, most: int) -> tuple[list[int], list[int]]:
        """Up to `most` images where CLIPTeX is better and where it is worse, the largest difference first."""
        if self.differences is None:
            return [], []
        known = np.nan_to_num(self.differences)
        helped = [int(index) for index in np.argsort(-known, kind="stable")[:most] if known[index] > 0]
        hurt = [int(index) for index in np.argsort(known, kind="stable")[:most] if known[index] < 0]
        return helped, hurt


def compare(results: Results) -> list[Comparison]:
    """A comparison for each task of each benchmark, with the heaviest of the usual heads, and for zero-shot tasks."""
    models = [model for model in results.models if model in names.MODELS] or results.models
    out = []
    for scores in (*results.probes.values(), *results.zeroshot.values(), *results.training_free.values()):
        heads: dict[str, list[str]] = {}
        for task, head in scores.cells():
            heads.setdefault(task, []).append(head)
        for task, choices in heads.items():
            usual = [head for head in choices if head in names.HEAD_ORDER]
            head = usual[-1] if usual else choices[0]
            images = {model: seeds for model, seeds in scores.images(task, head).items() if model in models}
            with working_on(f"{scores.path}, {task}, {head}"):
                values = {
                    model: np.mean([each_image(task, one) for one in seeds], axis=0) for model, seeds in images.items()
                }
                if values:
                    out.append(Comparison(scores, task, head, values, _class_differences(scores, task, images)))
    return out


def _class_differences(scores: Scores, task: str, images: Mapping[str, Sequence[Arrays]]) -> dict[str, float]:
    per_class = shown(task).per_class
    if per_class is None or names.SUBJECT not in images or names.REFERENCE not in images:
        return {}
    subject, reference = (
        np.mean([per_class(arrays) for arrays in images[model]], axis=0) for model in (names.SUBJECT, names.REFERENCE)
    )
    if len(scores.class_names) != len(subject):
        counts = f"{len(scores.class_names)} class_names, and per-image parts of {len(subject)} classes"
        raise CliptexError(f"{scores.path}: {task} has {counts}; {PUT_BACK}, or evaluate it again")
    points = dict(zip(scores.class_names, (subject - reference).tolist(), strict=True))
    return {name: value for name, value in points.items() if np.isfinite(value)}


def differences_table(results: Results, comparisons: Sequence[Comparison]) -> Table | None:
    """Images on which CLIPTeX is better and worse, and classes that gain and lose most; None without both models."""
    compared = [comparison for comparison in comparisons if comparison.differences is not None]
    if not compared:
        return None
    counts = [_counts(comparison.differences) for comparison in compared]
    adjusted = holm([sign_test(count["better"], count["worse"]) for count in counts])
    rows = [_row(results, *row) for row in zip(compared, counts, adjusted, strict=True)]
    columns = [Column("task", "Benchmark", numeric=False)]
    columns += [Column(heading.lower(), heading) for heading in ("Better", "Worse", "Same")]
    columns += [Column(key, f"Classes that {key} most", numeric=False) for key in ("gain", "lose")]
    columns += csv_columns(["head", *PROTOCOL_COLUMNS])
    means = " Metrics are means over seeds." if len(results.config.seeds) > 1 else ""
    return Table(
        "differences",
        "CLIPTeX against CLIP-FT, image by image",
        columns,
        [Group(rows)],
        [
            "Better, worse, same: share of the evaluation images, each evaluated alone (in the CSV their number). "
            f"Bold: a sign test of better against worse has p of at most {ALPHA:g} after Holm’s correction for the "
            f"rows. Classes: points of IoU over all images.{means}"
        ],
        fine=fine_notes(results, {one.scores.path: one.scores for one in comparisons}.values()),
    )


def _counts(differences: np.ndarray) -> dict[str, int]:
    return {
        "better": int((differences > 0).sum()),
        "worse": int((differences < 0).sum()),
        "same": int((differences == 0).sum()),
    }


def sign_test(better: int, worse: int) -> float:
    """Two-sided p-value, 0..1, of as many images being better as worse."""
    from scipy.stats import binomtest

    return float(binomtest(better, better + worse).pvalue) if better + worse else 1.0


def _row(results: Results, comparison: Comparison, counts: Mapping[str, int], p: float) -> Row:
    total = max(sum(counts.values()), 1)
    shares = {key: Cell(f"{100 * count / total:.0f} %", count) for key, count in counts.items()}
    if p <= ALPHA:
        more = "worse" if counts["worse"] > counts["better"] else "better"
        shares[more] = replace(shares[more], best=True)
    ranked = sorted(comparison.classes.items(), key=lambda item: -item[1])
    gained = [f"{name} {signed(points)}" for name, points in ranked[:MOST_CLASSES] if points > 0]
    lost = [f"{name} {signed(points)}" for name, points in ranked[::-1][:MOST_CLASSES] if points < 0]
    head = names.head(comparison.head)
    return {
        "task": Cell(comparison.title, note=f"{head}, {comparison.metric_title} of each image"),
        **shares,
        "gain": Cell(", ".join(gained) or MISSING),
        "lose": Cell(", ".join(lost) or MISSING),
        "head": Cell(head),
        **protocol_cells(results, comparison.scores, comparison.task, comparison.head, comparison.metric),
    }
