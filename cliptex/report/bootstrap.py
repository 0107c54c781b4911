"""The paired bootstrap: sampling noise of the difference between two models over evaluation images and seeds.

Images are drawn with replacement, as many as there are, and so are seeds; all models are evaluated on the same draws.
A draw's value is the mean over its seeds. The 2.5th and 97.5th percentile of the difference bound the interval (Efron
and Tibshirani, An Introduction to the Bootstrap, 1993, section 13.3). Drawing from n seeds shows (n - 1) / n of their
variance, and from one seed none, so the standard deviation over seeds is tested as well (`cliptex.report.statistics`).
"""

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


def interval(values_B: np.ndarray) -> Interval | None:
    """The middle 95 % of resampled values; None if fewer than half of the draws have a value."""
    known = values_B[np.isfinite(values_B)]
    if 2 * len(known) < len(values_B):
        return None
    tail = (100 - LEVEL) / 2
    return Interval(*np.percentile(known, [tail, 100 - tail]).tolist())
