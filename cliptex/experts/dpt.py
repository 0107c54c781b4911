"""Relative inverse depth by DPT (Ranftl, Bochkovskiy, Koltun, ICCV 2021), transformers' `DPTForDepthEstimation`, or by
Depth Anything (Yang et al., V1 arXiv 2401.10891, V2 arXiv 2406.09414), a DINOv2 with a DPT decoder.

A DPT trained here learns with the scale- and shift-invariant loss of MiDaS (Ranftl et al., TPAMI 2020, arXiv
1907.01341) on inverse depth, where the sky is 0. Shape suffixes: B batch, C channels, H height, W width.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import (
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    DPTConfig,
    DPTForDepthEstimation,
    DPTImageProcessor,
)

from cliptex.core.errors import CliptexError
from cliptex.core.files import read_json
from cliptex.experts.network import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    NetworkExpert,
    finite,
    normalise,
    resize,
    resized_batch,
    to_host,
)
from cliptex.experts.options import DPTOptions
from cliptex.experts.saved_model import MAX_SIDE, load_saved, require_folder, require_working

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
    "depth-anything/Depth-Anything-V2-Small-hf": {
        "model_type": "depth_anything",
        "backbone_config": {
            "model_type": "dinov2",
            "hidden_size": 384,
            "image_size": 518,
            "num_attention_heads": 6,
            "out_indices": [3, 6, 9, 12],
            "reshape_hidden_states": False,
        },
    },
}
"""Repository on the hub -> values of its config.json, to build the network without its weights. The defaults of
DepthAnythingConfig are those of the small networks."""
NETWORKS = {
    "dpt": (DPTConfig, DPTForDepthEstimation),
    "depth_anything": (DepthAnythingConfig, DepthAnythingForDepthEstimation),
}
"""`model_type` in config.json -> classes of transformers; none of them runs code of the folder."""
DEPTH_ANYTHING: dict[str, Any] = {
    "size": {"height": 518, "width": 518},
    "keep_aspect_ratio": True,
    "ensure_multiple_of": 14,
    "image_mean": IMAGENET_MEAN,
    "image_std": IMAGENET_STD,
}
"""The published preprocessor_config.json of Depth Anything, to run the network without its folder; bicubic."""
UNUSED = "neck.fusion_stage.layers.0.residual_layer1."
"""The first fusion block has no skip input, so these layers are never called; published files lack them."""
NOT_FOR_DEPTH = ("dpt.pooler.", UNUSED)
"""Prefixes of tensors that a file may have in addition; depth does not depend on them."""


def scale_shift_invariant_loss(
    prediction_BHW: torch.Tensor, target_BHW: torch.Tensor, gradient_weight: float = 0.5, scales: int = 4
) -> torch.Tensor:
    """Mean absolute error of maps normalised to median 0 and mean absolute deviation 1, plus `gradient_weight` times
    the mean absolute gradient of the difference at `scales` resolutions, averaged over the batch (equations 5 to 11 of
    MiDaS, without the trimming, which is for noisy labels). NaN in the target is ignored. Maps without valid pixels or
    with a constant target are left out."""
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
    """Maps minus their median over valid pixels (0 elsewhere), and the mean absolute deviation from it, [B]."""
    median_B = torch.where(valid_BHW, maps_BHW, torch.nan).flatten(1).nanmedian(1).values.nan_to_num()
    centred_BHW = torch.where(valid_BHW, maps_BHW - median_B[:, None, None], 0.0)
    return centred_BHW, centred_BHW.abs().sum((1, 2)) / valid_BHW.sum((1, 2)).clamp(min=1)


def inverse_depth(depth: torch.Tensor) -> torch.Tensor:
    """1 / metres; 0 for the sky (NaN)."""
    return torch.where(depth.isfinite(), 1 / depth.clamp(min=1e-3), 0.0)


class DPTExpert(NetworkExpert):
    """Labels float32 [H, W] >= 0: inverse depth up to scale and shift, larger = nearer. As in the published weights'
    preprocessing, DPT squashes the image to a square, and Depth Anything keeps its aspect ratio. For the folder of a
    saved model, its preprocessor_config.json is used."""

    task = "depth"
    Network = DPTOptions
    targets = ("depth",)
    remedy = "these weights predict distances, so label with `plugin: transformers` and `network: {predicts: metres}`"

    def __init__(self, settings: dict[str, Any]):
        super().__init__(settings)
        unknown = sorted(set(self.network.config) - set(DPTConfig.__dataclass_fields__))
        if unknown:
            raise CliptexError(f"experts.network.config: DPTConfig has no {', '.join(unknown)}")
        # replaced in `load` by the config.json of a saved model
        options = self.network.config or PUBLISHED.get(settings.get("repo") or "")
        self.config = NETWORKS[options.get("model_type", "dpt")][0](**options) if options else None
        self.processor = DPTImageProcessor(**DEPTH_ANYTHING) if self._keeps_aspect else None

    def build(self) -> nn.Module:
        if self.config is None:  # DPTConfig's defaults are not those of a published network
            raise CliptexError(
                "experts.*.network.config: missing; set it, or use as `path` the folder of a saved model, which has a"
                " config.json"
            )
        module = NETWORKS[self.config.model_type][1](self.config)
        if self._keeps_aspect:
            return module
        # start above zero: the last layer is a ReLU, whose gradient is zero below
        nn.init.constant_(module.head.head[-2].bias, 1.0)
        return module

    def shared(self) -> dict[str, nn.Module]:
        return {"body": self.module.dpt.embeddings.backbone._backbone}

    def load(self, weights: Path | None) -> None:
        if weights is None or not Path(weights).is_dir():
            super().load(weights)
            return
        if self.network.config:
            raise CliptexError(f"experts.*.network.config: {weights} has its own config.json; remove the key")
        self.module, self.processor = _load_folder(Path(weights))
        self.module = self.module.to(self.device).eval()
        self.config = self.module.config

    def train_size(self) -> tuple[int, int]:
        return self.config.image_size, self.config.image_size

    def loss(self, batch: dict[str, torch.Tensor], generator: torch.Generator) -> torch.Tensor:
        prediction_BHW = self._forward(normalise(resize(batch["image"], self.train_size()), MEAN, STD))
        return scale_shift_invariant_loss(prediction_BHW, inverse_depth(batch["depth"]))

    @property
    def _keeps_aspect(self) -> bool:
        return self.config is not None and self.config.model_type == "depth_anything"

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        if self._keeps_aspect:
            return _resized(height, width, self.processor)
        return self.train_size()  # independent of the image's size

    def label(self, images: list[torch.Tensor]) -> list[np.ndarray]:
        if self.processor is None:
            inputs_BCHW = normalise(resized_batch(images, self.train_size()), MEAN, STD)
        else:
            own = {}
            if self._keeps_aspect:  # all of them have this size; the processor's own may be 0 for very long images
                height, width = self.input_size(*images[0].shape[-2:])
                own = {"size": {"height": height, "width": width}, "keep_aspect_ratio": False}
            processed = self.processor(images=images, input_data_format="channels_first", return_tensors="pt", **own)
            inputs_BCHW = processed["pixel_values"].to(self.device)
        out_BHW = finite(self._forward(inputs_BCHW))
        return to_host(
            [_enlarged(out_HW, image_CHW.shape[-2:]) for out_HW, image_CHW in zip(out_BHW, images, strict=True)]
        )

    def _forward(self, inputs_BCHW: torch.Tensor) -> torch.Tensor:
        return self.module(inputs_BCHW).predicted_depth.float()


def _enlarged(depth_HW: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    if depth_HW.shape != size:
        depth_HW = functional.interpolate(depth_HW[None, None], size=size, mode="bicubic", align_corners=False)[0, 0]
    return depth_HW.clamp(min=0)


def _resized(height: int, width: int, processor: DPTImageProcessor) -> tuple[int, int]:
    """Size of the input for an image: as `processor` resizes it, but at least one patch high and wide.

    With `keep_aspect_ratio` the side that needs less resizing gets its size in `size`; sides are rounded to multiples.
    """
    scale_y, scale_x = processor.size["height"] / height, processor.size["width"] / width
    if processor.keep_aspect_ratio:
        scale_y = scale_x = scale_x if abs(1 - scale_x) < abs(1 - scale_y) else scale_y
    multiple = processor.ensure_multiple_of
    sides = (round(scale_y * height / multiple), round(scale_x * width / multiple))
    return multiple * max(1, sides[0]), multiple * max(1, sides[1])


def _load_folder(folder: Path) -> tuple[DPTForDepthEstimation | DepthAnythingForDepthEstimation, DPTImageProcessor]:
    """Network and preprocessing saved by transformers. Raises CliptexError if weights are missing, do not match, or are
    in a file that holds anything but tensors, and for networks of other types; no code in it is executed."""
    require_folder(folder)
    config_class, network_class = NETWORKS[_model_type(folder / "config.json")]
    module, processor = load_saved(
        folder,
        config_class,
        network_class,
        lambda: DPTImageProcessor.from_pretrained(folder, local_files_only=True),
        "a DPT",
        may_lack=(UNUSED,),
        may_have=NOT_FOR_DEPTH,
    )
    path = folder / "preprocessor_config.json"
    sides = [(processor.size or {}).get(name) for name in ("height", "width")]
    if not all(isinstance(side, int) and 0 < side <= MAX_SIDE for side in sides):
        raise CliptexError(f"{path}: set height and width of `size` to 1 to {MAX_SIDE}")
    if network_class is DepthAnythingForDepthEstimation:
        _require_patches(folder, processor, module.config)
    elif processor.keep_aspect_ratio or len({*sides}) > 1:
        raise CliptexError(
            f"{path}: transformers' DPT takes square images; set keep_aspect_ratio to false, and height and width of"
            " `size` to the same value"
        )
    elif module.config.is_hybrid and sides[0] != module.config.image_size:
        raise CliptexError(f"{path}: set `size` to the image_size of a hybrid DPT, {module.config.image_size}")
    require_working(path, processor)
    return module.float(), processor


def _model_type(path: Path) -> str:
    """The type of network of a config.json, a key of NETWORKS. Raises CliptexError for another one, and for a Depth
    Anything that is not of relative depth, or has a backbone of others."""
    config = read_json(path)
    config = config if isinstance(config, dict) else {}
    kind = config.get("model_type", "dpt")
    if not isinstance(kind, str) or kind not in NETWORKS:
        raise CliptexError(f"{path}: model_type {kind!r} cannot be read; use a network of {' or '.join(NETWORKS)}")
    if kind == "depth_anything":
        backbone = config.get("backbone_config")
        if not isinstance(backbone, dict) or backbone.get("model_type") != "dinov2" or config.get("backbone"):
            raise CliptexError(f"{path}: its backbone is not described by `backbone_config`, of model_type dinov2")
        if config.get("depth_estimation_type", "relative") != "relative":
            raise CliptexError(
                f"{path}: predicts metres, which grow with the distance; use the weights for relative depth"
            )
    return kind


def _require_patches(folder: Path, processor: DPTImageProcessor, config: DepthAnythingConfig) -> None:
    """Raise CliptexError unless the preprocessing makes inputs of whole patches."""
    path, patch, multiple = folder / "preprocessor_config.json", config.patch_size, processor.ensure_multiple_of
    if not isinstance(patch, int) or patch < 1:
        raise CliptexError(f"{folder}/config.json: set `patch_size` to the side of the network's patches")
    if not isinstance(multiple, int) or multiple < 1 or multiple % patch:
        raise CliptexError(f"{path}: set `ensure_multiple_of` to the side of the network's patches, {patch}")


PLUGIN = DPTExpert
