"""SSD (Liu et al. 2016) from torchvision, on a feature pyramid.

Shapes: B images, C channels, h x w the encoder's map.
"""

from typing import Any

import numpy as np
import torch
from torch import nn
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD, SSDHead
from torchvision.ops import box_iou

from cliptex.evaluation.probes import detection as protocol
from cliptex.evaluation.probes.heads.pyramid import Pyramid, frames


class SSDDetector(nn.Module):
    """SSD on feature maps instead of images."""

    def __init__(self, channels_in: int, num_classes: int, options: protocol.SSD):
        super().__init__()
        levels = len(options.strides)
        # levels + 1: each level has a second square box, between its side and that of the next level
        sides = np.geomspace(*options.scales, levels + 1).tolist()
        ratios = [list(options.aspect_ratios)] * levels
        boxes = DefaultBoxGenerator(ratios, scales=sides, steps=list(options.strides), clip=False)
        head = SSDHead([options.channels] * levels, boxes.num_anchors_per_location(), num_classes + 1)
        self.network = SSD(
            Pyramid(channels_in, options.channels, options.strides),
            boxes,
            size=(1, 1),  # unused: there are no images
            num_classes=num_classes + 1,
            head=head,
            score_thresh=options.score_threshold,
            nms_thresh=options.suppression,
            detections_per_img=options.detections,
            iou_thresh=options.iou,
            positive_fraction=1 / (1 + options.negatives),
        )

    def forward(self, features_BChw: torch.Tensor, targets: list[dict[str, torch.Tensor]] | None = None) -> Any:
        """In training mode a dictionary of losses, else a list of {boxes, labels, scores} in the frame."""
        images, network = frames(features_BChw), self.network
        maps = list(network.backbone(features_BChw).values())
        outputs = network.head(maps)
        boxes = network.anchor_generator(images, maps)
        if not self.training:
            return network.postprocess_detections(outputs, boxes, images.image_sizes)
        matches = [
            network.proposal_matcher(box_iou(target["boxes"], default_boxes))
            if len(target["boxes"])
            else torch.full((len(default_boxes),), -1, device=default_boxes.device)
            for target, default_boxes in zip(targets, boxes, strict=True)
        ]
        return network.compute_loss(targets, outputs, boxes, matches)
