"""Classification of COCO's ground-truth regions by text: boxes and masks of objects, masks of stuff.

Two kinds of rows: `region_classification` for objects and, with panoptic annotations, `stuff_classification`. The score
is the accuracy of each class, averaged over classes, as in CLIPSelf (Wu et al. 2023).

Predictions kept:  none
Per-image parts:   `regions`, `top1`, `top5` int32 [N, K] for each row: regions of each class, and how many of them have
                   it among the best one and the best five classes
Thumbnails:        boxes with the predicted classes, of the first seed; at most 20 an image
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from cliptex.config import Name, Section
from cliptex.evaluation.probes.base import Measure, imported, lazy
from cliptex.evaluation.probes.detection import DetectionProbe, WholeInput
from cliptex.evaluation.training_free.base import Evaluated, TrainingFreeRun, TrainingFreeTask
from cliptex.evaluation.training_free.text_segmentation import TextTask

if TYPE_CHECKING:
    import torch


class RegionVariant(Section):
    """A way of embedding a region."""

    region: Literal["box", "mask", "crop"]
    """`box`: RoIAlign (He et al. 2017) of the patch tokens, one bin. `mask`: the mean of the patch tokens, weighted by
    the share of each patch that the mask covers. `crop`: the box cut out, resized to the encoder's own input size, and
    embedded as an image."""
    tokens: Literal["last", "value"] = "last"
    """Patch tokens of `box` and `mask`, as in `text_segmentation`."""


class RegionClassificationProtocol(TextTask):
    """Classification of regions by text: accuracy averaged over classes."""

    input: WholeInput = WholeInput()
    """The encoder's input: the whole image."""
    classes: Literal["things", "panoptic"] = "things"
    """`things`: the 80 categories of objects. `panoptic`: regions of stuff, too, and all 133 categories to choose from,
    which needs COCO's panoptic annotations."""
    variants: dict[Name, RegionVariant]
    """The variants by name."""


def _measure(name: str, title: str) -> Measure:
    return Measure(
        name,
        title,
        "mean_top1",
        lazy("metrics.regions:mean_top1"),
        per_class=lazy("metrics.regions:class_accuracies"),
        hub_task="zero-shot-image-classification",
        family="text",
    )


class RegionClassification(TrainingFreeTask):
    """The class of each ground-truth region, by the names of the classes."""

    name = "region_classification"
    section = RegionClassificationProtocol
    needs = DetectionProbe.name
    measures = (_measure(name, "Regions by text"), _measure("stuff_classification", "Stuff by text"))
    reads_text = True

    def evaluate(self, run: TrainingFreeRun) -> Evaluated:
        from cliptex.evaluation.training_free.text_regions import classify_regions

        return classify_regions(run)

    def tower_problem(self, section: Any, visual: torch.nn.Module) -> str | None:
        from cliptex.models.dense_features import text_problem

        needs_tokens = any(variant.region != "crop" for variant in section.variants.values())
        return text_problem(visual) if needs_tokens else None

    drawing = staticmethod(partial(imported, "drawing:RegionDrawing"))
    thumbnail = staticmethod(lazy("thumbnails:unpacked_boxes"))


PLUGIN = RegionClassification
