"""The metrics of the probes, in NumPy. Percent, metres and degrees as in docs/architecture.md; no value is rounded."""

from collections.abc import Iterable, Sequence

import numpy as np

IGNORE = 255
DEPTH_METRICS = ("delta1", "delta2", "delta3", "rmse", "absrel", "log10")
WITHIN_DEGREES = {"within_11_25": 11.25, "within_22_5": 22.5, "within_30": 30.0}


def confusion_matrix(truth: np.ndarray, prediction: np.ndarray, num_classes: int) -> np.ndarray:
    """Pixel counts int64 [truth class, predicted class]; pixels whose truth is 255 are left out."""
    valid = truth != IGNORE
    index = truth[valid].astype(np.int64) * num_classes + prediction[valid]
    return np.bincount(index, minlength=num_classes**2).reshape(num_classes, num_classes)


def segmentation_metrics(confusion: np.ndarray) -> dict[str, float]:
    """`mIoU`, `mAcc`, `aAcc` in percent, as mmsegmentation's IoUMetric (which rounds to two digits).

    mIoU is the mean over classes that occur in truth or prediction, mAcc over classes that occur in the truth.
    """
    hit, truth, predicted = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    union = truth + predicted - hit
    return {
        "mIoU": 100 * float(np.mean(hit[union > 0] / union[union > 0])),
        "mAcc": 100 * float(np.mean(hit[truth > 0] / truth[truth > 0])),
        "aAcc": 100 * float(hit.sum() / truth.sum()),
    }


def depth_metrics(pairs: Iterable[tuple[np.ndarray, np.ndarray]], low: float, high: float) -> dict[str, float]:
    """The mean over images (Eigen et al.) of `depth_errors`; an image without any valid pixel does not count."""
    return mean_depth(depth_errors(pairs, low, high))


def mean_depth(errors_N6: np.ndarray) -> dict[str, float]:
    """The mean over images of `depth_errors`, by name."""
    return dict(zip(DEPTH_METRICS, np.nanmean(errors_N6, axis=0).tolist(), strict=True))


def depth_errors(pairs: Iterable[tuple[np.ndarray, np.ndarray]], low: float, high: float) -> np.ndarray:
    """`DEPTH_METRICS` (percent, metres, ratios) of each (truth, prediction) in metres [H, W]: float64 [N, 6].

    Truths that are NaN or outside [low, high] are left out, predictions are clipped to that range; NaN for an image
    without any valid pixel.
    """
    rows = []
    for truth, prediction in pairs:
        valid = np.isfinite(truth) & (truth >= low) & (truth <= high)
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
    return np.array(rows)


def angles(truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """Angle in degrees between unit vectors [..., 3], at the pixels where the truth is not NaN."""
    valid = np.isfinite(truth).all(-1)
    cosine = np.sum(truth[valid].astype(np.float64) * prediction[valid], axis=-1)
    return np.degrees(np.arccos(np.clip(cosine, -1, 1)))


def normals_metrics(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    """`pooled_angles` of (truth, prediction) [H, W, 3]."""
    return pooled_angles([angles(truth, prediction).astype(np.float32) for truth, prediction in pairs])


def pooled_angles(errors: Sequence[np.ndarray]) -> dict[str, float]:
    """`mean median rmse` (degrees), `within_11_25 within_22_5 within_30` (percent) of the angles of each image.

    Angles are pooled over all valid pixels of all images (Bae et al.), not averaged an image.
    """
    error = np.concatenate(errors)
    return {
        "mean": float(error.mean(dtype=np.float64)),
        "median": float(np.median(error)),
        "rmse": float(np.sqrt(np.mean(error.astype(np.float64) ** 2))),
        **{name: 100 * float(np.mean(error < limit)) for name, limit in WITHIN_DEGREES.items()},
    }


def top_metrics(ranking: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """`top1` and `top5` in percent. ranking: the five (or all, if fewer) best classes [N, 5], best first."""
    hit = ranking == np.asarray(labels)[:, None]
    return {"top1": 100 * float(hit[:, 0].mean()), "top5": 100 * float(hit.any(1).mean())}
