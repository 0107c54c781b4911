"""Mask R-CNN (He et al. 2017) and SSD (Liu et al. 2016) from torchvision, on a simple feature pyramid.

The pyramid (Li et al. 2022, "Exploring plain vision transformer backbones for object detection"): a plain vision
transformer has a single map; detectors need several strides. Boxes are in a virtual frame in which a cell of the
encoder's map is `CELL` pixels wide, for any patch size: torchvision rounds the strides of its region pooling to powers
of two, which would misplace every region for patches of 12 or 14 pixels.

Shapes: B images, C channels, h x w the encoder's map, R regions.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.ssd import SSD, SSDHead
from torchvision.ops import MultiScaleRoIAlign, box_iou

from cliptex.evaluation.probes import detection as protocol

CELL = 16
Frame = tuple[int, int]
"""Height and width, pixels of the frame."""


def frame_of(grid: Sequence[int]) -> Frame:
    """The frame of a map with `grid` rows and columns."""
    return CELL * grid[0], CELL * grid[1]


class Pyramid(nn.Module):
    """A map [B, C, h, w] to one map with `channels` channels per stride, by name "0", "1", ... from fine to coarse.

    Strides below `CELL` use transposed convolutions, stride `CELL` a 1x1 convolution, and coarser strides pool its map.
    """

    def __init__(self, channels_in: int, channels: int, strides: Sequence[int]):
        super().__init__()
        self.out_channels, self.strides = channels, tuple(strides)
        finer = {str(stride): _upsampling(channels_in, channels, CELL // stride) for stride in strides}
        self.fine = nn.ModuleDict(finer)
        self.same = _normed(nn.Conv2d(channels_in, channels, 1), channels)
        self.smooth = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in strides)

    def forward(self, features_BChw: torch.Tensor) -> OrderedDict[str, torch.Tensor]:
        same = self.same(features_BChw)
        maps = OrderedDict()
        for level, (stride, smooth) in enumerate(zip(self.strides, self.smooth, strict=True)):
            if stride < CELL:
                level_map = self.fine[str(stride)](features_BChw)
            else:
                level_map = same
                for _ in range((stride // CELL).bit_length() - 1):
                    # ceil_mode keeps the last row of a map with an odd side
                    level_map = nn.functional.max_pool2d(level_map, 2, ceil_mode=True)
            maps[str(level)] = smooth(level_map)
        return maps


def _upsampling(channels_in: int, channels: int, factor: int) -> nn.Module:
    """Upsampling by `factor` (2 or 4); no layers for smaller factors."""
    layers = []
    while factor > 1:
        layers += _normed(nn.ConvTranspose2d(channels_in, channels, 2, 2), channels)
        channels_in, factor = channels, factor // 2
    return nn.Sequential(*layers)


def _normed(layer: nn.Module, channels: int) -> nn.Sequential:
    return nn.Sequential(layer, nn.GroupNorm(1, channels), nn.ReLU())


class Anchors(AnchorGenerator):
    """torchvision's anchors at given strides; its own generator infers them, wrongly for maps with an odd side."""

    def __init__(self, strides: Sequence[int], sizes: Sequence[tuple[float, ...]], ratios: tuple[float, ...]):
        super().__init__(tuple(sizes), (ratios,) * len(sizes))
        self.strides = tuple(strides)

    def forward(self, images: ImageList, maps: list[torch.Tensor]) -> list[torch.Tensor]:
        dtype, device = maps[0].dtype, maps[0].device
        self.set_cell_anchors(dtype, device)
        strides = [[torch.tensor(stride, device=device)] * 2 for stride in self.strides]
        anchors = torch.cat(self.grid_anchors([level_map.shape[-2:] for level_map in maps], strides))
        return [anchors] * len(images.image_sizes)


def frames(features_BChw: torch.Tensor) -> ImageList:
    """Placeholder images for torchvision, which only uses their shape."""
    count, frame = len(features_BChw), frame_of(features_BChw.shape[2:])
    return ImageList(features_BChw.new_zeros(1).expand(count, 3, *frame), [frame] * count)


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
