"""Pre-train the encoder that the experts trained here are initialised from, on dense labels of all tasks together.

It takes the place of the published experts' ImageNet weights. An encoder trained on classes, depth and normals together
is better at each than three encoders trained on one of them, in a third of the time.

Reads   resources/expert_renders/train.h5.
Writes  results/backbone/: backbone.safetensors (`body.*`, under timm's names, and `fpn.*`) and, last, backbone.json.
Holds   on one machine, the same seed gives the same weights.

Shape suffixes: B batch, C channels, H height, W width.
"""

import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from cliptex import versions
from cliptex.benchmarks.coco_names import coco_categories
from cliptex.config import Config
from cliptex.core.files import replacing, sha256_file, write_json
from cliptex.core.provenance import provenance
from cliptex.experts.dpt import inverse_depth, scale_shift_invariant_loss
from cliptex.experts.encoder import EncoderWithFPN
from cliptex.experts.fitting import fit
from cliptex.experts.network import normalise
from cliptex.experts.options import TrainingOptions, parse_options
from cliptex.experts.precision import mixed_precision, native_precision, safe_precision
from cliptex.tasks.angular_mf import angular_mf_loss, norm_normalize

NUM_CLASSES = 1 + len(coco_categories())
TARGETS = ("instance", "instance_class", "depth", "normals")


class DenseNetwork(EncoderWithFPN):
    """Encoder, feature pyramid and one convolution to class scores, raw normals with kappa, and inverse depth."""

    def __init__(self, encoder: str, options: dict[str, Any], channels: int):
        super().__init__(encoder, options, channels)
        self.head = nn.Conv2d(channels, NUM_CLASSES + 4 + 1, 1)

    def forward(self, images_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Scores [B, 81, h, w], raw normals [B, 4, h, w] and inverse depth [B, h, w] at 1/4 of the image, float32."""
        scores, normals, depth = self.head(self.maps(images_BCHW)["0"]).float().split((NUM_CLASSES, 4, 1), dim=1)
        return scores, normals, depth[:, 0]

    def loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Sum of the losses of the three tasks."""
        scores, normals, depth = self(normalise(batch["image"]))
        return segmentation_loss(scores, batch) + normals_loss(normals, batch) + depth_loss(depth, batch)


def _nearest(maps_BCHW: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return functional.interpolate(maps_BCHW, size=like.shape[-2:], mode="nearest")


def segmentation_loss(scores_BChw: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Cross-entropy of class scores with `instance` and `instance_class` of renders, at the scores' resolution."""
    classes_BM = functional.pad(batch["instance_class"], (1, 0)).long()  # column 0 is the background
    classes_BHW = classes_BM.gather(1, batch["instance"].flatten(1)).view(batch["instance"].shape)
    return functional.cross_entropy(scores_BChw, _nearest(classes_BHW[:, None].float(), scores_BChw)[:, 0].long())


def normals_loss(raw_B4hw: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Negative log-likelihood of the `normals` of renders under the raw normals with kappa, at their resolution."""
    truth_B3hw = _nearest(batch["normals"], raw_B4hw)
    valid_Bhw = truth_B3hw.isfinite().all(1)
    likelihood = angular_mf_loss(norm_normalize(raw_B4hw), truth_B3hw.nan_to_num(0.0))
    return torch.where(valid_Bhw, likelihood, 0.0).sum() / valid_Bhw.sum().clamp(min=1)


def depth_loss(depth_Bhw: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Scale- and shift-invariant loss of inverse depth with the `depth` of renders, at the prediction's resolution."""
    return scale_shift_invariant_loss(depth_Bhw, _nearest(inverse_depth(batch["depth"])[:, None], depth_Bhw)[:, 0])


def train_backbone(config: Config, renders: Path, out: Path, seed: int) -> None:
    """Pre-train `config.backbone` on the file `renders`; write its weights to `out`, and a JSON record next to it."""
    backbone = config.backbone
    training = parse_options(TrainingOptions, backbone.training, "training", "backbone")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = native_precision() if backbone.precision == "auto" else backbone.precision
    precision = safe_precision(precision, (backbone.input_size_px,) * 2)
    torch.manual_seed(seed)
    network = DenseNetwork(backbone.encoder, backbone.encoder_options, backbone.channels)
    network = network.to(device, memory_format=torch.channels_last)

    def loss(batch: dict[str, torch.Tensor], generator: torch.Generator) -> torch.Tensor:
        with mixed_precision(precision):
            return network.loss(batch)

    start, cpu_start = time.monotonic(), time.process_time()
    fitted = fit(network, loss, renders, TARGETS, (backbone.input_size_px,) * 2, training, seed, device)
    del network.head
    tensors = {name: tensor.cpu().contiguous() for name, tensor in network.state_dict().items()}
    with replacing(out) as scratch:
        save_file(tensors, scratch)
    write_json(
        out.with_suffix(".json"),
        {
            "schema_version": 1,
            "version": versions.EXPERT,
            "encoder": backbone.encoder,
            "training": backbone.training | fitted,
            "precision": precision,
            "seed": seed,
            "seconds": time.monotonic() - start,
            "cpu_seconds": time.process_time() - cpu_start,
            "num_parameters": sum(tensor.numel() for tensor in network.body.parameters()),
            "weights_sha256": sha256_file(out),
            "provenance": provenance(config.plain()),
        },
    )
