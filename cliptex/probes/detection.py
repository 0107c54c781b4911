"""Detection and instance segmentation: torchvision's Mask R-CNN on frozen dense features.

A simple feature pyramid (as in ViTDet) is made from the one feature map and trained with the heads. Boxes live in a
virtual frame in which a cell of the map is 16 pixels wide: torchvision rounds the strides of its region pooling to
powers of two, so that a patch size of 12 or 14 would misplace every region.

Shapes: N images, C feature width, h x w feature map.
"""

import copy
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.ops import MultiScaleRoIAlign

from cliptex.probes.features import Outcome, batches, resample_nearest, schedule, split_holdout
from cliptex.probes.per_image import Arrays, detection_statistics
from cliptex.probes.protocols import MaskRCNN as MaskRCNNOptions
from cliptex.probes.selection import Candidate, best_candidate
from cliptex.probes.thumbnails import box_thumbnails

CELL = 16
LEVELS = ("0", "1", "2")
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
PROTOCOL = (
    "frozen features of the squashed image, standardised a channel over the training split; simple feature pyramid "
    "and Mask R-CNN trained on them with AdamW; no augmentation; boxes and masks in the original image; COCO AP"
)


@dataclass(frozen=True)
class Objects:
    """The training objects of one image in the virtual frame: boxes xyxy, labels from 1, masks packed by the byte."""

    boxes: torch.Tensor
    labels: torch.Tensor
    packed: np.ndarray

    def target(self, side: int) -> dict[str, torch.Tensor]:
        """What torchvision takes: `boxes` [n, 4], `labels` [n], `masks` uint8 [n, side, side]."""
        masks = np.unpackbits(self.packed, axis=1, count=side * side).reshape(-1, side, side)
        return {"boxes": self.boxes, "labels": self.labels, "masks": torch.from_numpy(masks)}


def training_objects(sample: dict[str, Any], side: int) -> Objects:
    """A sample's objects, moved to the virtual frame of `side` pixels. Crowds and empty boxes are left out."""
    height, width = sample["image"].shape[:2]
    scale = np.array([side / width, side / height] * 2, np.float32)
    boxes = sample["boxes"] * scale
    used = ~sample["crowd"] & (boxes[:, 2] > boxes[:, 0] + 0.1) & (boxes[:, 3] > boxes[:, 1] + 0.1)
    masks = [resample_nearest(mask, side).ravel() for mask in sample["masks"][used]]
    return Objects(
        torch.from_numpy(boxes[used]).clamp(0, side),
        torch.from_numpy(sample["labels"][used] + 1),
        np.packbits(np.array(masks, bool).reshape(-1, side * side), axis=1),
    )


class Pyramid(nn.Module):
    """One map [B, C, h, w] to three at half, once and twice the stride."""

    def __init__(self, channels_in: int, channels: int):
        super().__init__()
        self.out_channels = channels
        self.up = nn.Sequential(nn.ConvTranspose2d(channels_in, channels, 2, 2), nn.GroupNorm(1, channels), nn.ReLU())
        self.same = nn.Sequential(nn.Conv2d(channels_in, channels, 1), nn.GroupNorm(1, channels), nn.ReLU())
        self.smooth = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in LEVELS)

    def forward(self, features_BChw: torch.Tensor) -> OrderedDict[str, torch.Tensor]:
        same = self.same(features_BChw)
        # ceil_mode: a map of odd side keeps its last row
        down = nn.functional.max_pool2d(same, 2, ceil_mode=True)
        maps = (self.up(features_BChw), same, down)
        return OrderedDict(zip(LEVELS, (conv(one) for conv, one in zip(self.smooth, maps, strict=True)), strict=True))


class BoxPredictor(nn.Module):
    """Scores of all classes, and one box for all of them: few images an epoch have any one class."""

    def __init__(self, units: int, num_classes: int):
        super().__init__()
        self.num_classes = num_classes
        self.scores = nn.Linear(units, num_classes)
        self.box = nn.Linear(units, 4)

    def forward(self, regions_RC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.scores(regions_RC), self.box(regions_RC).repeat(1, self.num_classes)


class MaskPredictor(nn.Module):
    """One mask for all classes, at twice the side of the regions."""

    def __init__(self, channels: int, num_classes: int):
        super().__init__()
        self.num_classes = num_classes
        self.up = nn.ConvTranspose2d(channels, channels, 2, 2)
        self.mask = nn.Conv2d(channels, 1, 1)

    def forward(self, regions_RChw: torch.Tensor) -> torch.Tensor:
        return self.mask(torch.relu(self.up(regions_RChw))).expand(-1, self.num_classes, -1, -1)


class Detector(nn.Module):
    """Mask R-CNN that takes feature maps in place of images. `side` is that of the virtual frame."""

    def __init__(self, channels_in: int, side: int, num_classes: int, options: MaskRCNNOptions):
        super().__init__()
        channels = options.channels
        strides = (CELL // 2, CELL, CELL * 2)
        anchors = AnchorGenerator(tuple((options.anchor_scale * stride,) for stride in strides), ((0.5, 1.0, 2.0),) * 3)
        # objects of 64 pixels and more are pooled from the encoder's own stride
        pools = [
            MultiScaleRoIAlign(list(LEVELS), size, sampling_ratio=1, canonical_scale=64, canonical_level=4)
            for size in (5, 7)
        ]
        classes = num_classes + 1
        if options.class_agnostic:
            box_predictor = BoxPredictor(options.box_units, classes)
            mask_predictor = MaskPredictor(channels, classes)
        else:
            box_predictor = FastRCNNPredictor(options.box_units, classes)
            mask_predictor = MaskRCNNPredictor(channels, channels, classes)
        self.side = side
        self.network = MaskRCNN(
            Pyramid(channels_in, channels),
            rpn_anchor_generator=anchors,
            rpn_pre_nms_top_n_train=4 * options.proposals,
            rpn_pre_nms_top_n_test=4 * options.proposals,
            rpn_post_nms_top_n_train=options.proposals,
            rpn_post_nms_top_n_test=options.proposals,
            rpn_batch_size_per_image=64,
            box_roi_pool=pools[0],
            box_head=TwoMLPHead(channels * 5 * 5, options.box_units),
            box_predictor=box_predictor,
            box_batch_size_per_image=options.rois,
            box_detections_per_img=options.detections,
            box_score_thresh=options.score_threshold,
            mask_roi_pool=pools[1],
            mask_head=MaskRCNNHeads(channels, (channels,) * options.mask_layers, 1),
            mask_predictor=mask_predictor,
        )

    def forward(self, features_BChw: torch.Tensor, targets: list[dict[str, torch.Tensor]] | None = None) -> Any:
        """In training the dictionary of losses, else a list of {boxes, labels, scores, masks} in the virtual frame."""
        count = len(features_BChw)
        # only the shape is read
        pixels = features_BChw.new_zeros(1).expand(count, 3, self.side, self.side)
        images = ImageList(pixels, [(self.side, self.side)] * count)
        maps = self.network.backbone(features_BChw)
        proposals, rpn_losses = self.network.rpn(images, maps, targets)
        detections, losses = self.network.roi_heads(maps, proposals, images.image_sizes, targets)
        return rpn_losses | losses if self.training else detections


def train_detector(
    features_NChw: torch.Tensor,
    objects: Sequence[Objects],
    num_classes: int,
    options: MaskRCNNOptions,
    candidate: Candidate,
    seed: int,
) -> Detector:
    """Train on standardised features; returned in evaluation mode."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    side = CELL * features_NChw.shape[2]
    detector = Detector(features_NChw.shape[1], side, num_classes, options).train().to(device)
    parameters = list(detector.parameters())
    rate, decay = candidate
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=decay, fused=True)
    scheduler = schedule(optimizer, options.steps, options.warmup, options.power)
    for batch in batches(len(objects), options.batch_size, options.steps, generator):
        targets = [objects[index].target(side) for index in batch.tolist()]
        targets = [{name: value.to(device) for name, value in target.items()} for target in targets]
        losses = detector(features_NChw[batch].to(device), targets)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        nn.utils.clip_grad_norm_(parameters, 10.0)
        optimizer.step()
        scheduler.step()
    return detector.eval()


@torch.inference_mode()
def detect(
    detector: Detector, features_NChw: torch.Tensor, shapes: Sequence[tuple[int, int]]
) -> list[dict[str, np.ndarray]]:
    """Per image of (height, width): boxes float32 [n, 4] xyxy, labels from 0 [n], scores [n], masks bool [n, H, W]."""
    device = next(detector.parameters()).device
    results = []
    for start in range(0, len(shapes), 32):
        found = detector(features_NChw[start : start + 32].to(device))
        for one, (height, width) in zip(found, shapes[start : start + 32], strict=True):
            scale = torch.tensor([width / detector.side, height / detector.side] * 2)
            boxes = one["boxes"].cpu() * scale
            masks = paste_masks_in_image(one["masks"].cpu(), boxes, (height, width))[:, 0] > 0.5
            results.append(
                {
                    "boxes": boxes.numpy(),
                    "labels": one["labels"].cpu().numpy() - 1,
                    "scores": one["scores"].cpu().numpy(),
                    "masks": masks.numpy(),
                }
            )
    return results


def average_precision(
    annotations: dict[str, Any], ids: Sequence[int], detections: Sequence[dict[str, np.ndarray]], kind: str
) -> dict[str, float | None]:
    """The metrics of `judge_detections`."""
    return judge_detections(annotations, ids, detections, kind)[0]


def judge_detections(
    annotations: dict[str, Any], ids: Sequence[int], detections: Sequence[dict[str, np.ndarray]], kind: str
) -> tuple[dict[str, float | None], Arrays]:
    """COCO's AP AP50 AP75 APs APm APl in percent, None where the truth has no object of that size; and per image.

    annotations: a COCO file's content. ids: the image of each item of `detections` (as `detect` returns them).
    kind: "bbox" or "segm".
    """
    from faster_coco_eval import COCO, COCOeval_faster
    from faster_coco_eval import mask as rle

    categories = sorted(category["id"] for category in annotations["categories"])
    rows = []
    for image, found in zip(ids, detections, strict=True):
        if kind == "segm" and len(found["masks"]):
            encoded = rle.encode(np.asfortranarray(found["masks"].transpose(1, 2, 0).astype(np.uint8)))
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


def held_annotations(objects: Sequence[Objects], num_classes: int, side: int) -> dict[str, Any]:
    """Boxes of training images that are held out, in the virtual frame, as the content of a COCO file."""
    rows = []
    for image, one in enumerate(objects):
        for box, label in zip(one.boxes.tolist(), one.labels.tolist(), strict=True):
            width, height = box[2] - box[0], box[3] - box[1]
            row = {"id": len(rows) + 1, "image_id": image, "category_id": label, "iscrowd": 0}
            rows.append({**row, "bbox": [*box[:2], width, height], "area": width * height})
    return {
        "images": [{"id": image, "height": side, "width": side} for image in range(len(objects))],
        "annotations": rows,
        "categories": [{"id": label, "name": str(label)} for label in range(1, num_classes + 1)],
    }


def probe_detection(
    train_NChw: torch.Tensor,
    eval_NChw: torch.Tensor,
    train_objects: Sequence[Objects],
    annotations: dict[str, Any],
    eval_ids: Sequence[int],
    eval_shapes: Sequence[tuple[int, int]],
    kept_truths: Sequence[dict[str, np.ndarray]],
    options: MaskRCNNOptions,
    holdout: float,
    seed: int,
) -> list[Outcome]:
    """Train Mask R-CNN and judge its boxes and its masks: two outcomes of one network.

    kept_truths: the first evaluation samples, whose predictions are kept.
    """
    classes = len(annotations["categories"])
    fit, held = split_holdout(len(train_objects), holdout, seed)

    def score(candidate: Candidate) -> float:
        chosen = [train_objects[index] for index in fit]
        detector = train_detector(train_NChw[fit], chosen, classes, options, candidate, seed)
        found = detect(detector, train_NChw[held], [(detector.side, detector.side)] * len(held))
        truth = held_annotations([train_objects[index] for index in held], classes, detector.side)
        return average_precision(truth, range(len(held)), found, "bbox")["AP"] or 0.0

    best, scores = best_candidate(options, score)
    detector = train_detector(train_NChw, train_objects, classes, options, best, seed)
    detections = detect(detector, eval_NChw, eval_shapes)
    kept = {}
    for index, truth in enumerate(kept_truths):
        for name in ("boxes", "labels", "masks", "scores"):
            kept[f"prediction_{name}_{index}"] = detections[index][name]
        for name in ("boxes", "labels", "masks", "crowd"):
            kept[f"truth_{name}_{index}"] = truth[name]
    outcomes = []
    for task, kind in (("detection", "bbox"), ("instance_segmentation", "segm")):
        metrics, per_image = judge_detections(annotations, eval_ids, detections, kind)
        outcome = Outcome(
            task=task,
            metrics=metrics,
            num_parameters=sum(parameter.numel() for parameter in detector.parameters()),
            hyperparameters={**best._asdict(), "holdout_AP": scores},
            protocol=PROTOCOL,
            predictions=kept,
            per_image=per_image,
            thumbnails=box_thumbnails(detections) if kind == "bbox" else {},
        )
        outcomes.append(outcome)
    return outcomes
