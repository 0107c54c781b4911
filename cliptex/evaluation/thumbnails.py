"""Small copies of a probe's predictions for all evaluation images, for the report's gallery; not used for metrics.

Reads, writes  `{head}.thumbnails.npz` next to a probe's JSON, in the format of `cliptex.evaluation.per_image`; the top
               of a task's file, cliptex/evaluation/probes/*.py, describes the content
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from cliptex.evaluation.metrics.base import Arrays

MASK_SIDE_PX = 96
MAP_SIDE_PX = 48
BOXES = 20


def thumbnails_path(path: Path) -> Path:
    """`linear.json` -> `linear.thumbnails.npz`."""
    return path.with_name(f"{path.stem}.thumbnails.npz")


def shrunk(array: np.ndarray, side: int) -> np.ndarray:
    """Sample [H, W, ...] at the centres of a grid whose longer side is at most `side`; the array itself if it fits."""
    height, width = array.shape[:2]
    scale = min(1.0, side / max(height, width))
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int)
        for old, new in ((height, max(1, round(scale * height))), (width, max(1, round(scale * width))))
    )
    return array if scale == 1 else array[rows][:, columns]


def mask_thumbnails(masks: Iterable[np.ndarray]) -> Arrays:
    """Thumbnails of masks uint8 [H, W]."""
    return packed_masks([shrunk(mask, MASK_SIDE_PX) for mask in masks])


def packed_masks(masks: Sequence[np.ndarray]) -> Arrays:
    """Thumbnails of masks uint8 [h, w] that are small already."""
    return _packed(masks)


def depth_thumbnails(depths: Iterable[np.ndarray]) -> Arrays:
    """Thumbnails of depths [H, W] in metres."""
    small = [shrunk(depth, MAP_SIDE_PX).astype(np.float32) for depth in depths]
    ranges = np.array([(depth.min(), depth.max()) for depth in small])
    steps = [
        np.round((depth - low) / max(high - low, 1e-6) * 255).astype(np.uint8)
        for depth, (low, high) in zip(small, ranges, strict=True)
    ]
    return {**_packed(steps), "ranges": ranges}


def normals_thumbnails(normals: Iterable[np.ndarray]) -> Arrays:
    """Thumbnails of unit normals [H, W, 3]."""
    return _packed([np.round(127 * shrunk(image, MAP_SIDE_PX)).astype(np.int8) for image in normals])


def box_thumbnails(detections: Sequence[Mapping[str, np.ndarray]]) -> Arrays:
    """Thumbnails of the `boxes` (xyxy), `labels` and `scores` of each image."""
    best = [np.argsort(-image["scores"], kind="stable")[:BOXES] for image in detections]
    dtypes = {"boxes": np.float32, "labels": np.int32, "scores": np.float32}
    joined = {
        name: np.concatenate(
            [np.empty((0, 4) if name == "boxes" else 0, dtype)]
            + [image[name][chosen].astype(dtype) for image, chosen in zip(detections, best, strict=True)]
        )
        for name, dtype in dtypes.items()
    }
    return {"counts": np.array([len(chosen) for chosen in best]), **joined}


def unpacked_boxes(arrays: Arrays, index: int) -> dict[str, np.ndarray]:
    """`boxes` [n, 4], `labels` [n] and `scores` [n] of an image."""
    start = int(arrays["counts"][:index].sum())
    rows = slice(start, start + int(arrays["counts"][index]))
    return {name: arrays[name][rows] for name in ("boxes", "labels", "scores")}


def unpacked_mask(arrays: Arrays, index: int) -> dict[str, np.ndarray]:
    """`mask` of an image, uint8 [h, w]."""
    return {"mask": _unpacked(arrays, index)}


def unpacked_depth(arrays: Arrays, index: int) -> dict[str, np.ndarray]:
    """`depth` of an image, float32 [h, w] metres."""
    low, high = arrays["ranges"][index]
    return {"depth": low + _unpacked(arrays, index).astype(np.float32) / 255 * (high - low)}


def unpacked_normals(arrays: Arrays, index: int) -> dict[str, np.ndarray]:
    """`normals` of an image, unit vectors float32 [h, w, 3]."""
    normals = _unpacked(arrays, index).astype(np.float32)
    return {"normals": normals / np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-6)}


def _unpacked(arrays: Arrays, index: int) -> np.ndarray:
    sizes = np.prod(arrays["shapes"], axis=1)
    start = int(sizes[:index].sum())
    return arrays["values"][start : start + int(sizes[index])].reshape(arrays["shapes"][index])


def _packed(arrays: Sequence[np.ndarray]) -> Arrays:
    """Concatenate arrays of any shape, and keep their shapes."""
    values = np.concatenate([array.ravel() for array in arrays])
    return {"shapes": np.array([array.shape for array in arrays]), "values": values}
