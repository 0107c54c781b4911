"""Object detection, and instance segmentation by heads with masks: Mask R-CNN and SSD, COCO's average precision.

Predictions kept:  `truth_` and `prediction_` `boxes_{i}` (xyxy), `labels_{i}`, `masks_{i}` (bool [n, H, W]),
                   `truth_crowd_{i}`, `prediction_scores_{i}`
Per-image parts:   `positives` int32 [N, K]: objects that are not crowds; and one row per detection, by class, then by
                   descending score: `image` int32 (its row in `ids`), `label` int32, `score` float32, `matched` and
                   `ignored` uint16: bit t is for COCO's t-th IoU threshold
Thumbnails:        the 20 boxes of an image with the highest scores
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from cliptex.config import Name, Positive, Rate, Share
from cliptex.core.seeds import seed_of
from cliptex.evaluation.probes.base import Data, Measure, Outcome, ProbeTask, Run, imported, lazy
from cliptex.evaluation.protocols.base import DenseInput, DenseTask, Training

if TYPE_CHECKING:
    from cliptex.evaluation.probes.parts import TruthOf
    from cliptex.models.encoders import Encoder


class WholeInput(DenseInput):
    """The input of tasks whose ground truth cannot be cropped."""

    fit: Literal["squash"] = "squash"
    """The whole image, without keeping its aspect ratio."""


class DetectorTraining(Training):
    """Options of all detectors: a simple feature pyramid built from the encoder's single map (as in ViTDet).

    Boxes are in a virtual frame in which a cell of the encoder's map is 16 pixels wide.
    """

    channels: Positive
    """Channels of the pyramid and of the convolutions on it."""
    strides: Annotated[tuple[Literal[4, 8, 16, 32, 64], ...], Field(min_length=1)]
    """Strides of the pyramid's maps in the frame, from fine to coarse; 16 is that of the encoder's map."""
    detections: Positive
    """Most detections per image; COCO counts up to 100."""
    score_threshold: Annotated[float, Field(ge=0, lt=1)]
    """Detections below this score are dropped."""


class MaskRCNN(DetectorTraining):
    """Mask R-CNN (torchvision's): boxes and masks."""

    kind: Literal["mask_rcnn"]
    """Type of the head."""
    box_units: Positive
    """Units of each of the two layers of the box head."""
    box_grid: Positive
    """Side in cells of a region for the box head."""
    mask_grid: Positive
    """Side in cells of a region for the mask head; the masks have twice as many."""
    mask_layers: Positive
    """3x3 convolutions of the mask head."""
    canonical_px: Positive
    """Regions of this side in the frame are pooled from stride 16, those of half the side from stride 8, and so on."""
    class_agnostic: bool
    """Whether a region has one box and one mask for all classes, for small training sets; false: one per class."""
    anchor_scale: Rate
    """Side of an anchor in strides of its level."""
    proposals: Positive
    """Proposals per image after non-maximum suppression; four times as many before it."""
    anchors: Positive
    """Anchors sampled per image to train the proposals."""
    rois: Positive
    """Regions sampled per image to train the box and mask heads."""


class SSD(DetectorTraining):
    """SSD (torchvision's): default boxes of fixed shapes at each cell, no masks."""

    kind: Literal["ssd"]
    """Type of the head."""
    aspect_ratios: Annotated[tuple[Annotated[float, Field(gt=1)], ...], Field(min_length=1)]
    """Aspect ratios of the default boxes in addition to 1; the inverse of each is used, too."""
    scales: tuple[Rate, Rate]
    """Sides of the default boxes on the finest and on the coarsest map, as fractions of the frame."""
    iou: Share = 0.5
    """Smallest IoU with an object at which a default box is matched to it."""
    negatives: Rate = 3.0
    """Hard negatives per matched box."""
    suppression: Share = 0.45
    """IoU of two detections of a class above which the one with the lower score is dropped."""


DetectionHead = Annotated[MaskRCNN | SSD, Field(discriminator="kind")]


class DetectionProtocol(DenseTask):
    """Detection, and instance segmentation for heads that predict masks: COCO's average precision."""

    input: WholeInput = WholeInput()
    """The encoder's input: the whole image."""
    heads: dict[Name, DetectionHead]
    """The heads by name."""


def _ap(name: str, title: str, hub_task: str) -> Measure:
    return Measure(
        name,
        title,
        "AP",
        lazy("metrics.detection:ap_of_matches"),
        each_image=lazy("metrics.detection:ap_of_each_image"),
        hub_task=hub_task,
    )


class DetectionProbe(ProbeTask):
    """Boxes with class and score, and masks if the head predicts them."""

    name = "detection"
    section = DetectionProtocol
    measures = (
        _ap(name, "Object detection", "object-detection"),
        _ap("instance_segmentation", "Instance segmentation", "image-segmentation"),
    )
    tunable = ("mask_rcnn", "ssd")

    def truth(self, run: Run, encoder: Encoder) -> TruthOf:
        from cliptex.evaluation.probes.heads.detection import training_objects
        from cliptex.evaluation.probes.heads.detectors import frame_of

        size = encoder.input_size(run.protocol.section(self.name).input.size_px)
        frame = frame_of(encoder.map_shape(size)[1:])
        return lambda sample, view: None if view is None else training_objects(sample, frame, view)

    def outcomes(self, run: Run, head: str, data: Data) -> list[Outcome]:
        from cliptex.evaluation.probes.heads.detection import DetectionData, probe_detection

        seed = seed_of(head, run.seed)
        truths = DetectionData.of(run, data.train, data.eval)
        split, options = data.train.split(run.holdout, seed), run.protocol.section(self.name).heads[head]
        return probe_detection(*data.features, truths, options, split, seed)

    tuner = staticmethod(lazy("probes.heads.detection:DetectionTuner"))

    drawing = staticmethod(partial(imported, "drawing:BoxDrawing"))
    thumbnail = staticmethod(lazy("thumbnails:unpacked_boxes"))


PLUGIN = DetectionProbe
