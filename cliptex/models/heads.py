"""The shared multi-scale module and the task heads: used in training, discarded afterwards.

Shapes: B images, C encoder width, h x w the patch grid, D output channels of the module.
"""

import json
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import nn
from torchvision.models.segmentation.deeplabv3 import ASPP

from cliptex.core.errors import CliptexError
from cliptex.core.files import read_error, sha256_file
from cliptex.core.plugins import built_in, find
from cliptex.experts.tensors import load_strictly, read_tensors
from cliptex.models.clip import save_weights
from cliptex.tasks.base import Task

METADATA_KEY = "cliptex"


class PyramidPooling(nn.Module):
    """Pyramid pooling module (Zhao et al. 2017, section 3.2): [B, C, h, w] -> [B, D, h, w].

    Average-pooled maps of side 1, 2, 3 and 6 are each projected by a 1x1 convolution, resized back, concatenated with
    the input and fused by a 3x3 convolution.
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


class FactoredPyramidPooling(PyramidPooling):
    """`PyramidPooling` with the same weights and, up to rounding, the same output, in fewer operations.

    The fusing convolution is linear, so its part of a pooled map is the product of the b x b pooled cells with the
    weights of each of the 9 taps, followed by a fixed matrix that resizes and shifts: 50 cells instead of 4 h w. At
    ViT-B-16's 14 x 14 patches and 512 channels, this is 0.57 of the module's operations.
    """

    def forward(self, features_BChw: torch.Tensor) -> torch.Tensor:
        rows, columns = features_BChw.shape[-2:]
        convolution, norm, activation = self.fuse
        own, *parts = convolution.weight.split(
            [features_BChw.shape[1], *(branch[1][0].out_channels for branch in self.branches)], dim=1
        )
        taps = []
        for branch, weight_DK33 in zip(self.branches, parts, strict=True):
            cells_BNK = branch(features_BChw).flatten(2).transpose(1, 2)
            taps.append((cells_BNK @ weight_DK33.permute(1, 2, 3, 0).flatten(1)).flatten(1))
        taps_BTD = torch.cat(taps, dim=1).unflatten(1, (-1, convolution.out_channels))
        spread_PT = _resize_and_shift(self.BINS, rows, columns, features_BChw.device)
        pooled = (spread_PT.to(taps_BTD.dtype) @ taps_BTD).transpose(1, 2).unflatten(2, (rows, columns))
        return activation(norm(F.conv2d(features_BChw, own, padding=1) + pooled))


@lru_cache(maxsize=16)
def _resize_and_shift(bins: tuple[int, ...], rows: int, columns: int, device: torch.device) -> torch.Tensor:
    """float32 [rows * columns, T]: what each place gets from tap t of a cell; T counts bins, their cells, and taps.

    That is the bilinear resize of the cells, shifted by the tap, with zeros beyond the border.
    """
    parts = []
    for side in bins:
        cells = torch.eye(side * side).view(-1, 1, side, side)
        resized = F.interpolate(cells, size=(rows, columns), mode="bilinear", align_corners=False)
        parts.append(F.unfold(resized, 3, padding=1).flatten(0, 1))  # cells, then taps
    return torch.cat(parts).T.contiguous().to(device)


class DilatedPooling(ASPP):
    """Atrous spatial pyramid pooling of DeepLabV3 (Chen et al. 2017, section 3.3): [B, C, h, w] -> [B, D, h, w].

    torchvision's module: a 1x1 convolution, 3x3 convolutions with the dilations `rates` and global average pooling, of
    D channels each, concatenated and projected by a 1x1 convolution. torchvision's dropout of half the channels is
    removed: the paper does not have it, and it would add noise to the encoder's gradient.
    """

    def __init__(self, in_channels: int, out_channels: int, rates: tuple[int, ...]):
        super().__init__(in_channels, list(rates), out_channels)
        self.project = self.project[:-1]


def _conv(in_channels: int, out_channels: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


def _head(kind: str, in_channels: int, width: int, out_channels: int) -> nn.Module:
    """`light`: a 1x1 convolution. `heavy` and `heavier`: two and four 3x3 convolutions of `width` channels with norm
    and ReLU, then a 1x1 convolution."""
    if kind == "light":
        return nn.Conv2d(in_channels, out_channels, 1)
    inner = {"heavy": 2, "heavier": 4}[kind]
    layers = (_conv(in_channels if number == 0 else width, width, 3) for number in range(inner))
    return nn.Sequential(*layers, nn.Conv2d(width, out_channels, 1))


class DenseHeads(nn.Module):
    """One multi-scale module for all tasks, and one head per label store.

    channels: label store -> output channels of its task. multi_scale: "ppm", "ppm_factored", "aspp" or "none". width:
    output channels of the module, and of the inner layers of heavy heads. heads: "light", "heavy" or "heavier". rates:
    dilations of "aspp". prior_cells: side of the grid of the position prior, a learned bias for each position that is
    added to the output of a head (`cliptex.training.position_prior`); the last layers of the heads then start at zero.
    0: no prior.
    """

    def __init__(
        self,
        in_channels: int,
        channels: dict[str, int],
        multi_scale: str,
        width: int,
        heads: str = "light",
        rates: tuple[int, ...] = (6, 12, 18),
        prior_cells: int = 0,
    ):
        super().__init__()
        self.arguments = {
            "in_channels": in_channels,
            "channels": channels,
            "multi_scale": multi_scale,
            "width": width,
            "heads": heads,
            "rates": list(rates),
            "prior_cells": prior_cells,
        }
        if multi_scale == "none":
            self.multi_scale, out_channels = nn.Identity(), in_channels
        elif multi_scale == "aspp":
            self.multi_scale, out_channels = DilatedPooling(in_channels, width, rates), width
        else:
            pooling = FactoredPyramidPooling if multi_scale == "ppm_factored" else PyramidPooling
            self.multi_scale, out_channels = pooling(in_channels, width), width
        self.heads = nn.ModuleDict({store: _head(heads, out_channels, width, n) for store, n in channels.items()})
        self.priors = nn.ParameterDict()
        if prior_cells:
            for store, head in self.heads.items():
                self.priors[store] = nn.Parameter(torch.zeros(channels[store], prior_cells, prior_cells))
                last = head[-1] if isinstance(head, nn.Sequential) else head
                nn.init.zeros_(last.weight)
                nn.init.zeros_(last.bias)

    def forward(self, features_BChw: torch.Tensor) -> dict[str, torch.Tensor]:
        """Label store -> raw predictions [B, channels, h, w] from dense features."""
        shared = self.multi_scale(features_BChw)
        out = {store: head(shared) for store, head in self.heads.items()}
        for store, prior in self.priors.items():
            out[store] = out[store] + F.interpolate(prior[None], size=shared.shape[-2:], mode="bilinear")
        return out


def own_codecs(tasks: dict[str, Task]) -> dict[str, dict[str, Any]]:
    """The codecs of those tasks, by label store, whose parameters are not the task's defaults."""
    return {store: task.codec() for store, task in tasks.items() if task.codec() != type(task).from_codec({}).codec()}


def save_heads(
    heads: DenseHeads,
    path: Path,
    tasks: dict[str, str],
    losses: dict[str, dict[str, Any]],
    codecs: dict[str, dict[str, Any]] | None = None,
) -> str:
    """Write module and heads as safetensors, and return the file's SHA-256.

    The metadata have the arguments, tasks and losses for `load_heads`.

    tasks: label store -> name of its task. losses: label store -> options of its loss, which may determine the number
    of output channels. codecs: see `own_codecs`.
    """
    metadata = {"arguments": heads.arguments, "tasks": tasks, "losses": losses}
    if codecs:
        metadata["codecs"] = codecs
    save_weights(heads.state_dict(), path, {METADATA_KEY: json.dumps(metadata)})
    return sha256_file(path)


def load_heads(path: Path) -> tuple[DenseHeads, dict[str, Task]]:
    """Load a file of `save_heads`: the heads in evaluation mode, and the task of each label store.

    Raises CliptexError if the file is damaged or lacks the metadata.
    """
    try:
        tensors = read_tensors(path)
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {})[METADATA_KEY])
        with torch.device("meta"):  # takes no memory, whatever width the file claims
            heads = DenseHeads(**metadata["arguments"])
        load_strictly(heads, tensors, f"{path}: its tensors do not match its metadata", "restore a copy")
        losses, codecs = metadata["losses"], metadata.get("codecs", {})
        tasks = {
            store: _task(task, path)
            .from_codec(codecs.get(store, {}))
            .with_loss(losses.get(store, {}), f"{path}: {store}")
            for store, task in metadata["tasks"].items()
        }
    except (SafetensorError, OSError, LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        remedy = "restore a copy, or use the version of cliptex that wrote it (train.json names it)"
        raise read_error(error, path, "a heads file of this version", remedy) from error
    return heads.eval(), tasks


def _task(name: str, path: Path) -> type[Task]:
    """The class of the task that a heads file names: a built-in one, or one that this process has imported, since a
    file must not choose which modules are imported."""
    module, _, attribute = name.partition(":")
    if name in built_in("tasks"):
        return find("tasks", name)
    task = getattr(sys.modules.get(module), attribute, None)
    if not (isinstance(task, type) and issubclass(task, Task)):
        raise CliptexError(
            f"{path}: its task {name!r} is not one of cliptex; import {module} before you load the model"
        )
    return task
