"""Metrics of surface normals: angles in degrees, fractions in percent."""

from collections.abc import Sequence

import numpy as np

from cliptex.evaluation.metrics.base import Arrays, mean_over_images, ratio
from cliptex.evaluation.metrics.depth import Averaging, Pairs

WITHIN_DEGREES = {"within_5": 5.0, "within_7_5": 7.5, "within_11_25": 11.25, "within_22_5": 22.5, "within_30": 30.0}
NORMALS_METRICS = ("mean", "median", "rmse", *WITHIN_DEGREES)


def angles(truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """Angle in degrees between unit vectors [..., 3], at the pixels whose ground truth is not NaN."""
    valid = np.isfinite(truth).all(-1)
    cosine = np.sum(truth[valid].astype(np.float64) * prediction[valid], axis=-1)
    return np.degrees(np.arccos(np.clip(cosine, -1, 1)))


def normals_metrics(pairs: Pairs, averaging: Averaging = "pooled") -> dict[str, float]:
    """`mean_angles` of (truth, prediction) [H, W, 3]."""
    return mean_angles([angles(truth, prediction).astype(np.float32) for truth, prediction in pairs], averaging)


def mean_angles(errors: Sequence[np.ndarray], averaging: Averaging) -> dict[str, float]:
    """`NORMALS_METRICS` (degrees and percent) of the angles at the valid pixels of each image. `pooled`: over the
    pixels of all images (Bae et al.). `image`: mean over images (probe3d), without images that have no valid pixels."""
    if averaging == "pooled":
        return angle_metrics(np.concatenate(errors))
    rows = [angle_metrics(error) for error in errors if len(error)]
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


def normals_statistics(errors: Sequence[np.ndarray], averaging: Averaging) -> Arrays:
    """Per-image parts, from the angles in degrees at the valid pixels of each image."""
    if averaging == "image":
        rows = [angle_metrics(error) if len(error) else dict.fromkeys(NORMALS_METRICS, np.nan) for error in errors]
        return {name: np.array([row[name] for row in rows]) for name in NORMALS_METRICS}
    return {
        "pixels": np.array([len(error) for error in errors], np.int64),
        "angle_sum": np.array([error.sum(dtype=np.float64) for error in errors]),
        "square_sum": np.array([np.square(error, dtype=np.float64).sum() for error in errors]),
        **{
            name: np.array([np.count_nonzero(error < limit) for error in errors], np.int64)
            for name, limit in WITHIN_DEGREES.items()
        },
    }


def mean_angle(arrays: Arrays, weights: np.ndarray) -> np.ndarray:
    """Mean angle, degrees, for each row of weights [B, N]: float64 [B]."""
    if "pixels" not in arrays:
        return mean_over_images(arrays["mean"], weights)
    return ratio(weights @ arrays["angle_sum"], weights @ arrays["pixels"])
