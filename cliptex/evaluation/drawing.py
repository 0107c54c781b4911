"""How predictions and ground truth are drawn in an album: masks, boxes, depth, normals.

A prediction has the form of `ProbeTask.thumbnail`; a sample is one of a benchmark's.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cliptex.evaluation.images import (
    ClassColours,
    LegendEntry,
    class_counts,
    depth_legend,
    depth_pixels,
    normals_legend,
    normals_pixels,
    with_boxes,
)
from cliptex.evaluation.thumbnails import MASK_SIDE_PX, shrunk

Labels = Mapping[str, np.ndarray]
Sample = Mapping[str, Any]


class Drawing(ABC):
    """The drawing of one task's labels in one album. note: explanation under the album's title.

    content: the beginning of an alt text, before the image's id. lists_contents: whether `contents` stand below the
    image, too.
    """

    note: str
    content: str
    lists_contents = False

    def __init__(self, class_names: Sequence[str], images: Sequence[tuple[Sample, Sequence[Labels]]]):
        """images: every sample of the album with its predictions."""
        self.class_names = class_names

    @abstractmethod
    def truth(self, sample: Sample) -> Labels:
        """The ground truth of a sample in the form of a prediction."""

    def visible(self, sample: Sample, prediction: Labels) -> Labels:
        """The part of a prediction that is drawn."""
        return prediction

    @abstractmethod
    def pixels(self, sample: Sample, labels: Labels) -> tuple[np.ndarray, str]:
        """uint8 [H, W, 3] and its kind (`cliptex.evaluation.images.data_uri`)."""

    @abstractmethod
    def legend(self, sample: Sample, shown: Sequence[Labels]) -> list[LegendEntry]:
        """The legend below the ground truth and the predictions of a sample."""

    def contents(self, labels: Labels) -> list[str]:
        """What is drawn, in words, for the alt text."""
        return []


class _ClassDrawing(Drawing):
    """One colour a class in the whole album."""

    def __init__(self, class_names: Sequence[str], images: Sequence[tuple[Sample, Sequence[Labels]]]):
        super().__init__(class_names, images)
        shown = [
            labels
            for sample, predictions in images
            for labels in (self.truth(sample), *(self.visible(sample, prediction) for prediction in predictions))
        ]
        self.colours = ClassColours(class_names, class_counts(map(self.codes, shown)))

    @abstractmethod
    def codes(self, labels: Labels) -> np.ndarray:
        """Class numbers of what is drawn."""

    def legend(self, sample: Sample, shown: Sequence[Labels]) -> list[LegendEntry]:
        return self.colours.legend(map(self.codes, shown))


class MaskDrawing(_ClassDrawing):
    """Class masks."""

    note = "Each class has the same colour in the whole album."
    content = "classes in"

    def truth(self, sample: Sample) -> Labels:
        return {"mask": shrunk(sample["mask"], MASK_SIDE_PX)}

    def codes(self, labels: Labels) -> np.ndarray:
        return labels["mask"]

    def pixels(self, sample: Sample, labels: Labels) -> tuple[np.ndarray, str]:
        return self.colours.rgb[labels["mask"]], "flat"

    def contents(self, labels: Labels) -> list[str]:
        return [self.class_names[code] for code in np.unique(labels["mask"]) if code < len(self.class_names)]


class BoxDrawing(_ClassDrawing):
    """Bounding boxes, of each model as many as there are objects: weak detectors score below any fixed threshold."""

    note = (
        "For each model the boxes with the highest scores, as many as there are objects in the image (at least one), "
        "with class and score. AP ranks the boxes of each class separately and also counts those not drawn. Each class "
        "has the same colour in the whole album."
    )
    content = "boxes in"
    lists_contents = True

    def truth(self, sample: Sample) -> Labels:
        return {name: sample[name] for name in ("boxes", "labels")}

    def visible(self, sample: Sample, prediction: Labels) -> Labels:
        num_objects = max(1, int((~sample["crowd"]).sum()))
        return {name: values[:num_objects] for name, values in prediction.items()}

    def codes(self, labels: Labels) -> np.ndarray:
        return labels["labels"].astype(int)

    def pixels(self, sample: Sample, labels: Labels) -> tuple[np.ndarray, str]:
        return with_boxes(sample["image"], labels["boxes"], self.colours.rgb[self.codes(labels)]), "photo"

    def contents(self, labels: Labels) -> list[str]:
        classes = [self.class_names[int(code)] for code in labels["labels"]]
        if "scores" not in labels:
            return classes
        return [f"{name} {score:.2f}" for name, score in zip(classes, labels["scores"], strict=True)]


class _MapDrawing(Drawing):
    """Dense maps. quantity: their name in samples and predictions."""

    quantity: str

    def truth(self, sample: Sample) -> Labels:
        return {self.quantity: sample[self.quantity]}


class DepthDrawing(_MapDrawing):
    """Depth maps; all of an image share one range."""

    quantity = "depth"
    note = "All depth maps of an image share one range, the 1st to the 99th percentile of its ground truth."
    content = "depth of"

    def pixels(self, sample: Sample, labels: Labels) -> tuple[np.ndarray, str]:
        return depth_pixels(labels["depth"], *_depth_range(sample)), "smooth"

    def legend(self, sample: Sample, shown: Sequence[Labels]) -> list[LegendEntry]:
        return depth_legend(*_depth_range(sample))


def _depth_range(sample: Sample) -> tuple[float, float]:
    known = sample["depth"][np.isfinite(sample["depth"])]
    return tuple(np.percentile(known, [1, 99]).tolist()) if known.size else (0.0, 1.0)


class NormalsDrawing(_MapDrawing):
    """Surface normals."""

    quantity = "normals"
    note = "Red, green, blue: the surface faces right, up, the viewer."
    content = "normals of"

    def pixels(self, sample: Sample, labels: Labels) -> tuple[np.ndarray, str]:
        return normals_pixels(labels["normals"]), "smooth"

    def legend(self, sample: Sample, shown: Sequence[Labels]) -> list[LegendEntry]:
        return normals_legend()
