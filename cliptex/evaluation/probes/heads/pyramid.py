"""A simple feature pyramid (Li et al. 2022, "Exploring plain vision transformer backbones for object detection").

A plain vision transformer has a single map; detectors need several strides. Boxes are in a virtual frame in which a
cell of the encoder's map is `CELL` pixels wide, for any patch size: torchvision rounds the strides of its region
pooling to powers of two, which would misplace every region for patches of 12 or 14 pixels.

Shapes: B images, C channels, h x w the encoder's map.
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

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
        self.fine = nn.ModuleDict(
            {str(stride): _upsampling(channels_in, channels, CELL // stride) for stride in strides}
        )
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
