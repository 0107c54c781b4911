"""Semantic segmentation from instances: Mask R-CNN (He et al., ICCV 2017), torchvision's `MaskRCNN`.

The network has torchvision's 91 slots, whose numbers are COCO's sparse category ids, so that the published weights
fit. Shape suffixes: B batch, C channels, H height, W width, N instances.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import timm
import torch
from pydantic import Field
from torch import nn
from torchvision.models.detection import MaskRCNN, maskrcnn_resnet50_fpn_v2
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign

from cliptex.benchmarks.coco_names import coco_categories
from cliptex.config import Positive, Section, Share
from cliptex.experts.fitting import read_renders
from cliptex.experts.network import NetworkExpert, to_device, to_host
from cliptex.experts.precision import mixed_precision

SLOTS = 91
SPARSE_ID = np.array([0, *(number for number, _, _ in coco_categories())])
"""Contiguous class 0..80 to COCO id."""
CONTIGUOUS = np.zeros(SLOTS, np.uint8)
CONTIGUOUS[SPARSE_ID] = np.arange(len(SPARSE_ID))
MIN_VISIBLE_PX = 12
AP_MIN_SCORE = 0.05


def paint(
    masks_NHW: np.ndarray,
    classes_N: np.ndarray,
    scores_N: np.ndarray,
    threshold: float,
    ignore_below: float | None = None,
) -> np.ndarray:
    """Instances (bool masks, contiguous classes 1..80, scores) to a hard class map uint8 [H, W].

    Instances with a score of `threshold` or more are painted in ascending order of score, so that the surest lies on
    top; of equal scores the one listed first. What nobody claims is background, 0. With `ignore_below`, pixels that
    only instances with `ignore_below` <= score < `threshold` claim are 255 (ignore): the expert has seen something
    there, but is not sure.
    """
    label = np.zeros(masks_NHW.shape[1:], np.uint8)
    for index in np.argsort(-scores_N, kind="stable")[::-1]:
        if scores_N[index] >= threshold:
            label[masks_NHW[index]] = classes_N[index]
        elif ignore_below is not None and scores_N[index] >= ignore_below:
            label[masks_NHW[index]] = 255
    return label


def paint_scores(
    masks_NHW: np.ndarray, scores_N: np.ndarray, threshold: float, ignore_below: float | None = None
) -> np.ndarray:
    """How sure `paint` is of each pixel, uint8 [H, W], 255 for a score of 1.

    A painted pixel has the score of the instance on top. The background has 1, less the best score of an instance
    below the threshold that covers it. An ignored pixel has 0.
    """
    doubt = np.zeros(masks_NHW.shape[1:], np.float32)
    score, painted = doubt.copy(), np.zeros(masks_NHW.shape[1:], bool)
    for index in np.argsort(-scores_N, kind="stable")[::-1]:
        plane = score if scores_N[index] >= threshold else doubt
        plane[masks_NHW[index]] = scores_N[index]
        painted |= masks_NHW[index] & (scores_N[index] >= threshold)
    unsure = np.zeros_like(painted) if ignore_below is None else doubt >= ignore_below
    background = np.where(unsure, 0.0, 1 - doubt)
    return np.rint(255 * np.clip(np.where(painted, score, background), 0, 1)).astype(np.uint8)


def coco_results(
    boxes_N4: np.ndarray, slots_N: np.ndarray, scores_N: np.ndarray, masks_NHW: np.ndarray
) -> list[dict[str, Any]]:
    """Instances in the form of COCO's results, surest first, in pixels of the image.

    boxes_N4: left, top, right, bottom. slots_N: COCO's category ids. Each dictionary has `category_id`, `score`, `bbox`
    [left, top, width, height] and `segmentation` (`size` [height, width], `counts`: COCO's compressed run lengths).
    """
    from faster_coco_eval.core import mask as rle

    results = []
    for index in np.argsort(-scores_N, kind="stable"):
        left, top, right, bottom = boxes_N4[index].tolist()
        run_lengths = rle.encode(np.asfortranarray(masks_NHW[index].astype(np.uint8)))
        results.append(
            {
                "category_id": int(slots_N[index]),
                "score": float(scores_N[index]),
                "bbox": [left, top, right - left, bottom - top],
                "segmentation": {"size": list(run_lengths["size"]), "counts": run_lengths["counts"].decode("ascii")},
            }
        )
    return results


class SmallNetwork(Section):
    """Sizes of a small Mask R-CNN, for `architecture: small`."""

    encoder: str = "resnet18"
    """timm architecture with features at 1/4, 1/8, 1/16 and 1/32."""
    encoder_options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments for timm."""
    fpn_channels: Positive = 64
    """Channels of the feature pyramid."""
    anchors_px: tuple[Positive, Positive, Positive, Positive] = (12, 24, 44, 72)
    """Side of the anchors on each level, pixels."""
    box_grid: Positive = 5
    """Cells of a region's side for the box head."""
    mask_grid: Positive = 7
    """Cells of a region's side for the mask head, whose masks have twice as many."""
    box_features: Positive = 128
    """Width of the box head."""
    mask_layers: Positive = 2
    """Convolutions in the mask head."""
    canonical_px: Positive = 96
    """Regions of this side are read from the level 1/16; of half the side from 1/8, and so on."""
    proposals_train: Positive = 150
    """Proposals an image kept in training."""
    proposals: Positive = 60
    """Proposals an image kept in prediction."""
    regions: Positive = 32
    """Regions an image on which the heads are trained."""
    rpn_regions: Positive = 64
    """Anchors an image on which the proposals are trained."""


class Network(Section):
    """Options of the expert `mask_rcnn`."""

    architecture: Literal["small", "maskrcnn_resnet50_fpn_v2"] = "maskrcnn_resnet50_fpn_v2"
    """torchvision's network, or a small one of the same kind."""
    small: SmallNetwork = SmallNetwork()
    """Sizes of the small one."""
    min_side_px: Positive = 800
    """Images are resized so that the short side has this many pixels ..."""
    max_side_px: Positive = 1333
    """... but the long side no more than these."""
    score_threshold: Share = 0.5
    """Instances below this score are not painted."""
    ignore_below: Share | None = None
    """Pixels of instances from this score up to the threshold are 255; null leaves them background."""
    mask_threshold: Share = 0.5
    """A pixel is in the mask from this probability on."""
    nms_threshold: Share = 0.5
    """Overlap of two boxes above which the weaker one is dropped."""
    detections: Positive = 100
    """Instances an image at most."""
    keep_scores: bool = False
    """Give each pixel's score beside its class, for a label store of the task `scored_segmentation`."""
    keep_instances: bool = False
    """Keep the instances beside the painted map, in the label store's column `instances`."""
    background_share: Annotated[float, Field(gt=0, lt=1)] = 0.75
    """Share of background among the regions on which the heads are trained."""


class _PyramidEncoder(nn.Module):
    """timm encoder and feature pyramid: levels "0" to "3" at 1/4 to 1/32."""

    def __init__(self, options: SmallNetwork):
        super().__init__()
        self.body = timm.create_model(
            options.encoder, features_only=True, out_indices=(1, 2, 3, 4), **options.encoder_options
        )
        self.fpn = FeaturePyramidNetwork(self.body.feature_info.channels(), options.fpn_channels)
        self.out_channels = options.fpn_channels

    def forward(self, images_BCHW: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.fpn({str(level): feature for level, feature in enumerate(self.body(images_BCHW))})


def small_mask_rcnn(options: SmallNetwork, **common: Any) -> MaskRCNN:
    """torchvision's MaskRCNN with a small encoder and small heads; `common` goes to MaskRCNN."""
    width = options.fpn_channels
    levels = ["0", "1", "2", "3"]
    anchors = AnchorGenerator(tuple((side,) for side in options.anchors_px), ((0.5, 1.0, 2.0),) * 4)

    def align(grid: int) -> MultiScaleRoIAlign:
        return MultiScaleRoIAlign(levels, grid, 2, canonical_scale=options.canonical_px, canonical_level=4)

    return MaskRCNN(
        _PyramidEncoder(options),
        rpn_anchor_generator=anchors,
        rpn_head=RPNHead(width, anchors.num_anchors_per_location()[0]),
        rpn_pre_nms_top_n_train=2 * options.proposals_train,
        rpn_pre_nms_top_n_test=2 * options.proposals,
        rpn_post_nms_top_n_train=options.proposals_train,
        rpn_post_nms_top_n_test=options.proposals,
        rpn_batch_size_per_image=options.rpn_regions,
        box_roi_pool=align(options.box_grid),
        box_head=TwoMLPHead(width * options.box_grid**2, options.box_features),
        box_predictor=FastRCNNPredictor(options.box_features, SLOTS),
        box_batch_size_per_image=options.regions,
        mask_roi_pool=align(options.mask_grid),
        mask_head=MaskRCNNHeads(width, (width,) * options.mask_layers, 1),
        mask_predictor=MaskRCNNPredictor(width, width, SLOTS),
        **common,
    )


class ExactBoxCoder(BoxCoder):
    """torchvision's, in float32 also where the network computes in bf16, in which coordinates of a thousand pixels
    are four apart."""

    def decode_single(self, rel_codes: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        return super().decode_single(rel_codes.float(), boxes)


class MaskRCNNExpert(NetworkExpert):
    """Labels uint8 [H, W]: 0 background, 1..80 COCO's classes, 255 ignore where `ignore_below` is set; see `paint`.

    With `keep_scores` the label store is given uint8 [H, W, 2], class and score; see `paint_scores`.
    """

    task = "segmentation"
    Network = Network
    size_options = ("architecture",)
    targets = ("instance", "instance_class")

    def build(self) -> nn.Module:
        options = self.network
        common = {
            "min_size": options.min_side_px,
            "max_size": options.max_side_px,
            "box_score_thresh": min(options.score_threshold, options.ignore_below or 1.0),
            "box_nms_thresh": options.nms_threshold,
            "box_detections_per_img": options.detections,
            "box_positive_fraction": 1 - options.background_share,
        }
        if options.architecture == "small":
            module = small_mask_rcnn(options.small, **common)
        else:
            module = maskrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None, num_classes=SLOTS, **common)
        for part in (module.rpn, module.roi_heads):
            part.box_coder = ExactBoxCoder(part.box_coder.weights, part.box_coder.bbox_xform_clip)
        return module

    def train_size(self) -> tuple[int, int] | None:
        # the small network is trained on squares of the size it sees, whatever the renders' size
        return (self.network.min_side_px,) * 2 if self.network.architecture == "small" else None

    def shared(self) -> dict[str, nn.Module]:
        return {"body": self.module.backbone.body, "fpn": self.module.backbone.fpn}

    def loss(self, batch: dict[str, torch.Tensor], generator: torch.Generator) -> torch.Tensor:
        targets = [
            _instances(instance, classes)
            for instance, classes in zip(batch["instance"], batch["instance_class"], strict=True)
        ]
        return sum(self.module(list(batch["image"]), targets).values())

    def label(self, images: list[torch.Tensor]) -> list[np.ndarray]:
        labels = [label for label, _ in self._label_rows(images)]
        return [label[..., 0] for label in labels] if self.network.keep_scores else labels

    def extra_columns(self) -> dict[str, Any]:
        """With `keep_instances`: `instances`, a list of COCO results (category_id, score, bbox, segmentation)."""
        import pyarrow as pa

        if not self.network.keep_instances:
            return {}
        segmentation = pa.struct({"size": pa.list_(pa.int32()), "counts": pa.string()})
        instance = {"category_id": pa.int32(), "score": pa.float32(), "bbox": pa.list_(pa.float32())}
        return {"instances": pa.list_(pa.struct(instance | {"segmentation": segmentation}))}

    def predict_rows(self, images: list[np.ndarray], keys: list[str]) -> list[tuple[np.ndarray, dict[str, Any]]]:
        return self._by_input_size(images, self._label_rows)

    def _label_rows(self, images: list[torch.Tensor]) -> list[tuple[np.ndarray, dict[str, Any]]]:
        options, rows = self.network, []
        for found in self.module([image_CHW / 255 for image_CHW in images]):
            known = torch.from_numpy(CONTIGUOUS > 0).to(found["labels"].device)[found["labels"]]
            found = {name: tensor[known] for name, tensor in found.items()}  # ten of the slots are no class of COCO's
            masks_NHW = _to_masks(found, options.mask_threshold)
            slots_N = found["labels"].cpu().numpy()
            scores_N = found["scores"].float().cpu().numpy()
            label = paint(masks_NHW, CONTIGUOUS[slots_N], scores_N, options.score_threshold, options.ignore_below)
            if options.keep_scores:
                score = paint_scores(masks_NHW, scores_N, options.score_threshold, options.ignore_below)
                label = np.stack([label, score], axis=-1)
            extras = {}
            if options.keep_instances:
                extras["instances"] = coco_results(found["boxes"].float().cpu().numpy(), slots_N, scores_N, masks_NHW)
            rows.append((label, extras))
        return rows

    def own_quality(self, renders: Path) -> dict[str, float]:
        """Average precision of boxes and masks by COCO's definition, percent: `box_AP`, `box_AP50`, `mask_AP`, ...

        Objects of fewer visible pixels than the network is trained on count as crowd: neither hit nor miss.
        """
        data = read_renders(renders, ("image", "instance", "instance_class"))
        usual, self.module.roi_heads.score_thresh = self.module.roi_heads.score_thresh, AP_MIN_SCORE
        try:
            with torch.inference_mode(), mixed_precision(self.precision):  # as it labels
                found = []
                for start in range(0, len(data["image"]), 32):
                    pixels = to_device(data["image"][start : start + 32], self.device)
                    found += self.module(list(pixels.permute(0, 3, 1, 2).float() / 255))
        finally:
            self.module.roi_heads.score_thresh = usual
        return _average_precision(data, found, self.network.mask_threshold)


def _to_masks(found: dict[str, torch.Tensor], threshold: float) -> np.ndarray:
    return to_host([found["masks"][:, 0] >= threshold])[0]


def _instances(instance_HW: torch.Tensor, classes_M: torch.Tensor) -> dict[str, torch.Tensor]:
    """torchvision's target: boxes at pixel edges, sparse ids, masks; slivers are left out."""
    numbers_M = torch.arange(1, len(classes_M) + 1, device=instance_HW.device)
    masks_NHW = instance_HW == numbers_M[:, None, None]
    kept = (masks_NHW.sum((1, 2)) >= MIN_VISIBLE_PX) & (classes_M > 0)
    masks_NHW, classes_N = masks_NHW[kept], classes_M[kept]
    height, width = instance_HW.shape
    columns, rows = masks_NHW.any(1).to(torch.uint8), masks_NHW.any(2).to(torch.uint8)
    edges = [columns.argmax(1), rows.argmax(1), width - columns.flip(1).argmax(1), height - rows.flip(1).argmax(1)]
    return {
        "boxes": torch.stack(edges, dim=1).float(),
        "labels": torch.from_numpy(SPARSE_ID).to(classes_N.device)[classes_N.long()],
        "masks": masks_NHW.to(torch.uint8),
    }


def _average_precision(
    data: dict[str, np.ndarray], found: list[dict[str, torch.Tensor]], mask_threshold: float
) -> dict[str, float]:
    from faster_coco_eval import COCO, COCOeval_faster
    from faster_coco_eval.core import mask as rle

    truths: list[dict[str, Any]] = []
    answers: list[dict[str, Any]] = []
    for image, (instance, classes) in enumerate(zip(data["instance"], data["instance_class"], strict=True)):
        for number in np.flatnonzero(classes) + 1:
            mask = instance == number
            area = int(mask.sum())
            if not area:
                continue
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            x, y = int(columns[0]), int(rows[0])
            truths.append(
                {
                    "id": len(truths) + 1,
                    "image_id": image,
                    "category_id": int(SPARSE_ID[classes[number - 1]]),
                    "bbox": [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y],
                    "area": area,
                    "segmentation": rle.encode(np.asfortranarray(mask.astype(np.uint8))),
                    "iscrowd": int(area < MIN_VISIBLE_PX),
                }
            )
        one = found[image]
        masks = _to_masks(one, mask_threshold)
        for mask, box, slot, score in zip(masks, one["boxes"], one["labels"], one["scores"], strict=True):
            x, y, right, bottom = box.tolist()
            answers.append(
                {
                    "image_id": image,
                    "category_id": int(slot),
                    "bbox": [x, y, right - x, bottom - y],
                    "score": float(score),
                    "segmentation": rle.encode(np.asfortranarray(mask.astype(np.uint8))),
                }
            )
    out = dict.fromkeys(("box_AP", "box_AP50", "mask_AP", "mask_AP50"), 0.0)
    if not answers:
        return out
    height, width = data["instance"].shape[1:]
    truth = COCO(
        {
            "images": [{"id": image, "height": height, "width": width} for image in range(len(found))],
            "annotations": truths,
            "categories": [{"id": number, "name": name} for number, name, _ in coco_categories()],
        }
    )
    for kind, prefix in (("bbox", "box"), ("segm", "mask")):
        judge = COCOeval_faster(truth, truth.loadRes(answers), kind)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
        out[f"{prefix}_AP"], out[f"{prefix}_AP50"] = (100 * float(value) for value in judge.stats[:2])
    return out


PLUGIN = MaskRCNNExpert
