"""Depth, segmentation or normals by any dense model of transformers, through its own image processor.

Shape suffixes: B batch, C channels, H height, W width.
"""

import inspect
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoImageProcessor
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from cliptex.core.errors import CliptexError
from cliptex.core.files import read_json
from cliptex.experts.class_list import ClassList, class_list, is_coco, output_names
from cliptex.experts.network import NetworkExpert, finite, to_host
from cliptex.experts.options import TransformersOptions
from cliptex.experts.saved_model import MAX_SIDE, load_saved, require_folder, require_working
from cliptex.experts.transformers_families import (
    MAY_HAVE,
    MAY_LACK,
    cannot_be_semantic,
    default_segments,
    depth_kind,
    family_of,
)

POST_PROCESS = {"depth": "post_process_depth_estimation", "normals": "post_process_normal_estimation"}
MIN_METRES = 0.1
"""Nearer values count as this near: the resizing of a map of metres may pass below zero."""
KAPPA = 10.0
"""Concentration of all normals, since these networks give none; its expected error is 11 degrees."""
SIZE_KEYS = ("height", "width", "shortest_edge", "longest_edge", "max_height", "max_width")
BACKBONE_NAMES = ("backbone", "architecture")


class TransformersExpert(NetworkExpert):
    """Labels of the task that the model has an output for: float32 [H, W] relative inverse depth, larger = nearer;
    float32 [H, W, 4] unit normals and a constant kappa; or uint8 or uint16 [H, W] classes (see `class_list`)."""

    Network = TransformersOptions

    def __init__(self, settings: dict[str, Any]):
        super().__init__(settings)
        self.task = self.network.task or ""  # until the model is loaded
        self.classes: ClassList | None = None

    def build(self) -> nn.Module:
        raise CliptexError(
            "experts.*.weights: a network of transformers is read from the folder of a saved model; use `hub` with"
            " `repo` and without `file`, or `local` with the folder as `path`"
        )

    def load(self, weights: Path | None) -> None:
        if weights is None or not Path(weights).is_dir():
            self.build()
        folder = Path(weights)
        require_folder(folder)
        path = folder / "config.json"
        config = _own_config(path)
        self.family = family_of(config, self.network.task, str(path))
        self.task = self.family.task
        if self.task == "depth":
            self.predicts = depth_kind(config, self.network.predicts, str(path))
        module, self.processor = self._load(folder, config["model_type"])
        self.module = module.float().to(self.device).eval()
        # ZoeDepth with several heads lets all images of a batch vote for one of them
        self._alone = len(getattr(module.config, "bin_configurations", ())) > 1
        self._accepted = set(inspect.signature(self.module.forward).parameters)
        if self.task == "segmentation":
            names = output_names(config, self.network.classes, self.module.config.num_labels, str(path))
            padded = bool(getattr(self.processor, "do_pad", False))
            own = default_segments(self.family.class_name, is_coco(names), padded)
            self.segments = self.network.segments or own
            if self.segments == "semantic" and cannot_be_semantic(self.family.class_name, padded):
                raise CliptexError(
                    f"{folder}/preprocessor_config.json: pads images, which semantic post-processing of EoMT does not"
                    " undo; set network.segments to panoptic or instance"
                )
            self.classes = class_list(names, self.segments == "instance")
        name = POST_PROCESS.get(self.task) or f"post_process_{self.segments}_segmentation"
        self._post_process = getattr(self.processor, name, None)
        path = folder / "preprocessor_config.json"
        if self._post_process is None:
            raise CliptexError(
                f"{path}: {type(self.processor).__name__} has no {name}"
                + ("; set network.segments to another kind" if self.task == "segmentation" else "; use another network")
            )
        _require_sizes(path, self.processor)
        require_working(path, self.processor, **self._task_names(1))
        self._input_size = lru_cache(maxsize=10_000)(self._measured_size)

    def _load(self, folder: Path, kind: str) -> tuple[nn.Module, Any]:
        import transformers

        # OneFormer's processor would fetch a file with the names of classes from the hub
        own = {"class_info_file": ""} if kind == "oneformer" else {}
        return load_saved(
            folder,
            CONFIG_MAPPING[kind],
            getattr(transformers, self.family.class_name),
            lambda: AutoImageProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **own),
            f"a {self.family.class_name}",
            MAY_LACK.get(kind, ()),
            MAY_HAVE.get(kind, ()),
        )

    def task_parameters(self) -> dict[str, Any]:
        """`class_names`, unless they are the task's own."""
        return {"class_names": self.classes.names} if self.classes and self.classes.names else {}

    @property
    def remedy(self) -> str:
        if self.task == "depth":
            return "correct network.predicts (metres grow with the distance, inverse_depth falls)"
        return "correct id2label, or set network.classes"

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        return self._input_size(height, width)

    def _measured_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of what the processor makes of an image; (0, 0) for one that it cannot take."""
        image_CHW = torch.zeros((3, height, width), dtype=torch.uint8)
        try:
            return tuple(self._processed([image_CHW])["pixel_values"].shape[-2:])
        except Exception:  # transformers raises many types of errors for extreme shapes; `label` reports them
            return 0, 0

    def _task_names(self, count: int) -> dict[str, Any]:
        """The further argument of OneFormer's processor."""
        return {"task_inputs": [self.segments] * count} if self.family.model_type == "oneformer" else {}

    def _processed(self, images: list[torch.Tensor]) -> dict[str, Any]:
        own = self._task_names(len(images))
        return self.processor(images=images, input_data_format="channels_first", return_tensors="pt", **own)

    def label(self, images: list[torch.Tensor]) -> list[np.ndarray]:
        if self._alone and len(images) > 1:
            return [label for image_CHW in images for label in self.label([image_CHW])]
        sizes = [tuple(image_CHW.shape[-2:]) for image_CHW in images]
        if 0 in self.input_size(*sizes[0]):
            raise ValueError(f"the network cannot take images of {sizes[0][0]} x {sizes[0][1]} pixels")
        inputs = {
            name: value.to(self.device) if isinstance(value, torch.Tensor) else value
            for name, value in self._processed(images).items()
            if name in self._accepted and name != "task_inputs"
        }
        if self._task_names(1):
            tokens_N = torch.tensor(task_tokens(self.segments, self.module.config.task_seq_len))
            inputs["task_inputs"] = tokens_N.to(self.device).expand(len(images), -1)
        outputs = self.module(**inputs)
        for name, value in outputs.items():
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                outputs[name] = finite(value.float())
        if self.task == "segmentation":
            return self._classes(outputs, sizes)
        own = {"source_sizes": sizes} if "source_sizes" in inspect.signature(self._post_process).parameters else {}
        results = self._post_process(outputs, target_sizes=sizes, **own)
        convert = self._depth if self.task == "depth" else self._normals
        return to_host([convert(result) for result in results])

    def _depth(self, result: dict[str, torch.Tensor]) -> torch.Tensor:
        depth_HW = finite(result["predicted_depth"].float())
        return 1 / depth_HW.clamp(min=MIN_METRES) if self.predicts == "metres" else depth_HW.clamp(min=0)

    def _normals(self, result: dict[str, torch.Tensor]) -> torch.Tensor:
        normals_3HW = nn.functional.normalize(result["normals"].float(), dim=0)
        normals_3HW = normals_3HW * normals_3HW.new_tensor(self.network.signs)[:, None, None]
        kappa_1HW = torch.full_like(normals_3HW[:1], KAPPA)
        return torch.cat([finite(normals_3HW), kappa_1HW]).permute(1, 2, 0).contiguous()

    def _classes(self, outputs: Any, sizes: list[tuple[int, int]]) -> list[np.ndarray]:
        if self.segments == "semantic":
            return [self.classes.codes[one] for one in to_host(self._post_process(outputs, target_sizes=sizes))]
        own: dict[str, Any] = {"threshold": self.network.score_threshold}
        arguments = inspect.signature(self._post_process).parameters
        if "return_binary_maps" in arguments:
            own["return_binary_maps"] = True  # whole masks, also where others cover them
        if "label_ids_to_fuse" in arguments:
            own["label_ids_to_fuse"] = set()  # segments of one class are painted alike
        results = self._post_process(outputs, target_sizes=sizes, **own)
        return [self._painted(result, size) for result, size in zip(results, sizes, strict=True)]

    def _painted(self, result: dict[str, Any], size: tuple[int, int]) -> np.ndarray:
        """Segments in ascending order of score; of equal scores, the one listed first is painted last. Other pixels are
        background in the labels of instances, and ignored in panoptic ones, where every pixel should have a class."""
        label = np.full(size, 0 if self.segments == "instance" else self.classes.ignore, self.classes.dtype)
        segments = result["segments_info"]
        scores_N = np.array([segment["score"] for segment in segments])
        masks = result["segmentation"]
        for index in np.argsort(-scores_N, kind="stable")[::-1]:
            code = self.classes.codes[segments[index]["label_id"]]
            if code != self.classes.ignore:
                mask_HW = masks[index] > 0.5 if masks.ndim == 3 else masks == segments[index]["id"]
                label[mask_HW.cpu().numpy()] = code
        return label


def task_tokens(segments: str, length: int) -> list[int]:
    """OneFormer's task as tokens of CLIP, zeros after the last, as its processor makes them."""
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer(context_length=length)([f"the task is {segments}"])[0].tolist()


def _own_config(path: Path) -> dict[str, Any]:
    """The content of a config.json. Raises CliptexError if its network is quantised, or takes parts from elsewhere."""
    config = read_json(path)
    if not isinstance(config, dict):
        raise CliptexError(f"{path}: not the configuration of a model; copy the folder again")
    if config.get("quantization_config"):
        raise CliptexError(f"{path}: quantised networks are not read; use the weights that are not quantised")
    if name := _remote_backbone(config):
        raise CliptexError(
            f"{path}: its backbone {name!r} is described in another repository; use a config.json with backbone_config"
        )
    return config


def _remote_backbone(config: dict[str, Any]) -> str | None:
    for key, value in config.items():
        if key in BACKBONE_NAMES and isinstance(value, str) and set(value) & set("/:"):
            return value
        if isinstance(value, dict) and (name := _remote_backbone(value)):
            return name
    return None


def _require_sizes(path: Path, processor: Any) -> None:
    """Raise CliptexError for sizes of the input that no published network has."""
    for name in ("size", "crop_size", "pad_size"):
        size = getattr(processor, name, None) or {}
        values = {key: size.get(key) for key in SIZE_KEYS} if hasattr(size, "get") else {}
        for key, value in values.items():
            if value is not None and not (isinstance(value, int) and 0 < value <= MAX_SIDE):
                raise CliptexError(f"{path}: set {key} of `{name}` to 1 to {MAX_SIDE}")


PLUGIN = TransformersExpert
