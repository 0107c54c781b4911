"""Recall of correspondences between two views of a scene, from depth and poses (El Banani et al. 2024, 2404.08636).

The error of a match is the distance between the place found in the second view and the true one, to which the first
view's point is projected. It is in pixels of an image with `ROWS` rows, since Probe3D measures at a quarter of
480 x 640 pixels; so thresholds are the same shares of an image at any resolution. A point whose true place the second
view does not show counts, too, as there. Per-image parts (a pair counts as an image): `correct_5`, `correct_10` and
`correct_20` int32 [N], numbers of matches with a smaller error, `matches` int32 [N], and `angle` float32 [N], degrees.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from cliptex.evaluation.metrics.base import Arrays, mean_over_images

ROWS = 120
THRESHOLDS_PX = (5, 10, 20)
ANGLES = (0, 15, 30, 60, 180)
"""Limits of the bins of the angle between views, degrees."""
MAIN = "recall@10px"


def grid_points(depth_HW: np.ndarray, stride: int) -> np.ndarray:
    """Pixels with depth of a grid of every `stride`-th row and column, int64 [N, 2], columns and rows."""
    first = stride // 2
    rows, columns = np.nonzero(np.isfinite(depth_HW[first::stride, first::stride]))
    return np.stack([columns, rows], 1) * stride + first


def unproject(places_N2: np.ndarray, depth_N: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
    """Points float64 [N, 3] in camera coordinates, metres. places: columns and rows, pixels. depth: z, metres."""
    homogeneous = np.concatenate([places_N2, np.ones((len(places_N2), 1))], 1)
    return homogeneous @ np.linalg.inv(intrinsics).T * depth_N[:, None].astype(np.float64)


def project(points_N3: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
    """Places float64 [N, 2], columns and rows; NaN for points that are not in front of the camera."""
    front = points_N3[:, 2:] > 0
    homogeneous = np.divide(points_N3, points_N3[:, 2:], out=np.full(points_N3.shape, np.nan), where=front)
    return (homogeneous @ intrinsics.T)[:, :2]


def in_second_view(pair: Mapping[str, Any], places_N2: np.ndarray) -> np.ndarray:
    """Points float64 [N, 3] in the second camera's coordinates of pixels of the first view. pair: a sample with
    `depth`, `intrinsics` and `transform`, as of the benchmark `scannet1500`."""
    depth = pair["depth"][places_N2[:, 1], places_N2[:, 0]]
    points = unproject(places_N2, depth, pair["intrinsics"])
    return points @ pair["transform"][:3, :3].T + pair["transform"][:3, 3]


def match_errors(pair: Mapping[str, Any], places_K2: np.ndarray, found_K2: np.ndarray) -> np.ndarray:
    """Errors float64 [K] of matches, pixels of an image with `ROWS` rows; infinite if the point is behind the second
    camera. places, found: pixels of the first and of the second view, columns and rows."""
    true = project(in_second_view(pair, places_K2), pair["intrinsics"])
    distance = np.linalg.norm(true - found_K2, axis=1) * ROWS / len(pair["depth"])
    return np.where(np.isnan(distance), np.inf, distance)


def view_angle(transform: np.ndarray) -> float:
    """Angle of the rotation between two cameras, degrees."""
    return float(np.degrees(np.arccos(np.clip((np.trace(transform[:3, :3]) - 1) / 2, -1, 1))))


def chance_recall(pair: Mapping[str, Any], stride: int) -> float:
    """Share of correct matches (`MAIN`) if each point of the first view's grid is matched with one of the second's that
    is drawn uniformly; exact."""
    from scipy.spatial import cKDTree

    true = project(in_second_view(pair, grid_points(pair["depth"], stride)), pair["intrinsics"])
    candidates = grid_points(pair["target_depth"], stride)
    # the tree counts neighbours at the distance itself, which are not correct
    radius = np.nextafter(THRESHOLDS_PX[1] * len(pair["depth"]) / ROWS, 0)
    near = cKDTree(candidates).query_ball_point(true[np.isfinite(true).all(1)], radius, return_length=True)
    return float(near.sum() / (len(true) * len(candidates)))


def geometric_statistics(errors: Sequence[np.ndarray], angles: Sequence[float]) -> Arrays:
    """Per-image parts. errors: of the matches of each pair, [K]. angles: between its views, degrees."""
    counts = {
        f"correct_{limit}": np.array([(pair < limit).sum() for pair in errors], np.int32) for limit in THRESHOLDS_PX
    }
    matches = np.array([len(pair) for pair in errors], np.int32)
    return {**counts, "matches": matches, "angle": np.array(angles, np.float32)}


def angle_bins(angles: np.ndarray) -> dict[str, np.ndarray]:
    """Name of each bin of `ANGLES` -> bool [N]: whether an angle is in it; the last bin has 180 degrees, too."""
    number = np.clip(np.searchsorted(ANGLES, angles, side="right"), 1, len(ANGLES) - 1)
    return {f"{low}_{high}": number == bin + 1 for bin, (low, high) in enumerate(pairwise(ANGLES))}


def geometric_metrics(arrays: Arrays) -> dict[str, float | None]:
    """All metrics, percent: the mean over pairs of each pair's recall, by threshold, and by angle at the main one; None
    for a bin without pairs."""
    metrics: dict[str, float | None] = {
        f"recall@{limit}px": 100 * float(np.mean(arrays[f"correct_{limit}"] / arrays["matches"]))
        for limit in THRESHOLDS_PX
    }
    main = arrays[f"correct_{THRESHOLDS_PX[1]}"] / arrays["matches"]
    for name, inside in angle_bins(arrays["angle"]).items():
        metrics[f"{MAIN}_{name}"] = 100 * float(main[inside].mean()) if inside.any() else None
    return metrics


def recall(arrays: Arrays, weights: np.ndarray) -> np.ndarray:
    """`MAIN`, percent, for each row of weights [B, N]: float64 [B]."""
    return 100 * mean_over_images(arrays[f"correct_{THRESHOLDS_PX[1]}"] / arrays["matches"], weights)
