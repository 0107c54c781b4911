"""Metrics of classification and retrieval, in percent."""

from collections.abc import Sequence

import numpy as np

from cliptex.evaluation.metrics.base import Arrays, ratio


def top_metrics(ranking: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """`top1` and `top5` in percent. ranking: the five best classes, or all if fewer, [N, 5], best first."""
    hit = ranking == np.asarray(labels)[:, None]
    return {"top1": 100 * float(hit[:, 0].mean()), "top5": 100 * float(hit.any(1).mean())}


def ranking_statistics(ranking_N5: np.ndarray, labels_N: Sequence[int]) -> Arrays:
    """Per-image parts, from the five best classes of each image, best first."""
    hit = ranking_N5 == np.asarray(labels_N)[:, None]
    return {"top1": hit[:, 0], "top5": hit.any(1)}


def retrieval_statistics(ranks_Q: np.ndarray, image_of_query: np.ndarray, images: int, ks: Sequence[int]) -> Arrays:
    """Per-image parts, from the rank of each query (0 is best) and its image."""
    hits = {f"R@{k}": np.bincount(image_of_query[ranks_Q < k], minlength=images).astype(np.int32) for k in ks}
    return {"queries": np.bincount(image_of_query, minlength=images).astype(np.int32), **hits}


def top1(arrays: Arrays, weights: np.ndarray) -> np.ndarray:
    """Top-1 accuracy, percent, for each row of weights [B, N]: float64 [B]."""
    return 100 * ratio(weights @ arrays["top1"], weights.sum(1))


def recall_at_1(arrays: Arrays, weights: np.ndarray) -> np.ndarray:
    """Recall@1, percent, for each row of weights [B, N]: float64 [B]."""
    return 100 * ratio(weights @ arrays["R@1"], weights @ arrays["queries"])
