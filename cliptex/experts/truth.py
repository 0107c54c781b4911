"""Exact labels, rendered from the scenes of the miniature's pairs, and the best label that ignores the image."""

from pathlib import Path
from typing import Any

import numpy as np

from cliptex.config import Miniature
from cliptex.core.errors import CliptexError
from cliptex.experts.base import Expert
from cliptex.experts.options import TruthOptions, parse_options

EXACT_KAPPA = 1000.0


def true_label(task: str, truth: dict[str, np.ndarray]) -> np.ndarray:
    """The label of a render, as an expert for the task would return it.

    truth: `instance` (uint8 [H, W], 0 = none) and `instance_class` (uint8 [M], class 1..80 of instance i in column
    i - 1) for segmentation; `depth` (float [H, W], metres, NaN = sky) for depth, whose label is 1 / metres and 0 in the
    sky; `normals` (float [H, W, 3], NaN = sky) for normals, whose label has kappa = 1000 (expected error 0.1 degrees).
    """
    if task == "segmentation":
        return np.concatenate([[0], truth["instance_class"]]).astype(np.uint8)[truth["instance"]]
    if task == "depth":
        return np.nan_to_num(1 / truth["depth"].astype(np.float32), nan=0.0)
    normals = truth["normals"].astype(np.float32)
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    kappa = np.where(np.isfinite(normals[..., :1]), np.float32(EXACT_KAPPA), np.nan)
    return np.concatenate([normals, kappa], axis=-1)


def prior_label(task: str, renders: Path) -> np.ndarray | None:
    """One label for all images, as an expert for the task would return it; None for other tasks.

    renders: a file of labelled renders (see `cliptex.experts.fitting`), not the one evaluated on. Each pixel has the
    inverse of the mean depth there (0 if always sky), or the mean normal (NaN if always sky); segmentation has the
    background everywhere. Float32 [H, W] or [H, W, 3], uint8 [H, W].
    """
    from cliptex.experts.fitting import read_renders

    if task == "segmentation":
        return np.zeros(read_renders(renders, ("instance",))["instance"].shape[1:], np.uint8)
    if task not in ("depth", "normals"):
        return None
    values = read_renders(renders, (task,))[task]
    valid = np.isfinite(values)
    count = valid.sum(axis=0)
    total = np.sum(values, axis=0, dtype=np.float64, where=valid)
    if task == "depth":
        # the inverse of the mean scores better in the metrics than the mean of the inverse
        return np.divide(count, total, out=np.zeros_like(total), where=total > 0).astype(np.float32)
    length = np.linalg.norm(total, axis=-1, keepdims=True)
    return np.divide(total, length, out=np.full_like(total, np.nan), where=length > 0).astype(np.float32)


class TruthExpert(Expert):
    """Exact labels of the miniature's pairs. `settings["miniature"]` is the config section that they are made from."""

    trainable = False
    uses_miniature = True

    def __init__(self, settings: dict[str, Any]):
        super().__init__(settings)
        self.task = parse_options(TruthOptions, settings.get("network", {}), "network").task

    def load(self, weights: Path | None) -> None:
        if "miniature" not in self.settings:
            raise CliptexError("experts: `truth` needs the config's `miniature`; it cannot label another data set")
        self._miniature = Miniature.model_validate(self.settings["miniature"])

    def predict(self, images: list[np.ndarray], keys: list[str]) -> list[np.ndarray]:
        """Raises CliptexError for an unknown key, and if an image and its pair differ in size."""
        from cliptex.data.miniature.sets import KIND_COCO, scene_for_key

        labels = []
        for image, key in zip(images, keys, strict=True):
            scene = scene_for_key(self._miniature, key)
            classes = np.array([KIND_COCO[item.kind] for item in scene.objects], np.uint8)
            maps = {"instance": scene.instances, "depth": scene.depth, "normals": scene.normals}
            label = true_label(self.task, maps | {"instance_class": classes})
            if label.shape[:2] != image.shape[:2]:
                raise CliptexError(
                    f"{key}: not an image of the configured miniature; `truth` cannot label another data set"
                )
            labels.append(label)
        return labels


PLUGIN = TruthExpert
