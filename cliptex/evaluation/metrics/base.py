"""Shared by the metrics. Values are in percent, metres or degrees, and not rounded."""

from collections.abc import Mapping

import numpy as np

Arrays = Mapping[str, np.ndarray]


def mean_over_images(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted mean of values [N] for each row of weights [B, N]; NaN values are ignored. float64 [B]."""
    known = np.isfinite(values)
    return ratio(weights @ np.where(known, values, 0), weights @ known)


def ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a / b, NaN where b is zero."""
    return np.where(b > 0, a / np.where(b > 0, b, 1), np.nan)
