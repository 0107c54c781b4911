"""Accuracy of classified regions, mean over classes, in percent."""

from collections.abc import Sequence

import numpy as np

from cliptex.evaluation.metrics.base import Arrays, ratio


def region_statistics(
    labels: Sequence[np.ndarray], rankings: Sequence[np.ndarray], num_classes: int
) -> dict[str, np.ndarray]:
    """Per-image parts: `regions`, `top1`, `top5` int32 [N, K], the number of regions of each class, and how many of
    them have their class among the best one and the best five. labels: of each image's regions [n]. rankings: their
    best classes [n, 5], best first."""
    out = {name: np.zeros((len(labels), num_classes), np.int32) for name in ("regions", "top1", "top5")}
    for image, (truth, best) in enumerate(zip(labels, rankings, strict=True)):
        found = best == truth[:, None]
        for name, hits in (("regions", None), ("top1", found[:, :1].any(1)), ("top5", found[:, :5].any(1))):
            out[name][image] = np.bincount(truth if hits is None else truth[hits], minlength=num_classes)
    return out


def region_metrics(arrays: Arrays) -> dict[str, float | None]:
    """`mean_top1`, `mean_top5`, mean over the classes that have regions, and `top1`, `top5` over all regions; None
    without regions."""
    weights, out = np.ones((1, len(arrays["regions"]))), {}
    for name in ("top1", "top5"):
        mean = float(_mean_accuracy(arrays, weights, name)[0])
        out[f"mean_{name}"] = mean if np.isfinite(mean) else None
    total = int(arrays["regions"].sum())
    return out | {name: 100 * int(arrays[name].sum()) / total if total else None for name in ("top1", "top5")}


def mean_top1(arrays: Arrays, weights: np.ndarray) -> np.ndarray:
    """Top-1 accuracy of the regions of each class, averaged over classes, percent, for each row of weights [B, N]:
    float64 [B]. It is the mean accuracy (mAcc) of CLIPSelf (Wu et al. 2023)."""
    return _mean_accuracy(arrays, weights, "top1")


def class_accuracies(arrays: Arrays) -> np.ndarray:
    """Top-1 accuracy of each class over all images, percent [K]; NaN for a class without regions."""
    return 100 * ratio(arrays["top1"].sum(0, dtype=np.float64), arrays["regions"].sum(0, dtype=np.float64))


def _mean_accuracy(arrays: Arrays, weights: np.ndarray, name: str) -> np.ndarray:
    hits, regions = (weights @ arrays[key].astype(np.float64) for key in (name, "regions"))
    return 100 * ratio((hits / np.where(regions > 0, regions, 1)).sum(1), (regions > 0).sum(1))
