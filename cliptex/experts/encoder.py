"""timm encoder with a feature pyramid, the body of the networks trained here, and timm's `cliptex_resnet`.

Shape suffixes: B batch, C channels, H height, W width.
"""

from typing import Any

import timm
import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, ResNet
from torch import nn
from torchvision.ops import FeaturePyramidNetwork

default_cfgs = generate_default_cfgs({"cliptex_resnet": {}})


@register_model
def cliptex_resnet(pretrained: bool = False, **options: Any) -> nn.Module:
    """timm's ResNet with one block per stage and few channels: 0.5 M parameters, for images of 64 to 128 pixels."""
    small = {"block": BasicBlock, "layers": (1, 1, 1, 1), "channels": (32, 64, 96, 128)}
    small |= {"stem_type": "deep", "stem_width": 12}
    return build_model_with_cfg(ResNet, "cliptex_resnet", pretrained, **small | options)


class EncoderWithFPN(nn.Module):
    """timm encoder `body` and feature pyramid `fpn`: maps "0" to "3" at 1/4 to 1/32 of the image. encoder: timm
    architecture with features at these scales, `options` its keyword arguments. channels: of each map."""

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
