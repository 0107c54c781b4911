"""Semantic segmentation from the instances of Mask R-CNN (He et al., ICCV 2017), torchvision's `MaskRCNN`.

As in torchvision's published weights, the network has 91 outputs, the COCO category ids, of which only 80 are used.
Shape suffixes: B batch, C channels, H height, W width, N instances.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torchvision.models.detection import MaskRCNN, maskrcnn_resnet50_fpn_v2
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import MultiScaleRoIAlign

from cliptex.experts.average_precision import COCO_IDS, MIN_VISIBLE_PX, average_precision, coco_results
from cliptex.experts.encoder import EncoderWithFPN
from cliptex.experts.fitting import read_renders
from cliptex.experts.masks import BoxTransform, Masks, masks_in_boxes
from cliptex.experts.network import NetworkExpert, finite, to_device
from cliptex.experts.options import MaskRCNNOptions, SmallMaskRCNNOptions
from cliptex.experts.precision import mixed_precision

NUM_OUTPUTS = 91
CONTIGUOUS = np.zeros(NUM_OUTPUTS, np.uint8)
CONTIGUOUS[COCO_IDS] = np.arange(len(COCO_IDS))
AP_MIN_SCORE = 0.05


def paint(
    masks: Masks,
    classes_N: np.ndarray,
    scores_N: np.ndarray,
    threshold: float,
    ignore_below: float | None = None,
) -> np.ndarray:
    """Class map uint8 [H, W] of instances (masks, contiguous classes 1..80, scores). Instances with a score of at
    least `threshold` are painted in ascending order of score; of equal scores, the one listed first is painted last.
    Other pixels are background, 0. With `ignore_below`, pixels that are covered only by instances with `ignore_below`
    <= score < `threshold` are 255 (ignore): there may be an object."""
    label = np.zeros(masks.size, np.uint8)
    for index in np.argsort(-scores_N, kind="stable")[::-1]:
        within_box = label[masks.windows[index]]
        if scores_N[index] >= threshold:
            within_box[masks.inside[index]] = classes_N[index]
        elif ignore_below is not None and scores_N[index] >= ignore_below:
            within_box[masks.inside[index]] = 255
    return label


def paint_scores(masks: Masks, scores_N: np.ndarray, threshold: float, ignore_below: float | None = None) -> np.ndarray:
    """Confidence of each pixel of `paint`, uint8 [H, W], 255 for a score of 1. A painted pixel has the score of its
    instance. A background pixel has 1 minus the highest score of the instances below the threshold that cover it. An
    ignored pixel has 0."""
    doubt = np.zeros(masks.size, np.float32)
    score, painted = doubt.copy(), np.zeros(masks.size, bool)
    for index in np.argsort(-scores_N, kind="stable")[::-1]:
        window, inside, is_painted = masks.windows[index], masks.inside[index], scores_N[index] >= threshold
        plane = score if is_painted else doubt
        plane[window][inside] = scores_N[index]
        painted[window] |= inside & is_painted
    unsure = np.zeros_like(painted) if ignore_below is None else doubt >= ignore_below
    background = np.where(unsure, 0.0, 1 - doubt)
    return np.rint(255 * np.clip(np.where(painted, score, background), 0, 1)).astype(np.uint8)


def small_mask_rcnn(options: SmallMaskRCNNOptions, **common: Any) -> MaskRCNN:
    """torchvision's MaskRCNN with a small encoder and small heads; `common` is passed to MaskRCNN."""
    width = options.fpn_channels
    levels = ["0", "1", "2", "3"]
    anchors = AnchorGenerator(tuple((side,) for side in options.anchors_px), ((0.5, 1.0, 2.0),) * 4)

    def align(grid: int) -> MultiScaleRoIAlign:
        return MultiScaleRoIAlign(levels, grid, 2, canonical_scale=options.canonical_px, canonical_level=4)

    return MaskRCNN(
        EncoderWithFPN(options.encoder, options.encoder_options, options.fpn_channels),
        rpn_anchor_generator=anchors,
        rpn_head=RPNHead(width, anchors.num_anchors_per_location()[0]),
        rpn_pre_nms_top_n_train=2 * options.proposals_train,
        rpn_pre_nms_top_n_test=2 * options.proposals,
        rpn_post_nms_top_n_train=options.proposals_train,
        rpn_post_nms_top_n_test=options.proposals,
        rpn_batch_size_per_image=options.rpn_regions,
        box_roi_pool=align(options.box_grid),
        box_head=TwoMLPHead(width * options.box_grid**2, options.box_features),
        box_predictor=FastRCNNPredictor(options.box_features, NUM_OUTPUTS),
        box_batch_size_per_image=options.regions,
        mask_roi_pool=align(options.mask_grid),
        mask_head=MaskRCNNHeads(width, (width,) * options.mask_layers, 1),
        mask_predictor=MaskRCNNPredictor(width, width, NUM_OUTPUTS),
        **common,
    )


class ExactBoxCoder(BoxCoder):
    """torchvision's box coder, in float32 also under autocast: in bf16, coordinates near 1000 are 4 pixels apart."""

    def decode_single(self, rel_codes: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        return super().decode_single(rel_codes.float(), boxes)


class MaskRCNNExpert(NetworkExpert):
    """Labels uint8 [H, W]: 0 background, 1..80 COCO's classes, 255 ignore if `ignore_below` is set; see `paint`. With
    `keep_scores` the label store gets uint8 [H, W, 2], class and score; see `paint_scores`."""

    task = "segmentation"
    Network = MaskRCNNOptions
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
            common["rpn_post_nms_top_n_test"] = options.proposals
            module = maskrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None, num_classes=NUM_OUTPUTS, **common)
        module.backbone.register_forward_hook(lambda _, __, maps: {name: finite(one) for name, one in maps.items()})
        for part in (module.rpn, module.roi_heads):
            part.box_coder = ExactBoxCoder(part.box_coder.weights, part.box_coder.bbox_xform_clip)
        own = module.transform
        module.transform = BoxTransform(own.min_size, own.max_size, own.image_mean, own.image_std)
        return module

    def computed_size(self, height: int, width: int) -> tuple[int, int]:
        scale = min(self.network.min_side_px / min(height, width), self.network.max_side_px / max(height, width))
        return round(height * scale), round(width * scale)

    def batch_key(self, height: int, width: int) -> tuple[int, int]:
        """Size to which torchvision pads an image, alone as in a batch: multiples of 32."""
        scale = min(self.network.min_side_px / min(height, width), self.network.max_side_px / max(height, width))
        return math.ceil(int(height * scale) / 32) * 32, math.ceil(int(width * scale) / 32) * 32

    def train_size(self) -> tuple[int, int] | None:
        # the small network is trained at its input size, not at that of the renders
        return (self.network.min_side_px,) * 2 if self.network.architecture == "small" else None

    def shared(self) -> dict[str, nn.Module]:
        return {"body": self.module.backbone.body, "fpn": self.module.backbone.fpn}

    def loss(self, batch: dict[str, torch.Tensor], generator: torch.Generator) -> torch.Tensor:
        targets = list(map(instance_targets, batch["instance"], batch["instance_class"]))
        return sum(self.module(list(batch["image"]), targets).values())

    def label(self, images: list[torch.Tensor]) -> list[np.ndarray]:
        return [label[..., 0] if self.network.keep_scores else label for label, _ in self._label_rows(images)]

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
        for image_CHW, output in zip(images, self.module([image / 255 for image in images]), strict=True):
            known = torch.from_numpy(CONTIGUOUS > 0).to(output["labels"].device)[output["labels"]]
            output = {name: tensor[known] for name, tensor in output.items()}  # ten ids are not used by COCO
            masks = masks_in_boxes(output, image_CHW.shape[-2:], options.mask_threshold)
            ids_N = output["labels"].cpu().numpy()
            scores_N = output["scores"].float().cpu().numpy()
            label = paint(masks, CONTIGUOUS[ids_N], scores_N, options.score_threshold, options.ignore_below)
            if options.keep_scores:
                score = paint_scores(masks, scores_N, options.score_threshold, options.ignore_below)
                label = np.stack([label, score], axis=-1)
            extras = {"instances": coco_results(output, masks.whole())} if options.keep_instances else {}
            rows.append((label, extras))
        return rows

    def own_quality(self, renders: Path) -> dict[str, float]:
        """Average precision of boxes and masks, see `average_precision`."""
        data = read_renders(renders, ("image", "instance", "instance_class"))
        outputs, score_threshold = [], self.module.roi_heads.score_thresh
        self.module.roi_heads.score_thresh = AP_MIN_SCORE
        with torch.inference_mode(), mixed_precision(self.precision):
            for start in range(0, len(data["image"]), 32):
                pixels = to_device(data["image"][start : start + 32], self.device)
                found = self.module(list(pixels.permute(0, 3, 1, 2).float() / 255))
                size = tuple(pixels.shape[1:3])
                outputs += [one | {"masks": paste_masks_in_image(one["masks"], one["boxes"], size)} for one in found]
        self.module.roi_heads.score_thresh = score_threshold
        return average_precision(data, outputs, self.network.mask_threshold)


def instance_targets(instance_HW: torch.Tensor, classes_M: torch.Tensor) -> dict[str, torch.Tensor]:
    """torchvision's training target: boxes at pixel edges, COCO ids, masks; without objects of fewer than 12 pixels.
    instance_HW: 0 = none. classes_M: class 1..80 of instance i in column i - 1."""
    numbers_M = torch.arange(1, len(classes_M) + 1, device=instance_HW.device)
    masks_NHW = instance_HW == numbers_M[:, None, None]
    visible = (masks_NHW.sum((1, 2)) >= MIN_VISIBLE_PX) & (classes_M > 0)
    masks_NHW, classes_N = masks_NHW[visible], classes_M[visible]
    height, width = instance_HW.shape
    columns, rows = masks_NHW.any(1).to(torch.uint8), masks_NHW.any(2).to(torch.uint8)
    edges = [columns.argmax(1), rows.argmax(1), width - columns.flip(1).argmax(1), height - rows.flip(1).argmax(1)]
    return {
        "boxes": torch.stack(edges, dim=1).float(),
        "labels": torch.from_numpy(COCO_IDS).to(classes_N.device)[classes_N.long()],
        "masks": masks_NHW.to(torch.uint8),
    }


PLUGIN = MaskRCNNExpert
