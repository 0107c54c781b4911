"""Detection and instance segmentation on frozen dense features: Mask R-CNN and SSD, judged by COCO's average precision.

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

from cliptex.config import FineTuning
from cliptex.evaluation.metrics.base import Arrays
from cliptex.evaluation.metrics.detection import detection_statistics
from cliptex.evaluation.probes.base import Outcome, Run
from cliptex.evaluation.probes.detection import DetectionHead
from cliptex.evaluation.probes.features import Features, take
from cliptex.evaluation.probes.heads.mask_rcnn import MaskRCNNDetector
from cliptex.evaluation.probes.heads.pyramid import Frame, frame_of
from cliptex.evaluation.probes.heads.ssd import SSDDetector
from cliptex.evaluation.probes.parts import Part
from cliptex.evaluation.probes.selection import Candidate, best_candidate, candidates
from cliptex.evaluation.probes.training import Optimisation, batches
from cliptex.evaluation.probes.tuning import TUNED, Recipe, Tuned, Tuner
from cliptex.evaluation.probes.views import ImageView, cut_truth
from cliptex.evaluation.thumbnails import box_thumbnails

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
PROTOCOL = {
    "mask_rcnn": "simple feature pyramid and Mask R-CNN; boxes and masks in the original image; COCO AP",
    "ssd": "simple feature pyramid and SSD; boxes in the original image; COCO AP",
}
RunLengths = dict[str, Any]
"""A mask as COCO's compressed run lengths: `size` [height, width] and `counts`."""


@dataclass(frozen=True)
class Objects:
    """The training objects of one view in the virtual frame [height, width]: boxes xyxy, labels from 1, masks as COCO's
    compressed run lengths."""

    frame: Frame
    boxes: torch.Tensor
    labels: torch.Tensor
    masks: list[RunLengths]

    def target(self) -> dict[str, torch.Tensor]:
        """What torchvision takes: `boxes` [n, 4], `labels` [n], `masks` uint8 [n, height, width]."""
        masks = np.zeros((0, *self.frame), np.uint8)
        if self.masks:
            masks = np.ascontiguousarray(rle.decode(self.masks).transpose(2, 0, 1))
        return {"boxes": self.boxes, "labels": self.labels, "masks": torch.from_numpy(masks)}


def training_objects(sample: dict[str, Any], frame: Frame, view: ImageView) -> Objects:
    """A sample's objects, as a view has them, in the virtual frame. Crowds and boxes outside are left out."""
    scale = np.array([frame[1] / view.width, frame[0] / view.height] * 2, np.float32)
    boxes = (sample["boxes"] - np.array([view.left, view.top] * 2, np.float32)) * scale
    if view.flip:
        boxes[:, [0, 2]] = frame[1] - boxes[:, [2, 0]]
    boxes = boxes.clip(0, np.array([frame[1], frame[0]] * 2, np.float32))
    used = ~sample["crowd"] & (boxes[:, 2] > boxes[:, 0] + 0.1) & (boxes[:, 3] > boxes[:, 1] + 0.1)
    masks = [cut_truth(mask, view, frame, False) for mask in sample["masks"][used]]
    labels = torch.from_numpy(sample["labels"][used] + 1)
    return Objects(frame, torch.from_numpy(boxes[used]), labels, _encoded(np.array(masks)) if masks else [])


@dataclass(frozen=True)
class DetectionData:
    """What detectors learn from and are judged on: the objects of each training view; a COCO file's content, and of
    each evaluation image its id there and (height, width); the first evaluation samples, whose predictions are kept."""

    train_objects: Sequence[Objects]
    annotations: dict[str, Any]
    eval_ids: Sequence[int]
    eval_shapes: Sequence[tuple[int, int]]
    kept_truths: Sequence[dict[str, np.ndarray]]

    @classmethod
    def of(cls, run: Run, train: Part, evaluated: Part) -> Self:
        """The ids of the evaluation images are those of the COCO file."""
        ids = [int(name) for name in evaluated.ids]
        return cls(train.truths["detection"], run.benchmark.annotations("eval"), ids, evaluated.shapes, run.kept)

    @property
    def num_classes(self) -> int:
        return len(self.annotations["categories"])


def build_detector(channels_in: int, num_classes: int, options: DetectionHead) -> nn.Module:
    """A network that takes maps [B, C, h, w], and in training targets, and gives losses or detections in the frame."""
    if options.kind == "ssd":
        return SSDDetector(channels_in, num_classes, options)
    return MaskRCNNDetector(channels_in, num_classes, options)


def train_detector(
    features_VChw: Features | torch.Tensor,
    objects: Sequence[Objects],
    num_classes: int,
    options: DetectionHead,
    candidate: Candidate,
    seed: int,
) -> nn.Module:
    """A trained detector, in evaluation mode. Same seed: same first weights and same batches for every model."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    detector = build_detector(features_VChw.shape[1], num_classes, options).train().to(device)
    optimisation = Optimisation(detector.parameters(), options, candidate)
    for batch in batches(len(objects), options.batch_size, options.steps, generator):
        some = [objects[index] for index in batch.tolist()]
        optimisation.step(detector_loss(detector, features_VChw[batch].to(device), some))
    return detector.eval()


def detector_loss(detector: nn.Module, features_BChw: torch.Tensor, objects: Sequence[Objects]) -> torch.Tensor:
    """The sum of the losses of a detector in training mode."""
    targets = [{name: value.to(features_BChw.device) for name, value in one.target().items()} for one in objects]
    return sum(detector(features_BChw, targets).values())


@torch.inference_mode()
def detect(
    detector: nn.Module, features_NChw: Features | torch.Tensor, shapes: Sequence[tuple[int, int]]
) -> list[dict[str, Any]]:
    """Per image of (height, width): boxes float32 [n, 4] xyxy, labels from 0 [n], scores [n], and, from detectors that
    give them, masks as n `RunLengths`."""
    device = next(detector.parameters()).device
    frame = frame_of(features_NChw.shape[2:])
    results = []
    for start in range(0, len(shapes), 32):
        found = detector(features_NChw[start : start + 32].to(device))
        for one, (height, width) in zip(found, shapes[start : start + 32], strict=True):
            scale = torch.tensor([width / frame[1], height / frame[0]] * 2)
            boxes = one["boxes"].cpu() * scale
            result: dict[str, Any] = {
                "boxes": boxes.numpy(),
                "labels": one["labels"].cpu().numpy() - 1,
                "scores": one["scores"].cpu().numpy(),
            }
            if "masks" in one:
                # encoded at once: a hundred masks of a photograph are 30 MB
                masks = paste_masks_in_image(one["masks"].cpu(), boxes, (height, width))[:, 0] > 0.5
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


def average_precision(
    annotations: dict[str, Any], ids: Sequence[int], detections: Sequence[dict[str, Any]], kind: str
) -> dict[str, float | None]:
    """The metrics of `evaluate_detections`."""
    return evaluate_detections(annotations, ids, detections, kind)[0]


def evaluate_detections(
    annotations: dict[str, Any], ids: Sequence[int], detections: Sequence[dict[str, Any]], kind: str
) -> tuple[dict[str, float | None], Arrays]:
    """COCO's AP AP50 AP75 APs APm APl in percent, None where the truth has no object of that size; and per image.

    annotations: a COCO file's content. ids: the image of each item of `detections` (as `detect` returns them; masks may
    be bool [n, H, W] too). kind: "bbox" or "segm".
    """
    categories = sorted(category["id"] for category in annotations["categories"])
    rows = []
    for image, found in zip(ids, detections, strict=True):
        if kind == "segm":
            encoded = _encoded(found["masks"])
        for index, (box, label, score) in enumerate(zip(found["boxes"], found["labels"], found["scores"], strict=True)):
            row = {"image_id": image, "category_id": categories[label], "score": float(score)}
            if kind == "bbox":
                row["bbox"] = [*box[:2].tolist(), *(box[2:] - box[:2]).tolist()]
            else:
                # without a box, so that sizes are those of the masks
                row["segmentation"] = encoded[index]
            rows.append(row)
    if not rows:
        # without any detection the evaluator gives -1 or 0 by version
        per_image = detection_statistics(annotations, ids, detections, {})
        return dict.fromkeys(METRICS, 0.0 if per_image["positives"].any() else None), per_image
    # a copy: the evaluator writes its own run-length codes into what it is given
    truth = COCO(copy.deepcopy(annotations))
    evaluation = COCOeval_faster(truth, truth.loadRes(rows), kind)
    evaluation.params.imgIds = list(ids)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    values = [float(value) for value in evaluation.stats[:6]]
    metrics = {name: 100 * value if value >= 0 else None for name, value in zip(METRICS, values, strict=True)}
    return metrics, detection_statistics(annotations, ids, detections, evaluation.ious, evaluation.params.maxDets[-1])


def held_annotations(objects: Sequence[Objects], num_classes: int) -> dict[str, Any]:
    """Boxes of training views that are held out, in the virtual frame, as the content of a COCO file."""
    rows = []
    for image, one in enumerate(objects):
        for box, label in zip(one.boxes.tolist(), one.labels.tolist(), strict=True):
            width, height = box[2] - box[0], box[3] - box[1]
            row = {"id": len(rows) + 1, "image_id": image, "category_id": label, "iscrowd": 0}
            rows.append({**row, "bbox": [*box[:2], width, height], "area": width * height})
    return {
        "images": [{"id": image, "height": one.frame[0], "width": one.frame[1]} for image, one in enumerate(objects)],
        "annotations": rows,
        "categories": [{"id": label, "name": str(label)} for label in range(1, num_classes + 1)],
    }


def held_score(
    detector: nn.Module, features_VChw: Features | torch.Tensor, objects: Sequence[Objects], num_classes: int
) -> float:
    """AP of boxes on training views that are held out, in percent; 0 where they have no object."""
    found = detect(detector, features_VChw, [one.frame for one in objects])
    truth = held_annotations(objects, num_classes)
    return average_precision(truth, range(len(objects)), found, "bbox")["AP"] or 0.0


def probe_detection(
    train_VChw: Features | torch.Tensor,
    eval_NChw: Features | torch.Tensor,
    data: DetectionData,
    options: DetectionHead,
    split: tuple[np.ndarray, np.ndarray],
    seed: int,
) -> list[Outcome]:
    """Train a detector and judge its boxes, and its masks if it gives any: outcomes of one network.

    split: training views for fitting, and those held out.
    """
    fit, held = split

    def score(candidate: Candidate) -> float:
        chosen, left_out = ([data.train_objects[index] for index in some] for some in split)
        detector = train_detector(take(train_VChw, fit), chosen, data.num_classes, options, candidate, seed)
        return held_score(detector, take(train_VChw, held), left_out, data.num_classes)

    best, scores = best_candidate(options, score)
    detector = train_detector(train_VChw, data.train_objects, data.num_classes, options, best, seed)
    about = {**best._asdict(), "holdout_AP": scores}
    return detection_outcomes(detector, eval_NChw, data, about, PROTOCOL[options.kind])


def detection_outcomes(
    detector: nn.Module,
    eval_NChw: Features | torch.Tensor,
    data: DetectionData,
    hyperparameters: dict[str, Any],
    protocol: str,
) -> list[Outcome]:
    """Boxes of a trained detector, and its masks if it gives any, judged."""
    detections = detect(detector, eval_NChw, data.eval_shapes)
    masks = isinstance(detector, MaskRCNNDetector)
    kept = {}
    for index, truth in enumerate(data.kept_truths):
        for name in ("boxes", "labels", "scores"):
            kept[f"prediction_{name}_{index}"] = detections[index][name]
        if masks:
            kept[f"prediction_masks_{index}"] = _decoded(detections[index]["masks"], data.eval_shapes[index])
        for name in ("boxes", "labels", "masks", "crowd"):
            kept[f"truth_{name}_{index}"] = truth[name]
    outcomes = []
    for task, kind in (("detection", "bbox"), ("instance_segmentation", "segm"))[: 1 + masks]:
        metrics, per_image = evaluate_detections(data.annotations, data.eval_ids, detections, kind)
        outcome = Outcome(
            task=task,
            metrics=metrics,
            num_parameters=sum(parameter.numel() for parameter in detector.parameters()),
            hyperparameters=hyperparameters,
            protocol=protocol,
            predictions=kept,
            per_image=per_image,
            thumbnails=box_thumbnails(detections) if kind == "bbox" else {},
        )
        outcomes.append(outcome)
    return outcomes


class DetectionTuner(Tuner):
    """A detector, from its first weights."""

    def __init__(
        self,
        run: Run,
        name: str,
        tuned: Tuned,
        split: tuple[np.ndarray, np.ndarray],
        seed: int,
        options: FineTuning,
    ):
        self.options, self.seed, self.device = run.protocol.section("detection").heads[name], seed, tuned.encoder.device
        self.data = DetectionData.of(run, *tuned.parts)
        self.channels = tuned.train.shape[1]
        self.recipes = [Recipe(self.options, candidate) for candidate in candidates(self.options)]

    def start(self) -> nn.Module:
        torch.manual_seed(self.seed)
        return build_detector(self.channels, self.data.num_classes, self.options).to(self.device)

    def loss(
        self, head: nn.Module, features: torch.Tensor, batch: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor:
        return detector_loss(head, features, [self.data.train_objects[index] for index in batch.tolist()])

    def score(self, head: nn.Module, tuned: Tuned, chosen: np.ndarray) -> float:
        objects = [self.data.train_objects[index] for index in chosen]
        return held_score(head, take(tuned.train, chosen), objects, self.data.num_classes)

    def outcomes(self, head: nn.Module, tuned: Tuned, chosen: dict[str, Any], keep: int) -> list[Outcome]:
        return detection_outcomes(head, tuned.eval, self.data, chosen, TUNED + PROTOCOL[self.options.kind])
