"""PCK, the percentage of correct keypoints of image pairs (Yang and Ramanan 2013; Min et al. 2019 for SPair-71k).

A keypoint is correct if its predicted place is within alpha times the longer side of the target object's box. PCK per
image is the mean of the pairs' shares of correct keypoints; PCK per point is the share of all keypoints.
Per-image parts: `correct_0.1` and `correct_0.05` int32 [N], numbers of correct keypoints by alpha, `points` int32 [N],
and `category` int32 [N].
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cliptex.evaluation.metrics.base import Arrays, mean_over_images, ratio

ALPHAS = (0.1, 0.05)
MAIN = "PCK@0.1"


def correct(places_K2: np.ndarray, truth_K2: np.ndarray, box: np.ndarray, alpha: float) -> np.ndarray:
    """bool [K]: whether places (columns and rows, pixels) are correct. box: of the target object, xyxy."""
    distance = np.linalg.norm(places_K2.astype(np.float64) - truth_K2, axis=1)
    return distance <= alpha * max(float(box[2] - box[0]), float(box[3] - box[1]))


def correspondence_statistics(places: Sequence[np.ndarray], truths: Sequence[Mapping[str, Any]]) -> Arrays:
    """Per-image parts. places: predicted, [K, 2] of each pair. truths: `target_keypoints`, `target_box`, `label`."""
    counts = {
        f"correct_{alpha:g}": np.array(
            [
                correct(place, truth["target_keypoints"], truth["target_box"], alpha).sum()
                for place, truth in zip(places, truths, strict=True)
            ],
            np.int32,
        )
        for alpha in ALPHAS
    }
    points = np.array([len(place) for place in places], np.int32)
    return {**counts, "points": points, "category": np.array([truth["label"] for truth in truths], np.int32)}


def correspondence_metrics(arrays: Arrays) -> dict[str, float]:
    """All metrics, percent: by alpha PCK per image and per point, and the mean over categories of PCK per image."""
    metrics = {}
    for alpha in ALPHAS:
        name, hits = f"PCK@{alpha:g}", arrays[f"correct_{alpha:g}"]
        metrics[name] = 100 * float(np.mean(hits / arrays["points"]))
        metrics[f"{name}_per_point"] = 100 * float(hits.sum() / arrays["points"].sum())
    metrics[f"{MAIN}_category_mean"] = float(np.nanmean(pck_of_categories(arrays)))
    return metrics


def pck(arrays: Arrays, weights: np.ndarray) -> np.ndarray:
    """PCK@0.1 per image, percent, for each row of weights [B, N]: float64 [B]."""
    return 100 * mean_over_images(arrays["correct_0.1"] / arrays["points"], weights)


def pck_of_categories(arrays: Arrays, count: int = 18) -> np.ndarray:
    """PCK@0.1 per image of each category, percent, float64 [count]; NaN without pairs. count: SPair-71k has 18."""
    category = arrays["category"]
    total = np.bincount(category, arrays["correct_0.1"] / arrays["points"], minlength=count)
    return 100 * ratio(total, np.bincount(category, minlength=count))


def chance_pck(truths: Sequence[Mapping[str, Any]], sizes: Sequence[tuple[int, int]], alpha: float = 0.1) -> float:
    """PCK per image, percent, of places that are drawn uniformly in the target image, from a grid of 64 x 64 places.
    sizes: height and width of the target images."""
    shares = []
    for truth, (height, width) in zip(truths, sizes, strict=True):
        steps = (np.arange(64) + 0.5) / 64
        grid = np.stack(np.meshgrid(steps * width - 0.5, steps * height - 0.5), -1).reshape(-1, 2)
        hits = [
            correct(grid, np.broadcast_to(point, grid.shape), truth["target_box"], alpha).mean()
            for point in truth["target_keypoints"]
        ]
        shares.append(np.mean(hits))
    return 100 * float(np.mean(shares))
