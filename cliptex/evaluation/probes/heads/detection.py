"""Heads for detection and instance segmentation on dense features: Mask R-CNN and SSD, with COCO's average precision.

Shapes: V views, C feature width, h x w feature map.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval import mask as rle
from torch import nn
from torchvision.models.detection.roi_heads import paste_masks_in_image

from cliptex.evaluation.metrics.base import Arrays
from cliptex.evaluation.metrics.detection import detection_statistics
from cliptex.evaluation.probes.base import Outcome, Run
from cliptex.evaluation.probes.detection import DetectionHead
from cliptex.evaluation.probes.features import Split, batches_on, ranges, take
from cliptex.evaluation.probes.heads.detectors import Frame, MaskRCNNDetector, SSDDetector, frame_of
from cliptex.evaluation.probes.heads.maps import Maps
from cliptex.evaluation.probes.parts import Part
from cliptex.evaluation.probes.training import Candidate, best_candidate, finite, train_network
from cliptex.evaluation.probes.tuning import TUNED, Tuned, Tuner
from cliptex.evaluation.probes.views import ImageView, crop_truth
from cliptex.evaluation.thumbnails import box_thumbnails

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
PROTOCOL = {
    "mask_rcnn": "simple feature pyramid and Mask R-CNN; boxes and masks in the original image; COCO AP",
    "ssd": "simple feature pyramid and SSD; boxes in the original image; COCO AP",
}
RunLengths = dict[str, Any]
"""A mask as COCO's compressed run-length encoding: `size` [height, width] and `counts`."""


@dataclass(frozen=True)
class Objects:
    """The training objects of one view in the virtual frame [height, width].
    boxes: float32 [n, 4] xyxy. labels: int64 [n], from 1. masks: n."""

    frame: Frame
    boxes: torch.Tensor
    labels: torch.Tensor
    masks: list[RunLengths]

    def target(self) -> dict[str, torch.Tensor]:
        """The target for torchvision: `boxes` [n, 4], `labels` [n], `masks` uint8 [n, height, width]."""
        masks = np.zeros((0, *self.frame), np.uint8)
        if self.masks:
            masks = np.ascontiguousarray(rle.decode(self.masks).transpose(2, 0, 1))
        return {"boxes": self.boxes, "labels": self.labels, "masks": torch.from_numpy(masks)}


def training_objects(sample: dict[str, Any], frame: Frame, view: ImageView) -> Objects:
    """A sample's objects in a view, in the virtual frame. Crowds and boxes outside the view are left out."""
    scale = np.array([frame[1] / view.width, frame[0] / view.height] * 2, np.float32)
    boxes = (sample["boxes"] - np.array([view.left, view.top] * 2, np.float32)) * scale
    if view.flip:
        boxes[:, [0, 2]] = frame[1] - boxes[:, [2, 0]]
    boxes = boxes.clip(0, np.array([frame[1], frame[0]] * 2, np.float32))
    used = ~sample["crowd"] & (boxes[:, 2] > boxes[:, 0] + 0.1) & (boxes[:, 3] > boxes[:, 1] + 0.1)
    masks = [crop_truth(mask, view, frame, False) for mask in sample["masks"][used]]
    labels = torch.from_numpy(sample["labels"][used] + 1)
    return Objects(frame, torch.from_numpy(boxes[used]), labels, _encoded(np.array(masks)) if masks else [])


@dataclass(frozen=True)
class DetectionData:
    """Ground truth of both parts.

    train_objects: of each training view. annotations: content of a COCO file for evaluation. eval_ids, eval_shapes: id
    in that file and (height, width) of each evaluation image. kept_truths: the samples whose predictions are kept.
    """

    train_objects: Sequence[Objects]
    annotations: dict[str, Any]
    eval_ids: Sequence[int]
    eval_shapes: Sequence[tuple[int, int]]
    kept_truths: Sequence[dict[str, np.ndarray]]

    @classmethod
    def of(cls, run: Run, train: Part, evaluated: Part) -> Self:
        """The sample ids of the evaluation images must be those of the COCO file."""
        ids = [int(name) for name in evaluated.ids]
        return cls(train.truths["detection"], run.benchmark.annotations("eval"), ids, evaluated.shapes, run.kept)

    @property
    def num_classes(self) -> int:
        return len(self.annotations["categories"])


def build_detector(channels_in: int, num_classes: int, options: DetectionHead) -> nn.Module:
    """A network from maps [B, C, h, w] to detections in the frame, or, in training mode with targets, to losses."""
    detector = SSDDetector if options.kind == "ssd" else MaskRCNNDetector
    return detector(channels_in, num_classes, options)


def train_detector(
    features_VChw: Maps,
    objects: Sequence[Objects],
    num_classes: int,
    options: DetectionHead,
    candidate: Candidate,
    seed: int,
) -> nn.Module:
    """Train one detector; see `train_network`."""

    def build() -> nn.Module:
        return build_detector(features_VChw.shape[1], num_classes, options)

    def loss(
        detector: nn.Module, features: torch.Tensor, batch: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor:
        return detector_loss(detector, features, [objects[index] for index in batch.tolist()])

    return train_network(build, loss, features_VChw, options, candidate, seed)


def detector_loss(detector: nn.Module, features_BChw: torch.Tensor, objects: Sequence[Objects]) -> torch.Tensor:
    """The sum of the losses of a detector in training mode."""
    device = features_BChw.device
    targets = [{name: value.to(device) for name, value in view.target().items()} for view in objects]
    return sum(detector(features_BChw, targets).values())


@torch.inference_mode()
def detect(detector: nn.Module, features_NChw: Maps, shapes: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
    """Detections of each image, in pixels of its (height, width): `boxes` float32 [n, 4] xyxy, `labels` [n] from 0,
    `scores` [n] and, if the detector predicts masks, `masks`, n `RunLengths`."""
    device = next(detector.parameters()).device
    frame = frame_of(features_NChw.shape[2:])
    results = []
    parts = ranges(len(shapes), 32)
    for part, features in zip(parts, batches_on(features_NChw, parts, device), strict=True):
        for detected, (height, width) in zip(detector(features), shapes[part], strict=True):
            scale = torch.tensor([width / frame[1], height / frame[0]] * 2)
            boxes = detected["boxes"].cpu() * scale
            for name, values in (("boxes", boxes), ("scores", detected["scores"])):
                finite(values, f"{name} of image number {len(results) + 1} of the split")
            result: dict[str, Any] = {
                "boxes": boxes.numpy(),
                "labels": detected["labels"].cpu().numpy() - 1,
                "scores": detected["scores"].cpu().numpy(),
            }
            if "masks" in detected:
                # encoded immediately: a hundred masks of a photograph take 30 MB
                masks = paste_masks_in_image(detected["masks"].cpu(), boxes, (height, width))[:, 0] > 0.5
                result["masks"] = _encoded(masks.numpy())
            results.append(result)
    return results


def _encoded(masks_nHW: np.ndarray | Sequence[RunLengths]) -> Sequence[RunLengths]:
    if not isinstance(masks_nHW, np.ndarray):
        return masks_nHW
    return rle.encode(np.asfortranarray(masks_nHW.transpose(1, 2, 0).astype(np.uint8))) if len(masks_nHW) else []


def _decoded(masks: Sequence[RunLengths], shape: tuple[int, int]) -> np.ndarray:
    """bool [n, H, W]."""
    return rle.decode(masks).transpose(2, 0, 1).astype(bool) if len(masks) else np.zeros((0, *shape), bool)


def evaluate_detections(
    annotations: dict[str, Any], ids: Sequence[int], detections: Sequence[dict[str, Any]], kind: str
) -> tuple[dict[str, float | None], Arrays]:
    """COCO's AP AP50 AP75 APs APm APl in percent, None if there is no object of that size; and the per-image parts.

    annotations: content of a COCO file. ids: the image of each item of `detections` (as from `detect`; masks may also
    be bool [n, H, W]). kind: "bbox" or "segm".
    """
    categories = sorted(category["id"] for category in annotations["categories"])
    rows = []
    for image, detected in zip(ids, detections, strict=True):
        if kind == "segm":
            encoded = _encoded(detected["masks"])
        items = zip(detected["boxes"], detected["labels"], detected["scores"], strict=True)
        for index, (box, label, score) in enumerate(items):
            row = {"image_id": image, "category_id": categories[label], "score": float(score)}
            if kind == "bbox":
                row["bbox"] = [*box[:2].tolist(), *(box[2:] - box[:2]).tolist()]
            else:
                # without a box, so that the evaluator uses the areas of the masks
                row["segmentation"] = encoded[index]
            rows.append(row)
    if not rows:
        # without detections, the evaluator returns -1 or 0 depending on its version
        images = set(ids)
        objects = [
            item for item in annotations["annotations"] if item["image_id"] in images and not item.get("iscrowd")
        ]
        sizes = COCOeval_faster(iouType=kind).params.areaRng  # all, small, medium, large, with both bounds
        present = [any(least <= item["area"] <= most for item in objects) for least, most in sizes]
        by_metric = zip(METRICS, [*present[:1] * 3, *present[1:]], strict=True)
        metrics = {name: 0.0 if exists else None for name, exists in by_metric}
        return metrics, detection_statistics(annotations, ids, detections, {})
    # a copy, because the evaluator replaces the segmentations with its own encoding
    truth = COCO(copy.deepcopy(annotations))
    evaluation = COCOeval_faster(truth, truth.loadRes(rows), kind)
    evaluation.params.imgIds = list(ids)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    values = [float(value) for value in evaluation.stats[:6]]
    metrics = {name: 100 * value if value >= 0 else None for name, value in zip(METRICS, values, strict=True)}
    return metrics, detection_statistics(annotations, ids, detections, evaluation.ious, evaluation.params.maxDets[-1])


def holdout_annotations(objects: Sequence[Objects], num_classes: int) -> dict[str, Any]:
    """Boxes of held-out training views, in the virtual frame, as the content of a COCO file."""
    rows = []
    for image, view in enumerate(objects):
        for box, label in zip(view.boxes.tolist(), view.labels.tolist(), strict=True):
            width, height = box[2] - box[0], box[3] - box[1]
            row = {"id": len(rows) + 1, "image_id": image, "category_id": label, "iscrowd": 0}
            rows.append({**row, "bbox": [*box[:2], width, height], "area": width * height})
    return {
        "images": [
            {"id": image, "height": view.frame[0], "width": view.frame[1]} for image, view in enumerate(objects)
        ],
        "annotations": rows,
        "categories": [{"id": label, "name": str(label)} for label in range(1, num_classes + 1)],
    }


def holdout_score(detector: nn.Module, features_VChw: Maps, objects: Sequence[Objects], num_classes: int) -> float:
    """AP of boxes on held-out training views, in percent; 0 if they have no objects."""
    detections = detect(detector, features_VChw, [view.frame for view in objects])
    metrics, _ = evaluate_detections(holdout_annotations(objects, num_classes), range(len(objects)), detections, "bbox")
    return metrics["AP"] or 0.0


def probe_detection(
    train_VChw: Maps, eval_NChw: Maps, data: DetectionData, options: DetectionHead, split: Split, seed: int
) -> list[Outcome]:
    """Train a detector and evaluate its boxes, and its masks if it predicts them."""
    fit, held = split

    def score(candidate: Candidate) -> float:
        fit_objects, held_objects = ([data.train_objects[index] for index in part] for part in split)
        detector = train_detector(take(train_VChw, fit), fit_objects, data.num_classes, options, candidate, seed)
        return holdout_score(detector, take(train_VChw, held), held_objects, data.num_classes)

    best, scores = best_candidate(options, score)
    detector = train_detector(train_VChw, data.train_objects, data.num_classes, options, best, seed)
    hyperparameters = {**best._asdict(), "holdout_AP": scores}
    return detection_outcomes(detector, eval_NChw, data, hyperparameters, PROTOCOL[options.kind])


def detection_outcomes(
    detector: nn.Module, eval_NChw: Maps, data: DetectionData, hyperparameters: dict[str, Any], protocol: str
) -> list[Outcome]:
    """Evaluate the boxes of a trained detector, and its masks if it predicts them."""
    detections = detect(detector, eval_NChw, data.eval_shapes)
    has_masks = isinstance(detector, MaskRCNNDetector)
    saved = {}
    for index, truth in enumerate(data.kept_truths):
        for name in ("boxes", "labels", "scores"):
            saved[f"prediction_{name}_{index}"] = detections[index][name]
        if has_masks:
            saved[f"prediction_masks_{index}"] = _decoded(detections[index]["masks"], data.eval_shapes[index])
        for name in ("boxes", "labels", "masks", "crowd"):
            saved[f"truth_{name}_{index}"] = truth[name]
    outcomes = []
    for task, kind in (("detection", "bbox"), ("instance_segmentation", "segm"))[: 1 + has_masks]:
        metrics, per_image = evaluate_detections(data.annotations, data.eval_ids, detections, kind)
        thumbnails = box_thumbnails(detections) if kind == "bbox" else {}
        num_parameters = sum(parameter.numel() for parameter in detector.parameters())
        outcomes.append(Outcome(task, metrics, num_parameters, hyperparameters, protocol, saved, per_image, thumbnails))
    return outcomes


class DetectionTuner(Tuner):
    """A detector, from its initial weights."""

    task = "detection"

    def prepare(self, run: Run, tuned: Tuned, split: Split) -> None:
        self.data = DetectionData.of(run, *tuned.parts)
        self.channels = tuned.train.shape[1]

    def start(self) -> nn.Module:
        torch.manual_seed(self.seed)
        return build_detector(self.channels, self.data.num_classes, self.options).to(self.device)

    def loss(
        self, head: nn.Module, features: torch.Tensor, batch: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor:
        return detector_loss(head, features, [self.data.train_objects[index] for index in batch.tolist()])

    def score(self, head: nn.Module, tuned: Tuned, chosen: np.ndarray) -> float:
        objects = [self.data.train_objects[index] for index in chosen]
        return holdout_score(head, take(tuned.train, chosen), objects, self.data.num_classes)

    def outcomes(self, head: nn.Module, tuned: Tuned, chosen: dict[str, Any], keep: int) -> list[Outcome]:
        return detection_outcomes(head, tuned.eval, self.data, chosen, TUNED + PROTOCOL[self.options.kind])
