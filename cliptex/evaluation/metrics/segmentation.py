"""Metrics of semantic segmentation from confusion matrices, in percent."""

from collections.abc import Iterable

import numpy as np

from cliptex.evaluation.metrics.base import Arrays, ratio

IGNORE = 255


def confusion_matrix(truth: np.ndarray, prediction: np.ndarray, num_classes: int) -> np.ndarray:
    """Pixel counts int64 [truth class, predicted class]; pixels with ground truth 255 are ignored."""
    valid = truth != IGNORE
    index = truth[valid].astype(np.int64) * num_classes + prediction[valid]
    return np.bincount(index, minlength=num_classes**2).reshape(num_classes, num_classes)


def segmentation_metrics(confusion: np.ndarray) -> dict[str, float]:
    """`mIoU`, `mAcc`, `aAcc` in percent, as mmsegmentation's IoUMetric (which rounds to two digits). mIoU is the mean
    over classes that occur in ground truth or prediction, mAcc over classes in the ground truth."""
    hit, truth, predicted = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    union = truth + predicted - hit
    return {
        "mIoU": 100 * float(np.mean(hit[union > 0] / union[union > 0])),
        "mAcc": 100 * float(np.mean(hit[truth > 0] / truth[truth > 0])),
        "aAcc": 100 * float(hit.sum() / truth.sum()),
    }


class ConfusionSum:
    """Adds up confusion matrices image by image, without keeping them. total: int64 [truth, predicted]."""

    def __init__(self) -> None:
        self.total: np.ndarray | int = 0
        self._counts: list[np.ndarray] = []

    def add(self, confusion: np.ndarray) -> None:
        """Add the confusion matrix of the next image."""
        self.total = self.total + confusion
        self._counts.append(np.stack([confusion.diagonal(), confusion.sum(1), confusion.sum(0)]).astype(np.int32))

    def per_image(self) -> Arrays:
        """The per-image parts."""
        return dict(zip(("hit", "truth", "predicted"), np.stack(self._counts, axis=1), strict=True))


def segmentation_statistics(confusions: Iterable[np.ndarray]) -> tuple[np.ndarray, Arrays]:
    """The sum of the images' confusion matrices [truth, predicted], and the per-image parts."""
    out = ConfusionSum()
    for confusion in confusions:
        out.add(confusion)
    return out.total, out.per_image()


def mean_iou(arrays: Arrays, weights: np.ndarray) -> np.ndarray:
    """mIoU, percent, for each row of weights [B, N]: float64 [B]."""
    hit, truth, predicted = (weights @ arrays[name].astype(np.float64) for name in ("hit", "truth", "predicted"))
    union = truth + predicted - hit
    return 100 * ratio((hit / np.where(union > 0, union, 1)).sum(1), (union > 0).sum(1))


def class_ious(arrays: Arrays) -> np.ndarray:
    """IoU of each class over all images, percent [K]; NaN for a class without ground truth."""
    hit, truth, predicted = (arrays[name].sum(0, dtype=np.int64) for name in ("hit", "truth", "predicted"))
    return np.where(truth > 0, 100 * hit / np.maximum(truth + predicted - hit, 1), np.nan)
