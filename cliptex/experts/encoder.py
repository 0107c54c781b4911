"""timm encoder with a feature pyramid, the body of the networks trained here.

Shape suffixes: B batch, C channels, H height, W width.
"""

from typing import Any

import timm
import torch
from torch import nn
from torchvision.ops import FeaturePyramidNetwork


class EncoderWithFPN(nn.Module):
    """timm encoder `body` and feature pyramid `fpn`: maps "0" to "3" at 1/4 to 1/32 of the image.

    encoder: timm architecture with features at these scales, `options` its keyword arguments. channels: of each map.
    """

    def __init__(self, encoder: str, options: dict[str, Any], channels: int):
        super().__init__()
        self.body = timm.create_model(encoder, features_only=True, out_indices=(1, 2, 3, 4), **options)
        self.fpn = FeaturePyramidNetwork(self.body.feature_info.channels(), channels)
        self.out_channels = channels

    def maps(self, images_BCHW: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.fpn({str(level): feature for level, feature in enumerate(self.body(images_BCHW))})

    def forward(self, images_BCHW: torch.Tensor) -> Any:
        """The maps by name; subclasses with a head return its output."""
        return self.maps(images_BCHW)
