"""Small copies of a probe's predictions of all evaluation images: to look at any of them later, not to judge by.

Reads, writes  `{head}.thumbnails.npz` beside a probe's JSON, as `cliptex.evaluation.per_image` does, with arrays by task
    semantic_segmentation   masks, at most 96 pixels a side
    depth                   metres as bytes of each image's range, at most 48 pixels a side
    normals                 x, y, z as signed bytes, at most 48 pixels a side
    detection               the 20 boxes of an image with the highest scores
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from cliptex.evaluation.per_image import Arrays

MASK_SIDE_PX = 96
MAP_SIDE_PX = 48
BOXES = 20


def thumbnails_path(path: Path) -> Path:
    """`linear.json` -> `linear.thumbnails.npz`."""
    return path.with_name(f"{path.stem}.thumbnails.npz")


def shrunk(array: np.ndarray, side: int) -> np.ndarray:
    """[H, W, ...] at the centres of a grid whose longer side is at most `side`; the same array where it fits."""
    height, width = array.shape[:2]
    scale = min(1.0, side / max(height, width))
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int)
        for old, new in ((height, max(1, round(scale * height))), (width, max(1, round(scale * width))))
    )
    return array if scale == 1 else array[rows][:, columns]


def mask_thumbnails(masks: Iterable[np.ndarray]) -> Arrays:
    """Of masks uint8 [H, W]."""
    return _packed([shrunk(mask, MASK_SIDE_PX) for mask in masks])


def depth_thumbnails(depths: Iterable[np.ndarray]) -> Arrays:
    """Of depths [H, W] in metres."""
    small = [shrunk(depth, MAP_SIDE_PX).astype(np.float32) for depth in depths]
    ranges = np.array([(depth.min(), depth.max()) for depth in small])
    steps = [
        np.round((depth - low) / max(high - low, 1e-6) * 255).astype(np.uint8)
        for depth, (low, high) in zip(small, ranges, strict=True)
    ]
    return {**_packed(steps), "ranges": ranges}


def normals_thumbnails(normals: Iterable[np.ndarray]) -> Arrays:
    """Of unit normals [H, W, 3]."""
    return _packed([np.round(127 * shrunk(one, MAP_SIDE_PX)).astype(np.int8) for one in normals])


def box_thumbnails(detections: Sequence[Mapping[str, np.ndarray]]) -> Arrays:
    """Of the `boxes` (xyxy), `labels` and `scores` of each image."""
    best = [np.argsort(-found["scores"], kind="stable")[:BOXES] for found in detections]
    kinds = {"boxes": np.float32, "labels": np.int32, "scores": np.float32}
    joined = {
        name: np.concatenate(
            [np.empty((0, 4) if name == "boxes" else 0, kind)]
            + [found[name][chosen].astype(kind) for found, chosen in zip(detections, best, strict=True)]
        )
        for name, kind in kinds.items()
    }
    return {"counts": np.array([len(chosen) for chosen in best]), **joined}


def unpacked(task: str, arrays: Arrays, index: int) -> dict[str, np.ndarray]:
    """An image's prediction: `mask` uint8 [h, w], `depth` float32 [h, w] metres, `normals` float32 [h, w, 3], or
    `boxes` [n, 4], `labels` [n], `scores` [n]."""
    if task == "detection":
        start = int(arrays["counts"][:index].sum())
        own = slice(start, start + int(arrays["counts"][index]))
        return {name: arrays[name][own] for name in ("boxes", "labels", "scores")}
    sizes = np.prod(arrays["shapes"], axis=1)
    start = int(sizes[:index].sum())
    values = arrays["values"][start : start + int(sizes[index])].reshape(arrays["shapes"][index])
    if task == "semantic_segmentation":
        return {"mask": values}
    if task == "depth":
        low, high = arrays["ranges"][index]
        return {"depth": low + values.astype(np.float32) / 255 * (high - low)}
    normals = values.astype(np.float32)
    return {"normals": normals / np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-6)}


def _packed(arrays: Sequence[np.ndarray]) -> Arrays:
    """Arrays of any size one after another, and their shapes."""
    return {
        "shapes": np.array([array.shape for array in arrays]),
        "values": np.concatenate([array.ravel() for array in arrays]),
    }
