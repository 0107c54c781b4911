"""Mask R-CNN (He et al. 2017) from torchvision, on a feature pyramid.

Shapes: B images, C channels, h x w the encoder's map, R regions.
"""

from typing import Any

import torch
from torch import nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign

from cliptex.evaluation.probes import detection as protocol
from cliptex.evaluation.probes.heads.pyramid import CELL, Anchors, Pyramid, frames


class BoxPredictor(nn.Module):
    """Scores of all classes, and one class-agnostic box, for small data sets."""

    def __init__(self, units: int, num_classes: int):
        super().__init__()
        self.num_classes = num_classes
        self.scores = nn.Linear(units, num_classes)
        self.box = nn.Linear(units, 4)

    def forward(self, regions_RC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.scores(regions_RC), self.box(regions_RC).repeat(1, self.num_classes)


class MaskPredictor(nn.Module):
    """One class-agnostic mask, at twice the side of the regions."""

    def __init__(self, channels: int, num_classes: int):
        super().__init__()
        self.num_classes = num_classes
        self.up = nn.ConvTranspose2d(channels, channels, 2, 2)
        self.mask = nn.Conv2d(channels, 1, 1)

    def forward(self, regions_RChw: torch.Tensor) -> torch.Tensor:
        return self.mask(torch.relu(self.up(regions_RChw))).expand(-1, self.num_classes, -1, -1)


class MaskRCNNDetector(nn.Module):
    """Mask R-CNN on feature maps instead of images."""

    def __init__(self, channels_in: int, num_classes: int, options: protocol.MaskRCNN):
        super().__init__()
        channels, strides = options.channels, options.strides
        levels = [str(level) for level in range(len(strides))]
        pools = [
            MultiScaleRoIAlign(
                levels,
                size,
                sampling_ratio=1,
                canonical_scale=options.canonical_px,
                canonical_level=CELL.bit_length() - 1,
            )
            for size in (options.box_grid, options.mask_grid)
        ]
        classes = num_classes + 1
        if options.class_agnostic:
            box_predictor = BoxPredictor(options.box_units, classes)
            mask_predictor = MaskPredictor(channels, classes)
        else:
            box_predictor = FastRCNNPredictor(options.box_units, classes)
            mask_predictor = MaskRCNNPredictor(channels, channels, classes)
        self.network = MaskRCNN(
            Pyramid(channels_in, channels, strides),
            rpn_anchor_generator=Anchors(
                strides, [(options.anchor_scale * stride,) for stride in strides], (0.5, 1.0, 2.0)
            ),
            rpn_pre_nms_top_n_train=4 * options.proposals,
            rpn_pre_nms_top_n_test=4 * options.proposals,
            rpn_post_nms_top_n_train=options.proposals,
            rpn_post_nms_top_n_test=options.proposals,
            rpn_batch_size_per_image=options.anchors,
            box_roi_pool=pools[0],
            box_head=TwoMLPHead(channels * options.box_grid**2, options.box_units),
            box_predictor=box_predictor,
            box_batch_size_per_image=options.rois,
            box_detections_per_img=options.detections,
            box_score_thresh=options.score_threshold,
            mask_roi_pool=pools[1],
            mask_head=MaskRCNNHeads(channels, (channels,) * options.mask_layers, 1),
            mask_predictor=mask_predictor,
        )

    def forward(self, features_BChw: torch.Tensor, targets: list[dict[str, torch.Tensor]] | None = None) -> Any:
        """In training mode a dictionary of losses, else a list of {boxes, labels, scores, masks} in the frame."""
        images = frames(features_BChw)
        maps = self.network.backbone(features_BChw)
        proposals, rpn_losses = self.network.rpn(images, maps, targets)
        detections, losses = self.network.roi_heads(maps, proposals, images.image_sizes, targets)
        return rpn_losses | losses if self.training else detections
