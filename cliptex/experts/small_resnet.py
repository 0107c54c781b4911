"""A small ResNet, registered with timm as `cliptex_resnet`: the encoder of the miniature's experts."""

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, ResNet
from torch import nn

default_cfgs = generate_default_cfgs({"cliptex_resnet": {}})


@register_model
def cliptex_resnet(pretrained: bool = False, **options: Any) -> nn.Module:
    """timm's ResNet with one block per stage and few channels: 0.5 M parameters, for images of 64 to 128 pixels."""
    small = {
        "block": BasicBlock,
        "layers": (1, 1, 1, 1),
        "channels": (32, 64, 96, 128),
        "stem_type": "deep",
        "stem_width": 12,
    }
    return build_model_with_cfg(ResNet, "cliptex_resnet", pretrained, **small | options)
