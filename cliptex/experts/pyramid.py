"""Any of the three tasks by a feature pyramid and one convolution (Kirillov et al. 2019, "Panoptic feature pyramid
networks", in its simplest form): a second implementation beside Mask R-CNN, DPT and NLL-AngMF.

Also an expert that knows only some classes, for studies of how its classes and a benchmark's overlap.
Shape suffixes: B batch, C channels, H height, W width; h x w a quarter of the network's input.
"""

from typing import Any, Literal

import numpy as np
import timm
import torch
from pydantic import Field
from torch import nn
from torch.nn import functional
from torchvision.ops import FeaturePyramidNetwork

from cliptex.benchmarks.coco_names import coco_categories
from cliptex.config import Positive, Section
from cliptex.core.errors import CliptexError
from cliptex.experts.backbone import NUM_CLASSES, depth_loss, normals_loss, segmentation_loss
from cliptex.experts.network import IMAGENET_MEAN, IMAGENET_STD, NetworkExpert, normalise, seen_together, to_host
from cliptex.tasks.angular_mf import norm_normalize

CHANNELS = {"segmentation": NUM_CLASSES, "depth": 1, "normals": 4}
TARGETS = {"segmentation": ("instance", "instance_class"), "depth": ("depth",), "normals": ("normals",)}


class Network(Section):
    """Options of the expert `pyramid`."""

    task: Literal["segmentation", "depth", "normals"]
    """Which labels it makes."""
    encoder: str = "cliptex_resnet"
    """timm architecture with features at 1/4, 1/8, 1/16 and 1/32."""
    encoder_options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments for timm."""
    channels: Positive = 64
    """Channels of the pyramid."""
    input_size_px: Positive = 96
    """Side of the square that the network sees."""
    classes: list[str] | None = None
    """COCO classes that it learns, where it segments; the others are background to it. All when null."""


class PyramidNetwork(nn.Module):
    """timm encoder, feature pyramid, one 1x1 convolution on its finest map: [B, channels, h, w], float32."""

    def __init__(self, options: Network):
        super().__init__()
        self.body = timm.create_model(
            options.encoder, features_only=True, out_indices=(1, 2, 3, 4), **options.encoder_options
        )
        self.fpn = FeaturePyramidNetwork(self.body.feature_info.channels(), options.channels)
        self.head = nn.Conv2d(options.channels, CHANNELS[options.task], 1)

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        features = {str(level): feature for level, feature in enumerate(self.body(images_BCHW))}
        return self.head(self.fpn(features)["0"]).float()


class PyramidExpert(NetworkExpert):
    """Labels as those of `mask_rcnn`, `dpt` or `nll_angmf`, by `network.task`; the image is squashed to a square."""

    Network = Network
    size_options = ("encoder",)

    def __init__(self, settings: dict[str, Any]):
        super().__init__(settings)
        self.task, self.targets = self.network.task, TARGETS[self.network.task]
        number = {name: index + 1 for index, (_, name, _) in enumerate(coco_categories())}
        wanted = list(number) if self.network.classes is None else self.network.classes
        if unknown := [name for name in wanted if name not in number]:
            raise CliptexError(f"experts.*.network.classes: {unknown[0]!r} is no class of COCO")
        self._known = torch.zeros(NUM_CLASSES, dtype=torch.bool)
        self._known[[0, *(number[name] for name in wanted)]] = True

    def build(self) -> nn.Module:
        return PyramidNetwork(self.network)

    def shared(self) -> dict[str, nn.Module]:
        return {"body": self.module.body, "fpn": self.module.fpn}

    def train_size(self) -> tuple[int, int]:
        return self.network.input_size_px, self.network.input_size_px

    def loss(self, batch: dict[str, torch.Tensor], generator: torch.Generator) -> torch.Tensor:
        out_BChw = self.module(normalise(batch["image"], IMAGENET_MEAN, IMAGENET_STD))
        if self.task == "depth":
            return depth_loss(out_BChw[:, 0], batch)
        if self.task == "normals":
            return normals_loss(out_BChw, batch)
        classes = batch["instance_class"]
        known = self._known.to(classes.device)[classes.long()]
        return segmentation_loss(out_BChw, batch | {"instance_class": torch.where(known, classes, 0)})

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        return self.train_size()  # whatever the image's

    def label(self, images: list[torch.Tensor]) -> list[np.ndarray]:
        seen_BCHW = normalise(seen_together(images, self.train_size()), IMAGENET_MEAN, IMAGENET_STD)
        answers = zip(self.module(seen_BCHW), images, strict=True)
        return to_host([self._own_frame(out_Chw, image_CHW.shape[-2:]) for out_Chw, image_CHW in answers])

    def _own_frame(self, out_Chw: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """The network's answer as a label of this height and width."""
        out_CHW = functional.interpolate(out_Chw[None], size=size, mode="bilinear", align_corners=False)[0]
        if self.task == "depth":
            return out_CHW[0]
        if self.task == "normals":
            return norm_normalize(out_CHW[None])[0].permute(1, 2, 0).contiguous()
        known_C11 = self._known.to(out_CHW.device)[:, None, None]
        return out_CHW.masked_fill(~known_C11, -torch.inf).argmax(dim=0).to(torch.uint8)


PLUGIN = PyramidExpert
