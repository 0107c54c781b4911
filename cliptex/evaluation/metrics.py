"""The metrics of the probes, in NumPy. Percent, metres and degrees as in docs/architecture.md; no value is rounded."""

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

IGNORE = 255
DEPTH_METRICS = ("delta1", "delta2", "delta3", "rmse", "absrel", "log10")
WITHIN_DEGREES = {"within_5": 5.0, "within_7_5": 7.5, "within_11_25": 11.25, "within_22_5": 22.5, "within_30": 30.0}
NORMALS_METRICS = ("mean", "median", "rmse", *WITHIN_DEGREES)
Averaging = Literal["image", "pooled"]


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


def depth_metrics(
    pairs: Iterable[tuple[np.ndarray, np.ndarray]], low: float, high: float, averaging: Averaging = "image"
) -> dict[str, float]:
    """`mean_depth` of (truth, prediction) in metres [H, W]; see `depth_errors`."""
    return mean_depth(*depth_errors(pairs, low, high), averaging)


def mean_depth(errors_N6: np.ndarray, pixels_N: np.ndarray, averaging: Averaging) -> dict[str, float]:
    """`DEPTH_METRICS` over a data set, from those of each image and its number of valid pixels.

    `image`: the mean over images (Eigen et al.); one without any valid pixel does not count. `pooled`: over the pixels
    of all images.
    """
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


def depth_errors(
    pairs: Iterable[tuple[np.ndarray, np.ndarray]], low: float, high: float
) -> tuple[np.ndarray, np.ndarray]:
    """`DEPTH_METRICS` (percent, metres, ratios) of each (truth, prediction) in metres [H, W]: float64 [N, 6]; and the
    numbers of valid pixels, int64 [N].

    Truths that are NaN or outside [low, high] are left out, predictions are clipped to that range; NaN for an image
    without any valid pixel.
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
    """The prediction times the scale plus the shift that fit it best to the truth (least squares of depth, over the
    valid pixels of the image)."""
    valid = _valid(truth, low, high)
    if not valid.any():
        return prediction
    x, y = prediction[valid].astype(np.float64), truth[valid].astype(np.float64)
    spread = x.var()
    scale = np.mean((x - x.mean()) * (y - y.mean())) / spread if spread > 0 else 0.0
    return scale * (prediction - x.mean()) + y.mean()


def angles(truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """Angle in degrees between unit vectors [..., 3], at the pixels where the truth is not NaN."""
    valid = np.isfinite(truth).all(-1)
    cosine = np.sum(truth[valid].astype(np.float64) * prediction[valid], axis=-1)
    return np.degrees(np.arccos(np.clip(cosine, -1, 1)))


def normals_metrics(
    pairs: Iterable[tuple[np.ndarray, np.ndarray]], averaging: Averaging = "pooled"
) -> dict[str, float]:
    """`mean_angles` of (truth, prediction) [H, W, 3]."""
    return mean_angles([angles(truth, prediction).astype(np.float32) for truth, prediction in pairs], averaging)


def mean_angles(errors: Sequence[np.ndarray], averaging: Averaging) -> dict[str, float]:
    """`NORMALS_METRICS` (degrees and percent) of the angles at the valid pixels of each image.

    `pooled`: over the pixels of all images (Bae et al.). `image`: computed an image and averaged over images (probe3d);
    one without any valid pixel does not count.
    """
    if averaging == "pooled":
        return angle_metrics(np.concatenate(errors))
    rows = [angle_metrics(one) for one in errors if len(one)]
    return {name: float(np.mean([row[name] for row in rows])) for name in NORMALS_METRICS}


def angle_metrics(error: np.ndarray) -> dict[str, float]:
    """`mean median rmse` (degrees), and the names of `WITHIN_DEGREES` (percent), of angles in degrees."""
    values = [
        float(error.mean(dtype=np.float64)),
        float(np.median(error)),
        float(np.sqrt(np.mean(error.astype(np.float64) ** 2))),
        *(100 * float(np.mean(error < limit)) for limit in WITHIN_DEGREES.values()),
    ]
    return dict(zip(NORMALS_METRICS, values, strict=True))


def top_metrics(ranking: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """`top1` and `top5` in percent. ranking: the five (or all, if fewer) best classes [N, 5], best first."""
    hit = ranking == np.asarray(labels)[:, None]
    return {"top1": 100 * float(hit[:, 0].mean()), "top5": 100 * float(hit.any(1).mean())}
