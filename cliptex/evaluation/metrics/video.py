"""J and F of video object segmentation (Perazzi et al. 2016; Pont-Tuset et al. 2017, arXiv 1704.00675).

J is the intersection over union of an object's mask; F is the harmonic mean of precision and recall of the pixels on
its contour, where a pixel is matched by a contour within 0.008 of the frame's diagonal. Both are means over an object's
frames without the first, which is given, and the last; then over the objects of all videos.
Per-image parts: `region` and `contour` float64 [N], sums over a video's objects of J and F in percent, and `objects`
int32 [N].
"""

from collections.abc import Iterable, Sequence

import numpy as np
from scipy.ndimage import distance_transform_edt, maximum_filter, minimum_filter

from cliptex.evaluation.metrics.base import Arrays, ratio

TOLERANCE = 0.008
"""Largest distance of matched contours, as a fraction of the frame's diagonal."""
VOID = 255
RECALLED = 0.5
"""Recall is the share of frames with a larger value."""


def region_similarity(prediction: np.ndarray, truth: np.ndarray) -> float:
    """J of two bool masks [H, W], 0..1; 1 if both are empty."""
    union = np.count_nonzero(prediction | truth)
    return np.count_nonzero(prediction & truth) / union if union else 1.0


def contour(mask: np.ndarray) -> np.ndarray:
    """The pixels bool [H, W] of a bool mask that differ from their right, lower or lower right neighbour; edges are
    repeated."""
    # with this origin, the window of 2 x 2 pixels starts at the pixel
    window = {"size": 2, "mode": "nearest", "origin": -1}
    values = mask.astype(np.uint8)
    return maximum_filter(values, **window) != minimum_filter(values, **window)


def contour_accuracy(prediction: np.ndarray, truth: np.ndarray) -> float:
    """F of two bool masks [H, W], 0..1. If one of them has no contour, precision or recall of the other is 0."""
    radius = int(np.ceil(TOLERANCE * np.hypot(*truth.shape)))
    edges = [contour(prediction), contour(truth)]
    counts = [int(edge.sum()) for edge in edges]
    if not all(counts):
        return float(counts == [0, 0])
    # what is far from both contours changes nothing
    rows, columns = (np.flatnonzero((edges[0] | edges[1]).any(axis)) for axis in (1, 0))
    box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    edges = [edge[box] for edge in edges]
    # within the radius of a contour: the same as its dilation by a disk
    near = [distance_transform_edt(~edge) <= radius for edge in edges]
    precision = np.count_nonzero(edges[0] & near[1]) / counts[0]
    recall = np.count_nonzero(edges[1] & near[0]) / counts[1]
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def evaluate_video(predictions: Iterable[np.ndarray], truths: Sequence[np.ndarray], num_objects: int) -> np.ndarray:
    """J and F of every object and evaluated frame, 0..1, float64 [2, num_objects, T - 2].

    predictions: masks uint8 [H, W] of frames 1 to T - 2. truths: masks of all T frames; pixels of 255 are left out.
    """
    values = np.zeros((2, num_objects, len(truths) - 2))
    for frame, prediction in enumerate(predictions):
        truth = truths[frame + 1]
        valid = truth != VOID
        for number in range(num_objects):
            masks = (prediction == number + 1) & valid, (truth == number + 1) & valid
            values[:, number, frame] = region_similarity(*masks), contour_accuracy(*masks)
    return values


def video_statistics(values: Sequence[np.ndarray]) -> Arrays:
    """Per-image parts, from `evaluate_video` of each video."""
    sums = 100 * np.array([video.mean(2).sum(1) for video in values])
    return {"region": sums[:, 0], "contour": sums[:, 1], "objects": np.array([v.shape[1] for v in values], np.int32)}


def video_metrics(values: Sequence[np.ndarray]) -> dict[str, float]:
    """All metrics, percent, from `evaluate_video` of each video: J and F, their mean, and their recalls."""
    means = np.concatenate([video.mean(2) for video in values], axis=1).mean(1)
    recalls = np.concatenate([(video > RECALLED).mean(2) for video in values], axis=1).mean(1)
    named = {"JF": means.mean(), "J": means[0], "F": means[1], "J_recall": recalls[0], "F_recall": recalls[1]}
    return {name: 100 * float(value) for name, value in named.items()}


def region_and_contour(arrays: Arrays, weights: np.ndarray) -> np.ndarray:
    """J&F, percent, for each row of weights [B, N] of the videos: float64 [B]."""
    return ratio(weights @ ((arrays["region"] + arrays["contour"]) / 2), weights @ arrays["objects"])
