"""A simple feature pyramid (Li et al. 2022, "Exploring plain vision transformer backbones for object detection").

A plain vision transformer has one map of one stride; detectors want several. Boxes live in a frame in which a cell of
the encoder's map is `CELL` pixels wide, whatever its patch size: torchvision rounds the strides of its region pooling
to powers of two, so that a patch of 12 or 14 pixels would misplace every region.

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
    """The frame of a map of `grid` rows and columns."""
    return CELL * grid[0], CELL * grid[1]


class Pyramid(nn.Module):
    """One map [B, C, h, w] to one a stride, each of `channels`, by name "0", "1", ... from fine to coarse.

    Strides below that of a cell are made by transposed convolutions, its own by a 1x1 convolution, coarser ones by
    pooling that.
    """

    def __init__(self, channels_in: int, channels: int, strides: Sequence[int]):
        super().__init__()
        self.out_channels, self.strides = channels, tuple(strides)
        self.fine = nn.ModuleDict(
            {str(stride): _enlarging(channels_in, channels, CELL // stride) for stride in strides}
        )
        self.same = _normed(nn.Conv2d(channels_in, channels, 1), channels)
        self.smooth = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in strides)

    def forward(self, features_BChw: torch.Tensor) -> OrderedDict[str, torch.Tensor]:
        same = self.same(features_BChw)
        maps = OrderedDict()
        for level, (stride, smooth) in enumerate(zip(self.strides, self.smooth, strict=True)):
            if stride < CELL:
                one = self.fine[str(stride)](features_BChw)
            else:
                one = same
                for _ in range((stride // CELL).bit_length() - 1):
                    # ceil_mode: a map of odd side keeps its last row
                    one = nn.functional.max_pool2d(one, 2, ceil_mode=True)
            maps[str(level)] = smooth(one)
        return maps


def _enlarging(channels_in: int, channels: int, factor: int) -> nn.Module:
    """To `factor` (2, 4) times the size; nothing for a factor below."""
    layers = []
    while factor > 1:
        layers += _normed(nn.ConvTranspose2d(channels_in, channels, 2, 2), channels)
        channels_in, factor = channels, factor // 2
    return nn.Sequential(*layers)


def _normed(layer: nn.Module, channels: int) -> nn.Sequential:
    return nn.Sequential(layer, nn.GroupNorm(1, channels), nn.ReLU())


class Anchors(AnchorGenerator):
    """torchvision's anchors at strides that are given; its own guesses them, wrongly for maps of odd side."""

    def __init__(self, strides: Sequence[int], sizes: Sequence[tuple[float, ...]], ratios: tuple[float, ...]):
        super().__init__(tuple(sizes), (ratios,) * len(sizes))
        self.strides = tuple(strides)

    def forward(self, images: ImageList, maps: list[torch.Tensor]) -> list[torch.Tensor]:
        like = maps[0]
        self.set_cell_anchors(like.dtype, like.device)
        strides = [[torch.tensor(stride, device=like.device)] * 2 for stride in self.strides]
        anchors = torch.cat(self.grid_anchors([one.shape[-2:] for one in maps], strides))
        return [anchors] * len(images.image_sizes)


def frames(features_BChw: torch.Tensor) -> ImageList:
    """What torchvision takes for images: only their shape is read."""
    count, frame = len(features_BChw), frame_of(features_BChw.shape[2:])
    return ImageList(features_BChw.new_zeros(1).expand(count, 3, *frame), [frame] * count)
