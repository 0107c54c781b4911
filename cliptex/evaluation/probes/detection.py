"""Object detection, and instance segmentation by heads with masks: Mask R-CNN and SSD, COCO's average precision.

Predictions kept:  `truth_` and `prediction_` `boxes_{i}` (xyxy), `labels_{i}`, `masks_{i}` (bool [n, H, W]), `truth_crowd_{i}`,
                   `prediction_scores_{i}`
Per-image parts:   `positives` int32 [N, K]: objects that are no crowds; and a row per detection, by class, then from the highest
                   score to the lowest: `image` int32 (its row in `ids`), `label` int32, `score` float32, `matched` and `ignored`
                   uint16: bit t is for COCO's t-th IoU threshold
Thumbnails:        the 20 boxes of an image with the highest scores
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from cliptex.config import Name, Positive, Rate, Share
from cliptex.core.seeds import seed_of
from cliptex.evaluation.probes.base import Data, Measure, Outcome, ProbeTask, Run
from cliptex.evaluation.protocols.base import DenseInput, DenseTask, Training

if TYPE_CHECKING:
    import numpy as np

    from cliptex.config import FineTuning
    from cliptex.evaluation.drawing import Drawing
    from cliptex.evaluation.metrics.base import Arrays
    from cliptex.evaluation.probes.parts import TruthOf
    from cliptex.evaluation.probes.tuning import Tuned, Tuner
    from cliptex.models.encoders import Encoder


class WholeInput(DenseInput):
    """The input of tasks whose truth may not be cut."""

    fit: Literal["squash"] = "squash"
    """The whole image, its ratio not kept."""


class DetectorTraining(Training):
    """What detectors share: a simple feature pyramid, made from the one map of the encoder (as in ViTDet).

    Boxes live in a frame in which a cell of the encoder's map is 16 pixels wide.
    """

    channels: Positive
    """Channels of the pyramid and of the convolutions on it."""
    strides: Annotated[tuple[Literal[4, 8, 16, 32, 64], ...], Field(min_length=1)]
    """Strides of the pyramid's maps in that frame, from fine to coarse; 16 is the encoder's own."""
    detections: Positive
    """Detections an image that are kept; COCO counts up to 100."""
    score_threshold: Annotated[float, Field(ge=0, lt=1)]
    """Detections below this score are dropped."""


class MaskRCNN(DetectorTraining):
    """Mask R-CNN (torchvision's): boxes and masks."""

    kind: Literal["mask_rcnn"]
    """Which head it is."""
    box_units: Positive
    """Units of the two layers of the box head."""
    box_grid: Positive
    """Cells of a region's side for the box head."""
    mask_grid: Positive
    """Cells of a region's side for the mask head, whose masks have twice as many."""
    mask_layers: Positive
    """3x3 convolutions of the mask head."""
    canonical_px: Positive
    """Regions of this side, in the frame, are read from stride 16; of half the side from stride 8, and so on."""
    class_agnostic: bool
    """One box and one mask a region, whatever its class, as small training sets need; false is one a class."""
    anchor_scale: Rate
    """Anchor side in strides of its level."""
    proposals: Positive
    """Proposals an image after suppression; four times as many before."""
    anchors: Positive
    """Anchors an image on which the proposals are trained."""
    rois: Positive
    """Regions an image on which box and mask heads are trained."""


class SSD(DetectorTraining):
    """SSD (torchvision's): boxes of fixed default shapes at each cell, no masks."""

    kind: Literal["ssd"]
    """Which head it is."""
    aspect_ratios: Annotated[tuple[Annotated[float, Field(gt=1)], ...], Field(min_length=1)]
    """Ratios of the default boxes beside 1, each also upright."""
    scales: tuple[Rate, Rate]
    """Sides of the default boxes on the finest and on the coarsest map, as shares of the frame."""
    iou: Share = 0.5
    """Overlap from which a default box is taken for an object."""
    negatives: Rate = 3.0
    """Hard negatives for each box that is taken for an object."""
    suppression: Share = 0.45
    """Overlap of two detections of a class above which the weaker is dropped."""


DetectionHead = Annotated[MaskRCNN | SSD, Field(discriminator="kind")]


class DetectionProtocol(DenseTask):
    """Detection, and instance segmentation by the heads that have masks: COCO's average precision."""

    input: WholeInput = WholeInput()
    """What of an image the encoder sees: all of it."""
    heads: dict[Name, DetectionHead]
    """The heads by name."""


def _average_precision(arrays: Arrays, weights: np.ndarray) -> np.ndarray:
    from cliptex.evaluation.metrics.detection import ap_of_matches

    return ap_of_matches(arrays, weights)


def _average_precision_of_each(arrays: Arrays) -> np.ndarray:
    from cliptex.evaluation.metrics.detection import ap_of_each_image

    return ap_of_each_image(arrays)


def _ap(name: str, title: str, hub_task: str) -> Measure:
    return Measure(
        name, title, "AP", _average_precision, each_image=_average_precision_of_each, dense=True, hub_task=hub_task
    )


class DetectionProbe(ProbeTask):
    """Boxes with class and score; masks as well where the head predicts them."""

    name = "detection"
    section = DetectionProtocol
    measures = (
        _ap(name, "Object detection", "object-detection"),
        _ap("instance_segmentation", "Instance segmentation", "image-segmentation"),
    )
    tunable = ("mask_rcnn", "ssd")

    def truth(self, run: Run, encoder: Encoder) -> TruthOf:
        from cliptex.evaluation.probes.heads.detection import training_objects
        from cliptex.evaluation.probes.heads.pyramid import frame_of

        size = encoder.input_size(run.protocol.section(self.name).input.size_px)
        frame = frame_of(encoder.map_shape(size)[1:])
        return lambda sample, view: None if view is None else training_objects(sample, frame, view)

    def outcomes(self, run: Run, head: str, data: Data) -> list[Outcome]:
        from cliptex.evaluation.probes.heads.detection import DetectionData, probe_detection

        seed = seed_of(head, run.seed)
        truths = DetectionData.of(run, data.train, data.eval)
        split, options = data.train.split(run.holdout, seed), run.protocol.section(self.name).heads[head]
        return probe_detection(data.train_features, data.eval_features, truths, options, split, seed)

    def tuner(
        self, run: Run, head: str, tuned: Tuned, split: tuple[np.ndarray, np.ndarray], seed: int, options: FineTuning
    ) -> Tuner:
        from cliptex.evaluation.probes.heads.detection import DetectionTuner

        return DetectionTuner(run, head, tuned, split, seed, options)

    def drawing(self) -> type[Drawing]:
        from cliptex.evaluation.drawing import BoxDrawing

        return BoxDrawing

    def thumbnail(self, arrays: Mapping[str, np.ndarray], index: int) -> dict[str, np.ndarray]:
        from cliptex.evaluation.thumbnails import unpacked_boxes

        return unpacked_boxes(arrays, index)


PLUGIN = DetectionProbe
