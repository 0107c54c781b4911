"""ESPNetv2 as an expert from outside the package: a small published segmentation network (0.8 million parameters).

Mehta et al., "ESPNetv2: A Light-Weight, Power Efficient, and General Purpose Convolutional Neural Network", CVPR 2019
(arXiv 1811.11431); the decoder is the one of the authors' repository sacmehta/EdgeNets (MIT licence), which the paper
does not have. Modules bear the names of that repository, since its weights do.
"""

import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from cliptex.experts.network import NetworkExpert, finite, normalise, resized_batch

SIDE = 256
"""Height and width of the network's input, pixels: those of its training."""
COCO_OF_VOC = (0, 5, 2, 15, 9, 40, 6, 3, 16, 57, 20, 61, 17, 18, 4, 1, 59, 19, 58, 7, 63)
"""VOC's 21 outputs (0 background) as COCO's classes 1..80 in official order."""
BRANCHES = 4
"""Parallel dilated convolutions of an EESP unit."""
WIDTHS = (32, 128, 256, 512)
"""Channels of the encoder at 1/2, 1/4, 1/8 and 1/16 of the input's size, for s = 2.0."""
DILATIONS = (1, 2, 3, 4)
"""Of the branches, whose kernels span 3, 5, 7 and 9 pixels."""
LAST_DILATIONS = (1, 1, 2, 3)
"""The same in the units at 1/16, where no kernel spans more than 7 pixels."""
DECODER_WIDTHS = (64, 48, 32, 21)
PYRAMID_SCALES = (2.0, 1.5, 1.0, 0.5, 0.1)
PYRAMID_CHANNELS = 10
LEAST_SIDE = 5
"""Smallest side of a map in the pyramid, pixels."""


def convolution(inputs: int, outputs: int, side: int, stride: int = 1, groups: int = 1, dilation: int = 1) -> nn.Conv2d:
    padding = side // 2 * dilation
    return nn.Conv2d(inputs, outputs, side, stride, padding, dilation, groups, bias=False)


class Unit(nn.Module):
    """Convolution, batch norm and PReLU, each of them optional, under their names in the encoder's weights."""

    def __init__(self, conv: nn.Conv2d | None = None, norm: int = 0, act: int = 0):
        super().__init__()
        if conv is not None:
            self.conv = conv
        if norm:
            self.bn = nn.BatchNorm2d(norm)
        if act:
            self.act = nn.PReLU(act)

    def forward(self, maps_BCHW: torch.Tensor) -> torch.Tensor:
        for module in self.children():
            maps_BCHW = module(maps_BCHW)
        return maps_BCHW


class Eesp(nn.Module):
    """Extremely efficient spatial pyramid of dilated depthwise convolutions: reduce, split, transform, merge."""

    def __init__(self, inputs: int, outputs: int, dilations: tuple[int, ...], stride: int = 1):
        super().__init__()
        branch = outputs // BRANCHES
        self.proj_1x1 = Unit(convolution(inputs, branch, 1, groups=BRANCHES), branch, branch)
        self.spp_dw = nn.ModuleList(
            Unit(convolution(branch, branch, 3, stride, branch, dilation)) for dilation in dilations
        )
        self.br_after_cat = Unit(norm=outputs, act=outputs)
        self.conv_1x1_exp = Unit(convolution(outputs, outputs, 1, groups=BRANCHES), outputs)
        self.module_act = nn.PReLU(outputs)  # unused where the unit reduces the size, but there in the weights
        self.reduces = stride > 1

    def forward(self, maps_BCHW: torch.Tensor) -> torch.Tensor:
        reduced = self.proj_1x1(maps_BCHW)
        branches: list[torch.Tensor] = []
        for branch in self.spp_dw:
            out = branch(reduced)
            branches.append(out + branches[-1] if branches else out)  # hierarchical feature fusion
        merged = self.conv_1x1_exp(self.br_after_cat(torch.cat(branches, dim=1)))
        return merged if self.reduces else self.module_act(merged + maps_BCHW)


class Downsampler(nn.Module):
    """Half the size: average pooling next to an EESP unit of stride 2, plus a path from the image itself."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.eesp = Eesp(inputs, outputs - inputs, DILATIONS, stride=2)
        self.inp_reinf = nn.Sequential(Unit(convolution(3, 3, 3), 3, 3), Unit(convolution(3, outputs, 1), outputs))
        self.act = nn.PReLU(outputs)

    def forward(self, maps_BCHW: torch.Tensor, images_BCHW: torch.Tensor) -> torch.Tensor:
        smaller = torch.cat([halve(maps_BCHW), self.eesp(maps_BCHW)], dim=1)
        while images_BCHW.shape[-1] > smaller.shape[-1]:
            images_BCHW = halve(images_BCHW)
        return self.act(smaller + self.inp_reinf(images_BCHW))


def halve(maps_BCHW: torch.Tensor) -> torch.Tensor:
    return functional.avg_pool2d(maps_BCHW, kernel_size=3, stride=2, padding=1)


class Encoder(nn.Module):
    """Maps at 1/2, 1/4, 1/8 and 1/16 of the image's size."""

    def __init__(self):
        super().__init__()
        first, second, third, fourth = WIDTHS
        self.level1 = Unit(convolution(3, first, 3, stride=2), first, first)
        self.level2_0 = Downsampler(first, second)
        self.level3_0 = Downsampler(second, third)
        self.level3 = nn.Sequential(*(Eesp(third, third, DILATIONS) for _ in range(3)))
        self.level4_0 = Downsampler(third, fourth)
        self.level4 = nn.Sequential(*(Eesp(fourth, fourth, LAST_DILATIONS) for _ in range(7)))

    def forward(self, images_BCHW: torch.Tensor) -> list[torch.Tensor]:
        maps = [self.level1(images_BCHW)]
        maps.append(self.level2_0(maps[-1], images_BCHW))
        maps.append(self.level3(self.level3_0(maps[-1], images_BCHW)))
        maps.append(self.level4(self.level4_0(maps[-1], images_BCHW)))
        return maps


def norm_act(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(channels), nn.PReLU(channels))


class Named(nn.Module):
    """A sequence of modules under one more name, as the decoder's weights have it."""

    def __init__(self, name: str, *modules: nn.Module):
        super().__init__()
        setattr(self, name, nn.Sequential(*modules))

    def forward(self, maps_BCHW: torch.Tensor) -> torch.Tensor:
        for sequence in self.children():
            maps_BCHW = sequence(maps_BCHW)
        return maps_BCHW


def conv_norm_act(inputs: int, outputs: int, side: int, groups: int = 1) -> Named:
    return Named("cbr", convolution(inputs, outputs, side, groups=groups), *norm_act(outputs))


class Shuffle(nn.Module):
    """Channels of `groups` maps, one after the other, sorted by channel instead."""

    def __init__(self, groups: int):
        super().__init__()
        self.groups = groups

    def forward(self, maps_BCHW: torch.Tensor) -> torch.Tensor:
        return maps_BCHW.unflatten(1, (self.groups, -1)).transpose(1, 2).flatten(1, 2)


class EfficientPyramid(nn.Module):
    """Depthwise convolutions of the same map at five sizes, merged channel by channel."""

    def __init__(self, inputs: int, outputs: int, last: bool):
        super().__init__()
        channels, scales = PYRAMID_CHANNELS, len(PYRAMID_SCALES)
        self.projection_layer = conv_norm_act(inputs, channels, 1)
        self.stages = nn.ModuleList(convolution(channels, channels, 3, groups=channels) for _ in PYRAMID_SCALES)
        self.merge_layer = nn.Sequential(
            Named("br", *norm_act(channels * scales)),
            Shuffle(scales),
            conv_norm_act(channels * scales, channels, 3, groups=channels),
            nn.Conv2d(channels, outputs, 1, bias=last),
        )
        self.br = nn.Identity() if last else Named("br", *norm_act(outputs))

    def forward(self, maps_BCHW: torch.Tensor) -> torch.Tensor:
        maps_BCHW = self.projection_layer(maps_BCHW)
        size = maps_BCHW.shape[-2:]
        out = []
        for scale, stage in zip(PYRAMID_SCALES, self.stages, strict=True):
            scaled = [max(math.ceil(side * scale), LEAST_SIDE) for side in size]
            if scale > 1:
                out.append(functional.adaptive_avg_pool2d(stage(upsample(maps_BCHW, scaled)), size))
            elif scale < 1:
                out.append(upsample(stage(functional.adaptive_avg_pool2d(maps_BCHW, scaled)), size))
            else:
                out.append(stage(maps_BCHW))
        return self.br(self.merge_layer(torch.cat(out, dim=1)))


def upsample(maps_BCHW: torch.Tensor, size: list[int] | torch.Size) -> torch.Tensor:
    return functional.interpolate(maps_BCHW, size=tuple(size), mode="bilinear", align_corners=True)


class Lateral(nn.Module):
    """An encoder's map for the decoder: a grouped convolution, weighted by channel from the map's mean."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.wt_layer = nn.Sequential(nn.AdaptiveAvgPool2d(1), convolution(inputs, outputs, 1), nn.Sigmoid())
        self.expansion_layer = conv_norm_act(inputs, outputs, 3, groups=math.gcd(inputs, outputs))

    def forward(self, maps_BCHW: torch.Tensor) -> torch.Tensor:
        return self.expansion_layer(maps_BCHW) * self.wt_layer(maps_BCHW)


class Espnetv2(nn.Module):
    """Normalised images [B, 3, H, W], sides multiples of 16 -> logits of VOC's 21 classes [B, 21, H, W]."""

    def __init__(self):
        super().__init__()
        self.base_net = Encoder()
        widths, encoder_widths = DECODER_WIDTHS, WIDTHS[::-1]
        for level in range(1, 5):
            inputs = encoder_widths[0] if level == 1 else widths[level - 2]
            setattr(self, f"bu_dec_l{level}", EfficientPyramid(inputs, widths[level - 1], last=level == 4))
            if level > 1:
                setattr(self, f"merge_enc_dec_l{level}", Lateral(encoder_widths[level - 1], widths[level - 2]))
                setattr(self, f"bu_br_l{level}", norm_act(widths[level - 2]))

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        *finer, coarsest = self.base_net(images_BCHW)
        maps = self.bu_dec_l1(coarsest)
        for level, lateral in enumerate(reversed(finer), start=2):
            maps = upsample(maps, lateral.shape[-2:]) + getattr(self, f"merge_enc_dec_l{level}")(lateral)
            maps = getattr(self, f"bu_dec_l{level}")(getattr(self, f"bu_br_l{level}")(maps))
        return upsample(maps, images_BCHW.shape[-2:])


class Espnetv2Expert(NetworkExpert):
    """Labels uint8 [H, W]: COCO's classes 1..80, of which the network knows VOC's 20; 0 background. The image is
    squashed to a square."""

    task = "segmentation"

    def build(self) -> nn.Module:
        return Espnetv2()

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        return SIDE, SIDE

    def label(self, images: list[torch.Tensor]) -> list[np.ndarray]:
        logits_BCHW = finite(self.module(normalise(resized_batch(images, (SIDE, SIDE)))))
        labels = []
        for image_CHW, logits_CHW in zip(images, logits_BCHW, strict=True):
            logits_CHW = functional.interpolate(logits_CHW[None], image_CHW.shape[-2:], mode="bilinear")[0]
            labels.append(np.array(COCO_OF_VOC, np.uint8)[logits_CHW.argmax(dim=0).cpu().numpy()])
        return labels
