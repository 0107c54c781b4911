"""The shared multi-scale module and the task heads: used in training, thrown away afterwards.

Shapes: B images, C encoder width, h x w the patch grid, D output channels of the module.
"""

import torch
import torch.nn.functional as F
from torch import nn


class PyramidPooling(nn.Module):
    """Pyramid pooling module (Zhao et al. 2017, section 3.2): [B, C, h, w] -> [B, D, h, w].

    Average-pooled maps of 1, 2, 3 and 6 cells a side are each projected by a 1x1 convolution, resized back,
    concatenated with the input and fused by a 3x3 convolution.
    """

    BINS = (1, 2, 3, 6)

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        branch = max(16, in_channels // 4 // 16 * 16)
        self.branches = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(bins), _conv(in_channels, branch, 1)) for bins in self.BINS
        )
        self.fuse = _conv(in_channels + len(self.BINS) * branch, out_channels, 3)

    def forward(self, features_BChw: torch.Tensor) -> torch.Tensor:
        size = features_BChw.shape[-2:]
        maps = [features_BChw]
        for branch in self.branches:
            maps.append(F.interpolate(branch(features_BChw), size=size, mode="bilinear", align_corners=False))
        return self.fuse(torch.cat(maps, dim=1))


def _conv(in_channels: int, out_channels: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


class DenseHeads(nn.Module):
    """One multi-scale module for all tasks and one light head (a 1x1 convolution) a task.

    channels: label store -> output channels of its task. prior_cells: side of the grid of a learned offset a place
    (see `cliptex.label_prior`), on top of which the heads start at zero; 0 for none.
    """

    def __init__(self, in_channels: int, channels: dict[str, int], multi_scale: str, width: int, prior_cells: int = 0):
        super().__init__()
        self.multi_scale = PyramidPooling(in_channels, width) if multi_scale == "ppm" else nn.Identity()
        out_channels = width if multi_scale == "ppm" else in_channels
        self.heads = nn.ModuleDict({store: nn.Conv2d(out_channels, n, 1) for store, n in channels.items()})
        self.priors = nn.ParameterDict()
        if prior_cells:
            for store, head in self.heads.items():
                self.priors[store] = nn.Parameter(torch.zeros(channels[store], prior_cells, prior_cells))
                nn.init.zeros_(head.weight)
                nn.init.zeros_(head.bias)

    def forward(self, features_BChw: torch.Tensor) -> dict[str, torch.Tensor]:
        """Dense features to raw predictions [B, channels, h, w] a store."""
        shared = self.multi_scale(features_BChw)
        out = {store: head(shared) for store, head in self.heads.items()}
        for store, prior in self.priors.items():
            out[store] = out[store] + F.interpolate(prior[None], size=shared.shape[-2:], mode="bilinear")
        return out
