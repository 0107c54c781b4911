"""Relative inverse depth: DPT (Ranftl, Bochkovskiy, Koltun, ICCV 2021), transformers' `DPTForDepthEstimation`.

Trained with the scale- and shift-invariant loss of MiDaS (Ranftl et al., TPAMI 2020, arXiv 1907.01341) on inverse
depth, where the sky is 0. Shape suffixes: B batch, C channels, H height, W width.
"""

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import nn
from torch.nn import functional
from transformers import DPTConfig, DPTForDepthEstimation, DPTImageProcessor
from transformers.utils import logging as transformers_logging

from cliptex.config import Section
from cliptex.core.errors import CliptexError
from cliptex.experts.network import NetworkExpert, normalise, resize, seen_together, to_host
from cliptex.experts.weights import refused

MEAN = STD = (0.5, 0.5, 0.5)
PUBLISHED: dict[str, dict[str, Any]] = {
    "Intel/dpt-large": {
        "image_size": 384,
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "backbone_out_indices": [5, 11, 17, 23],
        "neck_hidden_sizes": [256, 512, 1024, 1024],
    },
    "Intel/dpt-hybrid-midas": {"image_size": 384, "is_hybrid": True, "neck_hidden_sizes": [256, 512, 768, 768]},
}
"""Repository on the hub -> what its config.json gives DPTConfig, for a network of that size without its weights."""
UNUSED = "neck.fusion_stage.layers.0.residual_layer1."
"""The first fusion has no second input, so that its layers are never called; the published files leave them out."""
NOT_FOR_DEPTH = ("dpt.pooler.", UNUSED)
"""What a file may have beyond the network: no depth is computed from it."""


def scale_shift_invariant_loss(
    prediction_BHW: torch.Tensor, target_BHW: torch.Tensor, gradient_weight: float = 0.5, scales: int = 4
) -> torch.Tensor:
    """Mean over the batch of the absolute error after both maps are brought to median 0 and mean deviation 1, plus
    `gradient_weight` times the mean absolute gradient of the difference at `scales` resolutions (equations 5 to 11 of
    MiDaS; without the trimming, which is for noisy labels).

    NaN in the target is left out. A map without valid pixels, or with a constant target, costs nothing.
    """
    valid_BHW = target_BHW.isfinite()
    deviation = _centred(target_BHW, valid_BHW)[1]
    usable_B = deviation > 1e-6
    target_BHW, prediction_BHW, valid_BHW = target_BHW[usable_B], prediction_BHW[usable_B], valid_BHW[usable_B]
    if not len(target_BHW):
        return prediction_BHW.sum() * 0
    normalised = []
    for maps_BHW in (prediction_BHW, target_BHW):
        centred_BHW, deviation_B = _centred(maps_BHW, valid_BHW)
        normalised.append(centred_BHW / deviation_B.clamp(min=1e-4)[:, None, None])
    difference_BHW = torch.where(valid_BHW, normalised[0] - normalised[1], 0.0)
    count_B = valid_BHW.sum((1, 2))
    loss_B = difference_BHW.abs().sum((1, 2)) / count_B
    for scale in range(scales):
        part, mask = difference_BHW[:, :: 2**scale, :: 2**scale], valid_BHW[:, :: 2**scale, :: 2**scale]
        across = (part[:, :, 1:] - part[:, :, :-1]).abs() * (mask[:, :, 1:] & mask[:, :, :-1])
        down = (part[:, 1:] - part[:, :-1]).abs() * (mask[:, 1:] & mask[:, :-1])
        gradient_B = (across.sum((1, 2)) + down.sum((1, 2))) / mask.sum((1, 2)).clamp(min=1)
        loss_B = loss_B + gradient_weight * gradient_B
    return loss_B.mean()


def _centred(maps_BHW: torch.Tensor, valid_BHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Maps less their median over valid pixels (0 elsewhere), and the mean absolute value of that, [B]."""
    median_B = torch.where(valid_BHW, maps_BHW, torch.nan).flatten(1).nanmedian(1).values.nan_to_num()
    centred_BHW = torch.where(valid_BHW, maps_BHW - median_B[:, None, None], 0.0)
    return centred_BHW, centred_BHW.abs().sum((1, 2)) / valid_BHW.sum((1, 2)).clamp(min=1)


def inverse_depth(depth: torch.Tensor) -> torch.Tensor:
    """1 / metres; 0 for the sky (NaN)."""
    return torch.where(depth.isfinite(), 1 / depth.clamp(min=1e-3), 0.0)


class Network(Section):
    """Options of the expert `dpt`."""

    config: dict[str, Any] = Field(default_factory=dict)
    """Arguments of transformers' DPTConfig; `image_size` is the side of the square that the network sees. Left out
    where the weights are a folder or a hub repository, which have a config.json. `PUBLISHED` has the known ones."""


class DPTExpert(NetworkExpert):
    """Labels float32 [H, W] >= 0: inverse depth up to scale and shift, larger = nearer.

    The image is squashed to a square, as the published weights' own preprocessing does. The folder of a saved model
    brings its own (preprocessor_config.json).
    """

    task = "depth"
    Network = Network
    size_options = ("config",)
    targets = ("depth",)

    def __init__(self, settings: dict[str, Any]):
        super().__init__(settings)
        unknown = sorted(set(self.network.config) - set(DPTConfig.__dataclass_fields__))
        if unknown:
            raise CliptexError(f"experts.network.config: DPTConfig has no {', '.join(unknown)}")
        # of a repository, its weights' own config.json takes this place in `load`
        given = self.network.config or PUBLISHED.get(settings.get("repo") or "")
        self.config = DPTConfig(**given) if given else None
        self.processor: DPTImageProcessor | None = None

    def build(self) -> nn.Module:
        if self.config is None:  # DPTConfig's defaults are none of the published networks
            raise CliptexError(
                "experts.*.network.config: a DPT without it has no size; give it, or as `path` the folder of a saved"
                " model, which has a config.json"
            )
        module = DPTForDepthEstimation(self.config)
        # The last layer is a ReLU: started above zero, since a pixel below it gives no gradient.
        nn.init.constant_(module.head.head[-2].bias, 1.0)
        return module

    def shared(self) -> dict[str, nn.Module]:
        return {"body": self.module.dpt.embeddings.backbone._backbone}

    def load(self, weights: Path | None) -> None:
        if weights is None or not Path(weights).is_dir():
            super().load(weights)
            return
        if self.network.config:
            raise CliptexError(f"experts.*.network.config: {weights} has a config.json of its own; leave the key out")
        self.module, self.processor = _load_folder(Path(weights))
        self.module = self.module.to(self.device).eval()
        self.config = self.module.config

    def train_size(self) -> tuple[int, int]:
        return self.config.image_size, self.config.image_size

    def loss(self, batch: dict[str, torch.Tensor], generator: torch.Generator) -> torch.Tensor:
        prediction_BHW = self._forward(normalise(resize(batch["image"], self.train_size()), MEAN, STD))
        return scale_shift_invariant_loss(prediction_BHW, inverse_depth(batch["depth"]))

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        return self.train_size()  # whatever the image's

    def label(self, images: list[torch.Tensor]) -> list[np.ndarray]:
        if self.processor is None:
            seen_BCHW = normalise(seen_together(images, self.train_size()), MEAN, STD)
        else:
            found = self.processor(images=images, input_data_format="channels_first", return_tensors="pt")
            seen_BCHW = found["pixel_values"].to(self.device)
        out_BHW = self._forward(seen_BCHW)
        return to_host(
            [_enlarged(out_HW, image_CHW.shape[-2:]) for out_HW, image_CHW in zip(out_BHW, images, strict=True)]
        )

    def _forward(self, seen_BCHW: torch.Tensor) -> torch.Tensor:
        return self.module(seen_BCHW).predicted_depth.float()


def _enlarged(depth_HW: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    if depth_HW.shape != size:
        depth_HW = functional.interpolate(depth_HW[None, None], size=size, mode="bicubic", align_corners=False)[0, 0]
    return depth_HW.clamp(min=0)


def _load_folder(folder: Path) -> tuple[DPTForDepthEstimation, DPTImageProcessor]:
    """Network and preprocessing that transformers saved. Raises CliptexError when weights are missing, do not fit, or
    are in a file that holds anything but tensors; none of it is run."""
    if not (folder / "preprocessor_config.json").is_file():
        raise CliptexError(f"{folder}: lacks preprocessor_config.json, which says what the network sees; copy it too")
    local = {"local_files_only": True}
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # what is missing is judged below
    try:
        processor = DPTImageProcessor.from_pretrained(folder, **local)
        module, found = DPTForDepthEstimation.from_pretrained(
            folder, weights_only=True, output_loading_info=True, ignore_mismatched_sizes=True, **local
        )
    except UnpicklingError as error:
        raise CliptexError(f"{folder}/pytorch_model.bin: {refused(error)}") from error
    except Exception as error:  # transformers has a kind of error for every way in which a folder can be wrong
        what = str(error).strip().splitlines() or [type(error).__name__]
        raise CliptexError(f"{folder}: not a DPT saved by transformers ({what[0]}); copy the folder again") from error
    finally:
        transformers_logging.set_verbosity(verbosity)
    missing = [name for name in found["missing_keys"] if not name.startswith(UNUSED)]
    if missing or found["mismatched_keys"]:
        wrong = [*missing, *(str(item[0]) for item in found["mismatched_keys"])]
        raise CliptexError(
            f"{folder}: its weights do not fit its config.json: {', '.join(sorted(wrong)[:3])}, {len(wrong)} in all"
        )
    if unknown := sorted(name for name in found["unexpected_keys"] if not name.startswith(NOT_FOR_DEPTH)):
        raise CliptexError(
            f"{folder}: its weights have no place in the network of its config.json: {', '.join(unknown[:3])},"
            f" {len(unknown)} in all; copy the config.json that belongs to them"
        )
    size, side = processor.size, module.config.image_size
    if processor.keep_aspect_ratio or size["height"] != size["width"]:
        raise CliptexError(
            f"{folder}/preprocessor_config.json: transformers' DPT takes squares; set keep_aspect_ratio to false and"
            " height and width of `size` to the same"
        )
    if module.config.is_hybrid and size["height"] != side:
        raise CliptexError(f"{folder}/preprocessor_config.json: a hybrid DPT takes its image_size, {side}, in `size`")
    return module.float(), processor


PLUGIN = DPTExpert
