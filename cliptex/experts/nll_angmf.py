"""Surface normals with uncertainty by NLL-AngMF: Bae, Budvytis, Cipolla, ICCV 2021 (arXiv 2109.09881).

An image encoder, a decoder with skip connections, and pixel-wise MLPs that refine the estimate at 1/4, 1/2 and full
resolution. A pixel's output is the mean direction and the concentration kappa of an angular von Mises-Fisher density
(`cliptex.tasks.angular_mf`). Training minimises its negative log-likelihood; at the refined levels only for a sample of
pixels, the most uncertain ones and some random ones. With the encoder `tf_efficientnet_b5` and the default widths,
parameter names are those of the published weights (`scannet.pt`: architecture "BN", `nyu.pt`: "GN").

The published code visualises the outward normal as red = left, green = up, blue = towards the viewer. The output
channels hence have this package's convention: x right, y down, z forward, of the normal with a non-negative dot product
with the viewing ray. A wall that faces the camera is (0, 0, +1), a floor (0, +1, 0). For weights with other axes, set
the option `signs`.

Shape suffixes: B batch, C channels, H height, W width, N sampled pixels.
"""

from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import timm
import torch
from torch import nn
from torch.nn import functional

from cliptex.core.errors import CliptexError
from cliptex.experts.network import NetworkExpert, finite, load_weights, normalise, resize, resized_batch, to_host
from cliptex.experts.options import NLLAngMFOptions
from cliptex.experts.tensors import read_tensors
from cliptex.tasks.angular_mf import angular_mf_loss, norm_normalize


class NLLAngMFEncoder(nn.Module):
    """Features at 1/2, 1/4, 1/8, 1/16 and 1/32 of the image, from a timm network. An EfficientNet keeps its module
    names, and its last feature is the output of `conv_head` (before norm and activation), as in the published network;
    other architectures are built with timm's `features_only`."""

    def __init__(self, architecture: str, options: dict[str, Any]):
        super().__init__()
        self.is_efficientnet = "efficientnet" in architecture
        if self.is_efficientnet:
            self.original_model = timm.create_model(architecture, num_classes=0, **options)
            stages = [info["num_chs"] for info in self.original_model.feature_info]
            self.channels = [*stages[:4], self.original_model.conv_head.out_channels]
        else:
            self.original_model = timm.create_model(architecture, features_only=True, **options)
            self.channels = self.original_model.feature_info.channels()
            if self.original_model.feature_info.reduction() != [2, 4, 8, 16, 32]:
                raise CliptexError(f"experts: encoder {architecture!r} lacks features at 1/2, 1/4, 1/8, 1/16 and 1/32")

    def forward(self, images_BCHW: torch.Tensor) -> list[torch.Tensor]:
        net = self.original_model
        if not self.is_efficientnet:
            return net(images_BCHW)
        x = net.bn1(net.conv_stem(images_BCHW))
        features = [x := block(x) for block in net.blocks]
        return [*(features[index] for index in (0, 1, 2, 4)), net.conv_head(x)]


class StandardisedConv(nn.Conv2d):
    """Convolution whose filters have zero mean and unit (unbiased) deviation (Qiao et al., arXiv 1903.10520)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight - self.weight.mean(dim=(1, 2, 3), keepdim=True)
        weight = weight / (weight.flatten(1).std(dim=1).view(-1, 1, 1, 1) + 1e-5)
        return self._conv_forward(x, weight, self.bias)


class UpBlock(nn.Module):
    """Upsample to the size of the skip connection, concatenate, and convolve twice."""

    def __init__(self, channels: int, out: int, architecture: str):
        super().__init__()

        def layers(inside: int) -> list[nn.Module]:
            if architecture == "BN":
                return [nn.Conv2d(inside, out, 3, padding=1), nn.BatchNorm2d(out), nn.LeakyReLU()]
            return [StandardisedConv(inside, out, 3, padding=1), nn.GroupNorm(8, out), nn.LeakyReLU()]

        self._net = nn.Sequential(*layers(channels), *layers(out))

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        x = functional.interpolate(x, size=skip.shape[-2:], mode="bilinear", align_corners=True)
        return self._net(torch.cat([x, skip], dim=1))


class NLLAngMFDecoder(nn.Module):
    """Computes features at 1/8, 1/4 and 1/2; has the layers of the estimate at 1/8 and an MLP for each finer level."""

    def __init__(self, channels: list[int], widths: list[int], hidden: int, architecture: str):
        super().__init__()
        skips = channels[:4]
        self.conv2 = nn.Conv2d(channels[4], widths[0], 1)
        self.up1 = UpBlock(widths[0] + skips[3], widths[1], architecture)
        self.up2 = UpBlock(widths[1] + skips[2], widths[2], architecture)
        self.up3 = UpBlock(widths[2] + skips[1], widths[3], architecture)
        self.up4 = UpBlock(widths[3] + skips[0], widths[4], architecture)

        def mlp(width: int) -> nn.Sequential:
            sizes = [width + 4, hidden, hidden, hidden]
            hidden_layers = [layer for a, b in pairwise(sizes) for layer in (nn.Conv1d(a, b, 1), nn.ReLU())]
            return nn.Sequential(*hidden_layers, nn.Conv1d(hidden, 4, 1))

        self.out_conv_res8 = nn.Conv2d(widths[2], 4, 3, padding=1)
        self.out_conv_res4, self.out_conv_res2, self.out_conv_res1 = map(mlp, widths[2:])

    def forward(self, features: list[torch.Tensor]) -> tuple[list[torch.Tensor], list[nn.Sequential]]:
        """Features at 1/8 (for the levels 1/8 and 1/4), 1/4 (for 1/2) and 1/2 (for 1/1); MLPs of 1/4, 1/2 and 1/1."""
        x = self.up1(self.conv2(features[4]), features[3])
        x8 = self.up2(x, features[2])
        x4 = self.up3(x8, features[1])
        x2 = self.up4(x4, features[0])
        return [x8, x4, x2], [self.out_conv_res4, self.out_conv_res2, self.out_conv_res1]


class NLLAngMF(nn.Module):
    """The network, by default the published one: EfficientNet-B5 and 72.42 M parameters.

    architecture: norm of the decoder, "BN" (as `scannet.pt`) or "GN" (as `nyu.pt`; with weight standardisation).
    encoder: a timm architecture, `encoder_options` its keyword arguments. widths: channels of the decoder from 1/32
    to 1/2. hidden: width of the pixel-wise MLPs.
    """

    def __init__(
        self,
        architecture: Literal["BN", "GN"] = "BN",
        *,
        encoder: str = "tf_efficientnet_b5",
        encoder_options: dict[str, Any] | None = None,
        widths: tuple[int, ...] = (2048, 1024, 512, 256, 128),
        hidden: int = 128,
    ):
        if architecture not in ("BN", "GN"):
            raise ValueError(f"architecture is 'BN' or 'GN', got {architecture!r}")
        super().__init__()
        self.encoder = NLLAngMFEncoder(encoder, encoder_options or {})
        self.decoder = NLLAngMFDecoder(self.encoder.channels, list(widths), hidden, architecture)

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Unit normal and kappa > 0.01, float32 [B, 4, H, W], of images normalised by ImageNet's mean and deviation,
        float32 [B, 3, H, W]. Raises ValueError unless H and W are multiples of 32."""
        return self.levels(images_BCHW)[-1]

    def levels(self, images_BCHW: torch.Tensor) -> list[torch.Tensor]:
        """Unit normals and kappa [B, 4, h, w] at 1/8, 1/4, 1/2 and 1/1 of the image."""
        if any(side % 32 or not side for side in images_BCHW.shape[-2:]):
            raise ValueError(f"image sides must be multiples of 32, got {list(images_BCHW.shape[-2:])}; resize them")
        features, mlps = self.decoder(self.encoder(images_BCHW))
        out = [norm_normalize(self.decoder.out_conv_res8(features[0]))]
        for feature, mlp in zip(features, mlps, strict=True):
            joint = functional.interpolate(
                torch.cat([feature, out[-1]], dim=1), scale_factor=2, mode="bilinear", align_corners=True
            )
            out.append(norm_normalize(_pixelwise(mlp, joint.permute(0, 2, 3, 1)), -1).permute(0, 3, 1, 2))
        return out

    def loss(
        self,
        images_BCHW: torch.Tensor,
        normals_BCHW: torch.Tensor,
        generator: torch.Generator,
        ratio: float = 0.4,
        uncertain: float = 0.7,
    ) -> torch.Tensor:
        """Sum over the four levels of the mean loss at valid pixels (section 4.3 of the paper).

        The loss at 1/8 covers every pixel; at finer levels a share `ratio` of the pixels, of which a share `uncertain`
        has the lowest kappa at the previous level and the rest is random. normals_BCHW: [B, 3, H, W], NaN = invalid.
        """
        valid_BHW = normals_BCHW.isfinite().all(1)
        normals_BCHW = normals_BCHW.nan_to_num(0.0)
        features, mlps = self.decoder(self.encoder(images_BCHW))
        estimate = norm_normalize(self.decoder.out_conv_res8(features[0]))
        dense = functional.interpolate(estimate, size=valid_BHW.shape[-2:], mode="bilinear", align_corners=True)
        total = _mean_where(angular_mf_loss(dense, normals_BCHW), valid_BHW)
        for feature, mlp in zip(features, mlps, strict=True):
            estimate = functional.interpolate(estimate, scale_factor=2, mode="bilinear", align_corners=True)
            height, width = estimate.shape[-2:]
            valid_level = _nearest(valid_BHW[:, None].float(), height, width)[:, 0] > 0.5
            pixels_BN = _sample_pixels(-estimate[:, 3].detach(), valid_level, ratio, uncertain, generator)
            columns, rows = pixels_BN % width, pixels_BN.div(width, rounding_mode="floor")
            points_B1N2 = torch.stack([2 * columns / (width - 1) - 1, 2 * rows / (height - 1) - 1], dim=-1)[:, None]
            # sampling the coarse features at these points equals upsampling them first
            feature_BCN = functional.grid_sample(feature, points_B1N2, "bilinear", align_corners=True)[:, :, 0]
            old_B4N = estimate.flatten(2).gather(2, pixels_BN[:, None].expand(-1, 4, -1))
            joint_BNC = torch.cat([feature_BCN, old_B4N], dim=1).transpose(1, 2)
            new_BN4 = norm_normalize(_pixelwise(mlp, joint_BNC), -1)
            truth_B3N = _nearest(normals_BCHW, height, width).flatten(2)
            truth_B3N = truth_B3N.gather(2, pixels_BN[:, None].expand(-1, 3, -1))
            valid_BN = valid_level.flatten(1).gather(1, pixels_BN)
            total = total + _mean_where(angular_mf_loss(new_BN4, truth_B3N.transpose(1, 2), -1), valid_BN)
            # the next level starts from this estimate with the refined pixels inserted
            estimate = estimate.flatten(2).scatter(2, pixels_BN[:, None].expand(-1, 4, -1), new_BN4.transpose(1, 2))
            estimate = estimate.unflatten(2, (height, width))
        return total


def load_published(path: Path) -> NLLAngMF:
    """The network of a published weight file (`scannet.pt`, `nyu.pt`) in evaluation mode; its architecture follows from
    the tensors' names. Raises CliptexError as `load_weights` does."""
    network = NLLAngMF("BN" if "decoder.up1._net.1.running_mean" in read_tensors(path) else "GN")
    load_weights(network, path)
    return network.eval()


def _pixelwise(mlp: nn.Sequential, x: torch.Tensor) -> torch.Tensor:
    """Apply an MLP of 1x1 convolutions to the last axis as matrix products, which is three times as fast."""
    for layer in mlp:
        x = functional.linear(x, layer.weight[:, :, 0], layer.bias) if isinstance(layer, nn.Conv1d) else layer(x)
    return x


def _nearest(tensor_BCHW: torch.Tensor, height: int, width: int) -> torch.Tensor:
    return functional.interpolate(tensor_BCHW, size=(height, width), mode="nearest")


def _mean_where(values: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    return torch.where(where, values, 0.0).sum() / where.sum().clamp(min=1)


def _sample_pixels(
    uncertainty_BHW: torch.Tensor, valid_BHW: torch.Tensor, ratio: float, uncertain: float, generator: torch.Generator
) -> torch.Tensor:
    """Flat indices [B, N] of the pixels to train on; invalid ones rank last in uncertainty."""
    scores_BP = uncertainty_BHW.masked_fill(~valid_BHW, -1e4).flatten(1)
    count = int(ratio * scores_BP.shape[1])
    top_BN = scores_BP.topk(int(uncertain * count), dim=1).indices
    others_BP = torch.rand(scores_BP.shape, generator=generator).to(scores_BP.device).scatter(1, top_BN, -1.0)
    return torch.cat([top_BN, others_BP.topk(count - top_BN.shape[1], dim=1).indices], dim=1)


class NLLAngMFExpert(NetworkExpert):
    """Labels float32 [H, W, 4]: unit normal x, y, z in the camera frame, and kappa."""

    task = "normals"
    Network = NLLAngMFOptions
    targets = ("normals",)

    def build(self) -> nn.Module:
        names = ("architecture", "encoder", "encoder_options", "widths", "hidden")
        return NLLAngMF(**{name: getattr(self.network, name) for name in names})

    def shared(self) -> dict[str, nn.Module]:
        return {"body": self.module.encoder.original_model}

    def train_size(self) -> tuple[int, int] | None:
        return self.network.input_size_px

    def loss(self, batch: dict[str, torch.Tensor], generator: torch.Generator) -> torch.Tensor:
        options, images = self.network, batch["image"]
        size = self.input_size(*images.shape[-2:])
        images = normalise(resize(images, size))
        normals = _nearest(batch["normals"] * self._signs(batch["normals"]), *size)
        return self.module.loss(images, normals, generator, options.sampling_ratio, options.sampling_uncertain)

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        return self.network.input_size_px or (max(round(height / 32), 1) * 32, max(round(width / 32), 1) * 32)

    def label(self, images: list[torch.Tensor]) -> list[np.ndarray]:
        resized_BCHW = resized_batch(images, self.input_size(*images[0].shape[-2:]))
        out_B4HW = finite(self.module(normalise(resized_BCHW)))
        return to_host([self._to_label(out, image.shape[-2:]) for out, image in zip(out_B4HW, images, strict=True)])

    def _to_label(self, out_4HW: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """The network's output as a label [*size, 4]."""
        if out_4HW.shape[-2:] != size:
            out_4HW = functional.interpolate(out_4HW[None], size=size, mode="bilinear", align_corners=False)[0]
        normal_3HW = self._signs(out_4HW) * out_4HW[:3] / out_4HW[:3].norm(dim=0, keepdim=True).clamp(min=1e-6)
        return torch.cat([normal_3HW, out_4HW[3:]]).permute(1, 2, 0).contiguous()

    def _signs(self, like: torch.Tensor) -> torch.Tensor:
        return like.new_tensor(self.network.signs)[:, None, None]


PLUGIN = NLLAngMFExpert
