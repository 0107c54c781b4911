"""Metrics of depth: fractions within a ratio (percent), RMSE (metres), relative and logarithmic errors."""

from collections.abc import Iterable
from typing import Literal

import numpy as np

from cliptex.evaluation.metrics.base import Arrays, mean_over_images, ratio

DEPTH_METRICS = ("delta1", "delta2", "delta3", "rmse", "absrel", "log10")
Averaging = Literal["image", "pooled"]
Pairs = Iterable[tuple[np.ndarray, np.ndarray]]
"""(truth, prediction) of each image."""


def depth_metrics(pairs: Pairs, low: float, high: float, averaging: Averaging = "image") -> dict[str, float]:
    """`mean_depth` of (truth, prediction) in metres [H, W]; see `depth_errors`."""
    return mean_depth(*depth_errors(pairs, low, high), averaging)


def mean_depth(errors_N6: np.ndarray, pixels_N: np.ndarray, averaging: Averaging) -> dict[str, float]:
    """`DEPTH_METRICS` over a data set, from the metrics and the number of valid pixels of each image. `image`: mean
    over images (Eigen et al.), without images that have no valid pixels. `pooled`: over the pixels of all images."""
    if averaging == "image":
        means = np.nanmean(errors_N6, axis=0)
    else:
        rmse = DEPTH_METRICS.index("rmse")
        errors = np.where(pixels_N[:, None] > 0, errors_N6, 0)
        errors[:, rmse] **= 2
        means = pixels_N @ errors / pixels_N.sum()
        means[rmse] **= 0.5
    return dict(zip(DEPTH_METRICS, means.tolist(), strict=True))


def _valid(truth: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.isfinite(truth) & (truth >= low) & (truth <= high)


def depth_errors(pairs: Pairs, low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    """`DEPTH_METRICS` (percent, metres, ratios) of each (truth, prediction) in metres [H, W]: float64 [N, 6]; and the
    numbers of valid pixels, int64 [N].

    Ground truth that is NaN or outside [low, high] is ignored, predictions are clipped to that range; NaN for an image
    without valid pixels.
    """
    rows, pixels = [], []
    for truth, prediction in pairs:
        valid = _valid(truth, low, high)
        pixels.append(np.count_nonzero(valid))
        if not valid.any():
            rows.append([np.nan] * len(DEPTH_METRICS))
            continue
        t = truth[valid].astype(np.float64)
        p = np.clip(prediction[valid].astype(np.float64), low, high)
        ratio = np.maximum(t / p, p / t)
        rows.append(
            [
                *(100 * np.mean(ratio < 1.25**power) for power in (1, 2, 3)),
                np.sqrt(np.mean((t - p) ** 2)),
                np.mean(np.abs(t - p) / t),
                np.mean(np.abs(np.log10(t) - np.log10(p))),
            ]
        )
    return np.array(rows), np.array(pixels, np.int64)


def affine_aligned(truth: np.ndarray, prediction: np.ndarray, low: float, high: float) -> np.ndarray:
    """The prediction after a least-squares fit of scale and shift to the ground truth, over the valid pixels."""
    valid = _valid(truth, low, high)
    if not valid.any():
        return prediction
    x, y = prediction[valid].astype(np.float64), truth[valid].astype(np.float64)
    spread = x.var()
    scale = np.mean((x - x.mean()) * (y - y.mean())) / spread if spread > 0 else 0.0
    return scale * (prediction - x.mean()) + y.mean()


def depth_statistics(errors_N6: np.ndarray, pixels_N: np.ndarray, averaging: Averaging) -> Arrays:
    """Per-image parts, from the result of `depth_errors`."""
    arrays = dict(zip(DEPTH_METRICS, errors_N6.T.copy(), strict=True))
    return arrays | ({"pixels": pixels_N} if averaging == "pooled" else {})


def weighted_rmse(arrays: Arrays, weights: np.ndarray) -> np.ndarray:
    """RMSE, metres, for each row of weights [B, N]: float64 [B]."""
    if "pixels" not in arrays:
        return mean_over_images(arrays["rmse"], weights)
    squares = np.where(arrays["pixels"] > 0, arrays["rmse"], 0) ** 2 * arrays["pixels"]
    return np.sqrt(ratio(weights @ squares, weights @ arrays["pixels"]))
