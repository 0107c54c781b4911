"""The paired bootstrap: sampling noise of the difference between two models over evaluation images and seeds.

Images are drawn with replacement, as many as there are, and so are seeds; all models are evaluated on the same draws.
A draw's value is the mean over its seeds. The 2.5th and 97.5th percentile of the difference bound the interval (Efron
and Tibshirani, An Introduction to the Bootstrap, 1993, section 13.3). Drawing from n seeds shows (n - 1) / n of their
variance, and from one seed none, so the standard deviation over seeds is tested as well (`cliptex.report.statistics`).

A p-value takes the standard error from the draws and the tail from the normal distribution. Counting the draws on the
other side of zero would not do for several comparisons: of B draws it gives at least 2 / (B + 1), in steps of that
size, while Holm's correction of m comparisons asks for 0.05 / m.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cliptex.evaluation.metrics.base import Arrays
from cliptex.evaluation.per_image import main_metric, num_images

LEVEL = 95.0
BLOCK = 4_000_000
"""Numbers computed at a time, which bounds memory."""


@dataclass(frozen=True)
class Interval:
    """Bounds in the metric's unit, or in percent for a relative gain."""

    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether both bounds are on the same side of zero."""
        return self.low > 0 or self.high < 0

    def scaled(self, factor: float) -> "Interval":
        return Interval(*sorted((factor * self.low, factor * self.high)))


def draws(images: int, number: int, seed: int) -> np.ndarray:
    """How often each image is in each draw: float64 [number, images]; rows sum to `images`."""
    return np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=number).astype(np.float64)


def resampled(task: str, seeds: Sequence[Arrays], weights_BN: np.ndarray) -> np.ndarray:
    """The task's main metric in every draw, mean over the seeds drawn with it: float64 [B].

    seeds: per-image statistics of each seed, in the same order for all models. The seeds of a draw depend only on how
    many there are: they are the same for every model and benchmark, since each training is evaluated on all benchmarks.
    """
    values_SB = np.stack([_values(task, arrays, weights_BN) for arrays in seeds])
    weights_BS = draws(len(seeds), len(weights_BN), len(seeds)) / len(seeds)
    return np.einsum("sb,bs->b", values_SB, weights_BS)


def _values(task: str, arrays: Arrays, weights_BN: np.ndarray) -> np.ndarray:
    if num_images(arrays) != weights_BN.shape[1]:
        raise ValueError(f"{num_images(arrays)} images, {weights_BN.shape[1]} weights")
    rows = max(1, BLOCK // max(len(values) for values in arrays.values()))
    blocks = (weights_BN[start : start + rows] for start in range(0, len(weights_BN), rows))
    return np.concatenate([main_metric(task, arrays, block) for block in blocks])


def resampled_over(seeds: Sequence[int]) -> str:
    """What the intervals of a run with these seeds are over, in words."""
    return "evaluation images and seeds" if len(seeds) > 1 else "evaluation images"


def _known(values_B: np.ndarray) -> np.ndarray | None:
    known = values_B[np.isfinite(values_B)]
    return None if 2 * len(known) < len(values_B) else known


def interval(values_B: np.ndarray) -> Interval | None:
    """The middle 95 % of resampled values; None if fewer than half of the draws have a value."""
    if (known := _known(values_B)) is None:
        return None
    tail = (100 - LEVEL) / 2
    return Interval(*np.percentile(known, [tail, 100 - tail]).tolist())


def p_value(value: float, values_B: np.ndarray) -> float | None:
    """Two-sided p-value, 0..1, of a difference `value` with resampled values: 2 (1 - Phi(|value| / s)), s their
    standard deviation. None with fewer than two of them, or if fewer than half of the draws have a value."""
    known = _known(values_B)
    if known is None or len(known) < 2:
        return None
    error = float(known.std(ddof=1))
    if not error:
        return 0.0 if value else 1.0
    return math.erfc(abs(value) / error / math.sqrt(2))
