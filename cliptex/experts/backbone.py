"""The encoder that all experts trained here start from: pre-trained on dense labels of every task at once.

What ImageNet weights are to the published experts. One encoder that learns classes, depth and normals together is
better at each than three that learn one alone, for a third of the time.

Reads   resources/expert_renders/train.h5.
Writes  results/backbone/: backbone.safetensors (`body.*`, under timm's names, and `fpn.*`) and, last, backbone.json.
Holds   same seed, same weights on one machine.

Shape suffixes: B batch, C channels, H height, W width.
"""

import time
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional
from torchvision.ops import FeaturePyramidNetwork

from cliptex import versions
from cliptex.benchmarks.coco_names import coco_categories
from cliptex.config import Config
from cliptex.core.files import replacing, sha256_file, write_json
from cliptex.core.provenance import provenance
from cliptex.experts.dpt import inverse_depth, scale_shift_invariant_loss
from cliptex.experts.fitting import Training, fit
from cliptex.experts.network import IMAGENET_MEAN, IMAGENET_STD, normalise
from cliptex.experts.options import parse_options
from cliptex.experts.precision import mixed_precision, native_precision
from cliptex.tasks.angular_mf import angular_mf_loss, norm_normalize

NUM_CLASSES = 1 + len(coco_categories())
TARGETS = ("instance", "instance_class", "depth", "normals")


class DenseNetwork(nn.Module):
    """timm encoder, feature pyramid and one convolution to class scores, raw normals with kappa, and inverse depth."""

    def __init__(self, encoder: str, options: dict[str, Any], channels: int):
        super().__init__()
        self.body = timm.create_model(encoder, features_only=True, out_indices=(1, 2, 3, 4), **options)
        self.fpn = FeaturePyramidNetwork(self.body.feature_info.channels(), channels)
        self.head = nn.Conv2d(channels, NUM_CLASSES + 4 + 1, 1)

    def forward(self, images_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Scores [B, 81, h, w], raw normals [B, 4, h, w] and inverse depth [B, h, w] at 1/4 of the image, float32."""
        features = {str(level): feature for level, feature in enumerate(self.body(images_BCHW))}
        scores, normals, depth = self.head(self.fpn(features)["0"]).float().split((NUM_CLASSES, 4, 1), dim=1)
        return scores, normals, depth[:, 0]

    def loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Sum of the tasks' losses, each the one its expert is trained with (classes: cross-entropy a cell)."""
        scores, normals, depth = self(normalise(batch["image"], IMAGENET_MEAN, IMAGENET_STD))
        return segmentation_loss(scores, batch) + normals_loss(normals, batch) + depth_loss(depth, batch)


def _nearest(maps_BCHW: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return functional.interpolate(maps_BCHW, size=like.shape[-2:], mode="nearest")


def segmentation_loss(scores_BChw: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Cross-entropy of class scores against the `instance` and `instance_class` of renders, at the scores' grid."""
    classes_BM = functional.pad(batch["instance_class"], (1, 0)).long()  # column 0 is the background
    classes_BHW = classes_BM.gather(1, batch["instance"].flatten(1)).view(batch["instance"].shape)
    return functional.cross_entropy(scores_BChw, _nearest(classes_BHW[:, None].float(), scores_BChw)[:, 0].long())


def normals_loss(raw_B4hw: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Negative log-likelihood of the `normals` of renders under raw normals with kappa, at their grid."""
    truth_B3hw = _nearest(batch["normals"], raw_B4hw)
    valid_Bhw = truth_B3hw.isfinite().all(1)
    likelihood = angular_mf_loss(norm_normalize(raw_B4hw), truth_B3hw.nan_to_num(0.0))
    return torch.where(valid_Bhw, likelihood, 0.0).sum() / valid_Bhw.sum().clamp(min=1)


def depth_loss(depth_Bhw: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Scale- and shift-invariant loss of inverse depth against the `depth` of renders, at its grid."""
    return scale_shift_invariant_loss(depth_Bhw, _nearest(inverse_depth(batch["depth"])[:, None], depth_Bhw)[:, 0])


def train_backbone(config: Config, renders: Path, out: Path, seed: int) -> None:
    """Pre-train `config.backbone` on the file `renders`; write its weights to `out`, and a record beside them."""
    settings = config.backbone
    training = parse_options(Training, settings.training, "training", "backbone")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = native_precision() if settings.precision == "auto" else settings.precision
    torch.manual_seed(seed)
    network = DenseNetwork(settings.encoder, settings.encoder_options, settings.channels)
    network = network.to(device, memory_format=torch.channels_last)

    def loss(batch: dict[str, torch.Tensor], generator: torch.Generator) -> torch.Tensor:
        with mixed_precision(precision):
            return network.loss(batch)

    start, cpu_start = time.monotonic(), time.process_time()
    fitted = fit(network, loss, renders, TARGETS, (settings.input_size_px,) * 2, training, seed, device)
    tensors = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in network.state_dict().items()
        if not name.startswith("head.")
    }
    with replacing(out) as scratch:
        save_file(tensors, scratch)
    write_json(
        out.with_suffix(".json"),
        {
            "schema_version": 1,
            "version": versions.EXPERT,
            "encoder": settings.encoder,
            "training": settings.training | fitted,
            "precision": precision,
            "seed": seed,
            "seconds": time.monotonic() - start,
            "cpu_seconds": time.process_time() - cpu_start,
            "num_parameters": sum(tensor.numel() for tensor in network.body.parameters()),
            "weights_sha256": sha256_file(out),
            "provenance": provenance(config.plain()),
        },
    )
