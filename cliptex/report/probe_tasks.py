"""The evaluation tasks as the report shows them: title, metrics of their own, per-class values, drawing."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from cliptex.evaluation.metrics.base import Arrays
from cliptex.evaluation.metrics.display import Metric, lookup
from cliptex.report.drawing import BoxDrawing, DepthDrawing, Drawing, MaskDrawing, NormalsDrawing


@dataclass(frozen=True)
class ProbeTask:
    """What the report needs to know about a task, by its name in the results.

    dense: counts in the verdict. quantity: named after metrics that do not imply the task (`RMSE of depth`).
    metrics: metrics that differ from `cliptex.evaluation.metrics.display.METRICS`. per_class: statistics of the images -> metric of
    each class over all images, percent [K]. drawing: how images are drawn in the gallery. hub_task: the Hugging Face
    hub's name.
    """

    title: str
    dense: bool = False
    quantity: str = ""
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    per_class: Callable[[Arrays], np.ndarray] | None = None
    drawing: type[Drawing] | None = None
    hub_task: str = "image-feature-extraction"


def class_ious(arrays: Arrays) -> np.ndarray:
    """IoU of each class over all images, percent [K]; NaN for a class without ground truth."""
    hit, truth, predicted = (arrays[name].sum(0, dtype=np.int64) for name in ("hit", "truth", "predicted"))
    return np.where(truth > 0, 100 * hit / np.maximum(truth + predicted - hit, 1), np.nan)


PROBE_TASKS = {
    "semantic_segmentation": ProbeTask(
        "Semantic segmentation",
        dense=True,
        per_class=class_ious,
        drawing=MaskDrawing,
        hub_task="image-segmentation",
    ),
    "instance_segmentation": ProbeTask("Instance segmentation", dense=True, hub_task="image-segmentation"),
    "detection": ProbeTask("Object detection", dense=True, drawing=BoxDrawing, hub_task="object-detection"),
    "depth": ProbeTask("Depth", dense=True, quantity="depth", drawing=DepthDrawing, hub_task="depth-estimation"),
    "normals": ProbeTask(
        "Surface normals",
        dense=True,
        quantity="normals",
        metrics={"rmse": Metric("RMSE", -1, "°")},
        drawing=NormalsDrawing,
    ),
    "classification": ProbeTask("Classification", hub_task="image-classification"),
    "zero_shot_classification": ProbeTask("Zero-shot classification", hub_task="zero-shot-image-classification"),
    "image_to_text_retrieval": ProbeTask("Captions of an image", hub_task="image-to-text"),
    "text_to_image_retrieval": ProbeTask("Image of a caption", hub_task="text-to-image"),
}


def probe_task(name: str) -> ProbeTask:
    """A task by its name; an unknown one keeps its name as title."""
    return PROBE_TASKS.get(name) or ProbeTask(name)


def metric_of(task: str, name: str) -> Metric:
    """A metric of a task by its name in the results."""
    return lookup(name, probe_task(task).metrics)
