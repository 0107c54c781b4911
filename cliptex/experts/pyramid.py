"""Any of the three tasks by a feature pyramid and one convolution, the simplest form of Kirillov et al. 2019, "Panoptic
feature pyramid networks": an alternative to Mask R-CNN, DPT and NLL-AngMF.

It can be restricted to some classes, for studies of how the expert's classes and a benchmark's overlap.
Shape suffixes: B batch, C channels, H height, W width; h x w a quarter of the network's input.
"""

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from cliptex.benchmarks.coco_names import coco_categories
from cliptex.core.errors import CliptexError
from cliptex.experts.backbone import NUM_CLASSES, depth_loss, normals_loss, segmentation_loss
from cliptex.experts.encoder import EncoderWithFPN
from cliptex.experts.network import NetworkExpert, finite, normalise, resized_batch, to_host
from cliptex.experts.options import PyramidOptions
from cliptex.tasks.angular_mf import norm_normalize

CHANNELS = {"segmentation": NUM_CLASSES, "depth": 1, "normals": 4}
TARGETS = {"segmentation": ("instance", "instance_class"), "depth": ("depth",), "normals": ("normals",)}


class PyramidNetwork(EncoderWithFPN):
    """Encoder, feature pyramid and one 1x1 convolution on its finest map: [B, channels, h, w], float32."""

    def __init__(self, options: PyramidOptions):
        super().__init__(options.encoder, options.encoder_options, options.channels)
        self.head = nn.Conv2d(options.channels, CHANNELS[options.task], 1)

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        return self.head(self.maps(images_BCHW)["0"]).float()


class PyramidExpert(NetworkExpert):
    """Labels like those of `mask_rcnn`, `dpt` or `nll_angmf`, by `network.task`. The image is squashed to a square."""

    Network = PyramidOptions

    def __init__(self, settings: dict[str, Any]):
        super().__init__(settings)
        self.task, self.targets = self.network.task, TARGETS[self.network.task]
        number = {name: index + 1 for index, (_, name, _) in enumerate(coco_categories())}
        classes = list(number) if self.network.classes is None else self.network.classes
        if unknown := [name for name in classes if name not in number]:
            raise CliptexError(f"experts.*.network.classes: {unknown[0]!r} is not a COCO class")
        self._known = torch.zeros(NUM_CLASSES, dtype=torch.bool)
        self._known[[0, *(number[name] for name in classes)]] = True

    def build(self) -> nn.Module:
        return PyramidNetwork(self.network)

    def shared(self) -> dict[str, nn.Module]:
        return {"body": self.module.body, "fpn": self.module.fpn}

    def train_size(self) -> tuple[int, int]:
        return self.network.input_size_px, self.network.input_size_px

    def loss(self, batch: dict[str, torch.Tensor], generator: torch.Generator) -> torch.Tensor:
        out_BChw = self.module(normalise(batch["image"]))
        if self.task == "depth":
            return depth_loss(out_BChw[:, 0], batch)
        if self.task == "normals":
            return normals_loss(out_BChw, batch)
        classes = batch["instance_class"]
        known = self._known.to(classes.device)[classes.long()]
        return segmentation_loss(out_BChw, batch | {"instance_class": torch.where(known, classes, 0)})

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        return self.train_size()  # independent of the image's size

    def label(self, images: list[torch.Tensor]) -> list[np.ndarray]:
        inputs_BCHW = normalise(resized_batch(images, self.train_size()))
        outputs = zip(finite(self.module(inputs_BCHW)), images, strict=True)
        return to_host([self._to_label(out_Chw, image_CHW.shape[-2:]) for out_Chw, image_CHW in outputs])

    def _to_label(self, out_Chw: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """The network's output as a label of this height and width."""
        out_CHW = functional.interpolate(out_Chw[None], size=size, mode="bilinear", align_corners=False)[0]
        if self.task == "depth":
            return out_CHW[0]
        if self.task == "normals":
            return norm_normalize(out_CHW[None])[0].permute(1, 2, 0).contiguous()
        known_C11 = self._known.to(out_CHW.device)[:, None, None]
        return out_CHW.masked_fill(~known_C11, -torch.inf).argmax(dim=0).to(torch.uint8)


PLUGIN = PyramidExpert
