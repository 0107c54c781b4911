"""Frozen image encoders of transformers, timm and open_clip, and the workflow's backbone, as teachers of features.

Holds   no code of a weight file, folder or repository runs; weights are loaded strictly, but for layers on which patch
        tokens do not depend (classifiers, poolers, text towers).

Shape suffixes: B batch, C channels, H height, W width; h x w a feature map.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from cliptex.core.errors import CliptexError
from cliptex.core.files import read_checked
from cliptex.experts import encoder  # noqa: F401 (registers `cliptex_resnet` with timm)
from cliptex.experts.network import IMAGENET_MEAN, IMAGENET_STD, normalise, resize
from cliptex.experts.options import FeaturesOptions
from cliptex.experts.saved_model import MAX_SIDE, first_line, load_saved
from cliptex.experts.tensors import load_strictly, read_tensors, require_no_code
from cliptex.experts.weights import WEIGHT_FILES, digests, shards

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
CLIP: dict[str, Any] = {"size": None, "mean": CLIP_MEAN, "std": CLIP_STD}
UNUSED = ("pooler.", "head.", "classifier.", "vision_model.head.", "visual_projection.", "text_projection.")
PREFIX: dict[str, Callable[[Any], int]] = {
    "dinov2": lambda config: 1,
    "dinov2_with_registers": lambda config: 1 + config.num_register_tokens,
    "dinov3_vit": lambda config: 1 + config.num_register_tokens,
    "radio": lambda config: config.num_cls_tokens + config.num_registers,
    "clip_vision_model": lambda config: 1,
    "siglip_vision_model": lambda config: 0,
    "siglip2_vision_model": lambda config: 0,
    "vit": lambda config: 1,
    "ijepa": lambda config: 0,
}
"""`model_type` of transformers' vision towers -> tokens before the patches (class and registers), by its config."""
TWO_TOWERS = ("clip", "siglip", "siglip2")
"""`model_type` of models whose vision tower is used."""
FIX = "copy the published file again"


@dataclass
class Teacher:
    """A frozen encoder and its preprocessing."""

    network: nn.Module
    name: str
    maps: Callable[[torch.Tensor], list[torch.Tensor]]
    """Normalised images [B, 3, H, W] to feature maps [B, C, h, w], without class and register tokens."""
    size: tuple[int, int]
    """Height and width of its input."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    prefix: str = ""
    """Of its tensors in a file that has others, too."""

    def features(self, images: list[torch.Tensor], cells: tuple[int, int]) -> torch.Tensor:
        """float32 [B, *cells, C] of uint8 images [C, H, W], each squashed to the input's size. Several maps are
        resampled to `cells` (bilinear, with antialiasing) and concatenated."""
        inputs = torch.cat([resize(image_CHW[None] / 255, self.size) for image_CHW in images])
        maps = self.maps(normalise(inputs, self.mean, self.std).contiguous(memory_format=torch.channels_last))
        return torch.cat([resize(each.float(), cells) for each in maps], dim=1).permute(0, 2, 3, 1).contiguous()

    def state(self) -> dict[str, torch.Tensor]:
        """Name -> tensor as in a file of weights."""
        tensors = self.network.state_dict().items()
        return {self.prefix + name: tensor.detach().cpu().contiguous() for name, tensor in tensors}


def load_teacher(options: FeaturesOptions, weights: Path | None) -> Teacher:
    """The teacher with its weights, a file or the folder of a saved model; untrained without. Raises CliptexError if
    they cannot be read, do not match, or name code, and for a network that gives no patch tokens."""
    build = {"transformers": _transformers, "timm": _timm, "open_clip": _open_clip, "backbone": _backbone}
    teacher = build[options.library](options, weights)
    teacher.mean, teacher.std = options.mean or teacher.mean, options.std or teacher.std
    if options.input_size_px is not None:
        teacher.size = (options.input_size_px,) * 2
    teacher.network.eval().requires_grad_(False)
    with torch.inference_mode():
        try:
            shapes = [tuple(each.shape) for each in teacher.maps(torch.zeros(1, 3, *teacher.size))]
        except CliptexError:
            raise
        except Exception as error:  # each network raises its own type of error for a size that it does not take
            raise CliptexError(
                f"experts.*.network: {teacher.name} gives no feature maps of {teacher.size[0]} x {teacher.size[1]}"
                f" pixels ({first_line(error)[:200]}); change input_size_px, or use another model"
            ) from error
    if any(len(shape) != 4 for shape in shapes):
        raise CliptexError(f"experts.*.network.model: {teacher.name} gives no feature maps; use another model")
    return teacher


def _file(weights: Path) -> Path:
    """The single file of weights of a folder, or the file itself."""
    if weights.is_file():
        return weights
    digests(weights)
    name = next(name for name in WEIGHT_FILES if (weights / name).is_file())
    if shards(weights / name):
        raise CliptexError(f"{weights}: weights in several files are read for transformers only; use a single file")
    return weights / name


def _load(network: nn.Module, weights: Path, tensors: dict[str, torch.Tensor]) -> None:
    load_strictly(
        network,
        tensors,
        f"{weights}: the weights do not match the teacher",
        "correct `network.library` and `network.model` of the expert",
    )


def _checked(where: str, size: Any, mean: Any, std: Any) -> dict[str, Any]:
    """Preprocessing that a file names. Raises CliptexError unless sides, means and deviations are usable."""
    if not all(isinstance(side, int) and 0 < side <= MAX_SIDE for side in size):
        raise CliptexError(f"{where}: the input's height and width must be 1 to {MAX_SIDE}; {FIX}")
    for name, values, least in (("mean", mean, -1e6), ("std", std, 1e-6)):
        right = isinstance(values, list | tuple) and len(values) == 3
        if not (right and all(isinstance(value, int | float) and least <= value < 1e6 for value in values)):
            raise CliptexError(f"{where}: {name} of the pixels must be three numbers; {FIX}")
    return {"size": tuple(size), "mean": tuple(mean), "std": tuple(std)}


# ---- timm


def _timm(options: FeaturesOptions, weights: Path | None) -> Teacher:
    own: dict[str, Any] = {}
    name, path = options.model, None
    if weights is not None and weights.is_dir():
        path = weights / "config.json"
        config = read_checked(path, {"architecture": str}, remedy=FIX)
        if config.get("model_args"):
            raise CliptexError(f"{path}: model_args cannot be read; use a model without")
        name, own = name or config["architecture"], config.get("pretrained_cfg") or {}
    if not name or not timm.is_model(name.partition(".")[0]):
        raise CliptexError(f"{path or 'experts.*.network.model'}: {name!r} is no architecture of timm; correct it")
    arguments = {"pretrained": False, "num_classes": 0}
    if options.input_size_px is None:
        network = timm.create_model(name, **arguments)
    else:
        try:
            network = timm.create_model(name, dynamic_img_size=True, **arguments)
        except TypeError:  # convolutions take any size
            network = timm.create_model(name, **arguments)
    if not hasattr(network, "forward_intermediates"):
        raise CliptexError(f"experts.*.network.model: {name} gives no feature maps; use another model of timm")
    if weights is not None:
        heads = network.pretrained_cfg.get("classifier") or ()
        heads = tuple(f"{head}." for head in ([heads] if isinstance(heads, str) else heads))
        tensors, expected = read_tensors(_file(weights)), network.state_dict()
        _load(network, weights, {k: v for k, v in tensors.items() if k in expected or not k.startswith(heads)})
    data = {**timm.data.resolve_model_data_config(network), **own} if isinstance(own, dict) else {}
    shape = data.get("input_size")
    size = shape[1:] if isinstance(shape, list | tuple) and len(shape) == 3 else ()
    read = _checked(str(path or name), size or (0, 0), data.get("mean"), data.get("std"))

    def maps(images_BCHW: torch.Tensor) -> list[torch.Tensor]:
        return network.forward_intermediates(
            images_BCHW, indices=1, norm=True, output_fmt="NCHW", intermediates_only=True
        )

    return Teacher(network, f"timm {name}", maps, **read)


# ---- open_clip


def _open_clip(options: FeaturesOptions, weights: Path | None) -> Teacher:
    import open_clip
    from open_clip.model import _build_vision_tower
    from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model

    config = open_clip.get_model_config(options.model) if options.model in open_clip.list_models() else None
    if config is None:
        raise CliptexError(f"experts.*.network.model: {options.model!r} is no architecture of open_clip; correct it")
    # the image tower alone: text towers of other libraries are on a hub
    network = _build_vision_tower(config["embed_dim"], config["vision_cfg"], config.get("quick_gelu", False))
    if not hasattr(network, "forward_intermediates"):
        raise CliptexError(f"experts.*.network.model: {options.model} gives no patch tokens; use a vision transformer")
    if weights is not None:
        if weights.is_dir():
            raise CliptexError(f"{weights}: a folder; name open_clip's weights, e.g. file: open_clip_model.safetensors")
        tensors = {k.removeprefix("visual."): v for k, v in read_tensors(weights).items() if k.startswith("visual.")}
        _load(network, weights, tensors)
    tags = [get_pretrained_cfg(options.model, tag) for tag in list_pretrained_tags_by_model(options.model)]
    known = {(tuple(tag.get("mean") or CLIP_MEAN), tuple(tag.get("std") or CLIP_STD)) for tag in tags}
    if len(known) != 1 and (options.mean is None or options.std is None):
        raise CliptexError(
            f"experts.*.network.mean: the weights of {options.model} differ in it, or none are published; set `mean`"
            " and `std` to those in open_clip_config.json"
        )
    mean, std = known.pop() if len(known) == 1 else (CLIP_MEAN, CLIP_STD)
    side = network.image_size
    size = (side, side) if isinstance(side, int) else tuple(side)

    def maps(images_BCHW: torch.Tensor) -> list[torch.Tensor]:
        arguments = {"indices": 1, "normalize_intermediates": True, "intermediates_only": True}
        return network.forward_intermediates(images_BCHW, **arguments)["image_intermediates"]

    return Teacher(network, f"open_clip {options.model}", maps, size, mean, std, "visual.")


# ---- the workflow's backbone


def _backbone(options: FeaturesOptions, weights: Path | None) -> Teacher:
    name = options.model or "cliptex_resnet"
    if not timm.is_model(name):
        raise CliptexError(f"experts.*.network.model: {name!r} is no architecture of timm; correct it")
    network = timm.create_model(name, features_only=True, out_indices=(1, 2, 3, 4))
    if weights is not None:
        _load(network, weights, read_tensors(weights))
    return Teacher(network, f"backbone {name}", network, (96, 96), IMAGENET_MEAN, IMAGENET_STD)


# ---- transformers


def _transformers(options: FeaturesOptions, weights: Path | None) -> Teacher:
    from transformers import AutoConfig, AutoModel

    if weights is not None and weights.is_dir():
        module, read = _from_folder(weights, options)
    else:
        values = dict(options.config)
        kind = values.pop("model_type", None)
        if kind not in (*PREFIX, *TWO_TOWERS):
            raise CliptexError(f"experts.*.network.config.model_type: {kind!r} cannot be read; {_choices()}")
        module = _tower(AutoModel.from_config(AutoConfig.for_model(kind, **values)))
        if weights is not None:
            _load(module, weights, read_tensors(weights))
        # C-RADIO normalises pixels itself
        read = {"size": None, "mean": (0.0,) * 3, "std": (1.0,) * 3} if kind == "radio" else CLIP
    config = module.config
    if read["size"] is None:
        read = dict(read)
        side = getattr(config, "image_size", None) or int(config.num_patches**0.5) * config.patch_size
        read["size"] = (side, side) if isinstance(side, int) else tuple(side)
    patch, prefix = config.patch_size, PREFIX[config.model_type](config)

    def maps(images_BCHW: torch.Tensor) -> list[torch.Tensor]:
        shape = tuple(side // patch for side in images_BCHW.shape[-2:])
        own: dict[str, Any] = {}
        if config.model_type in ("clip_vision_model", "siglip_vision_model", "vit", "ijepa"):
            own = {"interpolate_pos_encoding": tuple(images_BCHW.shape[-2:]) != (config.image_size,) * 2}
        if config.model_type == "siglip2_vision_model":
            images_BCHW, own = _patches(images_BCHW, patch, shape)
        tokens_BTC = module(pixel_values=images_BCHW, **own).last_hidden_state
        if tokens_BTC.shape[1] != prefix + shape[0] * shape[1]:
            raise ValueError(f"{tokens_BTC.shape[1]} tokens for {shape[0]} x {shape[1]} patches")
        return [tokens_BTC[:, prefix:].transpose(1, 2).unflatten(2, shape)]

    return Teacher(module, f"transformers {config.model_type}", maps, **read)


def _patches(
    images_BCHW: torch.Tensor, patch: int, shape: tuple[int, int]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Input of SigLIP 2 of any shape: flattened patches [B, h * w, patch * patch * C], their mask and shapes."""
    rows, columns = shape
    parts = images_BCHW.unflatten(2, (rows, patch)).unflatten(4, (columns, patch))  # B C h p w q
    flat = parts.permute(0, 2, 4, 3, 5, 1).flatten(1, 2).flatten(2)
    mask = torch.ones(flat.shape[:2], dtype=torch.long, device=flat.device)
    shapes = torch.tensor([shape] * len(flat), device=flat.device)
    return flat, {"pixel_attention_mask": mask, "spatial_shapes": shapes}


def _choices() -> str:
    return f"use a network of {', '.join((*PREFIX, *TWO_TOWERS))}"


def _tower(module: nn.Module) -> nn.Module:
    """The vision tower of a model with two towers; the model itself if it has one."""
    return module.vision_model if module.config.model_type in TWO_TOWERS else module


def _from_folder(folder: Path, options: FeaturesOptions) -> tuple[nn.Module, dict[str, Any]]:
    """Vision network saved by transformers, and its preprocessing as arguments of Teacher."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    require_no_code(folder)
    path = folder / "config.json"
    config = read_checked(path, {"model_type": str}, remedy=FIX)
    kind = config["model_type"]
    if kind not in (*PREFIX, *TWO_TOWERS):
        raise CliptexError(f"{path}: model_type {kind!r} cannot be read; {_choices()}")
    if config.get("quantization_config"):
        raise CliptexError(f"{path}: quantised networks are not read; use the weights that are not quantised")
    module, read = load_saved(
        folder,
        CONFIG_MAPPING[kind],
        MODEL_MAPPING[CONFIG_MAPPING[kind]],
        lambda: _preprocessing(folder / "preprocessor_config.json", options),
        f"a {kind}",
        UNUSED,
        UNUSED,
    )
    return _tower(module.float()), read


def _preprocessing(path: Path, options: FeaturesOptions) -> dict[str, Any]:
    """Size, mean and std of a preprocessor_config.json. `size` is None for SigLIP 2 of any shape."""
    given = read_checked(path, {}, remedy=FIX) if path.is_file() else {}
    if not given and (options.mean is None or options.std is None or options.input_size_px is None):
        raise CliptexError(f"{path.parent}: lacks preprocessor_config.json, which defines the preprocessing; copy it")
    if abs(given.get("rescale_factor", 1 / 255) - 1 / 255) > 1e-6 or given.get("do_rescale") is False:
        raise CliptexError(f"{path}: rescale_factor other than 1/255 cannot be read; use another teacher")
    normalised = given.get("do_normalize", True)
    mean = given.get("image_mean", IMAGENET_MEAN) if normalised else (0.0,) * 3
    std = given.get("image_std", IMAGENET_STD) if normalised else (1.0,) * 3
    size = given.get("crop_size") if given.get("do_center_crop", True) and given.get("crop_size") else given.get("size")
    if isinstance(size, dict):
        side = size.get("shortest_edge")
        size = (size.get("height", side), size.get("width", side))
    if size is None or isinstance(size, int):
        size = None if size is None else (size, size)
    read = _checked(str(path), size or (1, 1), mean, std)
    return read if size else read | {"size": None}
