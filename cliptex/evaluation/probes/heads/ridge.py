"""Ridge regression of maps from dense features, in closed form.

A 1x1 convolution and bilinear resizing commute, so the regression is fitted on features resized to a small grid and
applied to the encoder's map; only its output is resized to the image.

Shapes: V views, C feature width, h x w feature map, G grid side, P points, T targets.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from operator import add
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from cliptex.evaluation.probes.features import Features
from cliptex.evaluation.probes.training import finite

CHUNK = 64
Solution = tuple[torch.Tensor, torch.Tensor]
"""Weights [C, T] and bias [T]."""


class Moments(NamedTuple):
    """Sums over points, float64. They suffice to solve a ridge regression, and are additive over sets of points."""

    count: int
    x_C: torch.Tensor
    y_T: torch.Tensor
    xx_CC: torch.Tensor
    xy_CT: torch.Tensor


def moments(points: Iterator[tuple[torch.Tensor, torch.Tensor]]) -> Moments:
    """Moments of chunks of (features [P, C], targets [P, T])."""
    parts = (Moments(len(x), *(sums.double() for sums in (x.sum(0), y.sum(0), x.T @ x, x.T @ y))) for x, y in points)
    return reduce(added, parts)


def added(a: Moments, b: Moments) -> Moments:
    """The moments of both sets of points."""
    return Moments(*map(add, a, b))


def ridge(sums: Moments, penalties: Sequence[float]) -> list[Solution]:
    """(weights [C, T], bias [T]) for each penalty: minimise mean |y - x W - b|^2 + penalty |W|^2, b not penalised."""
    mean_x, mean_y = sums.x_C / sums.count, sums.y_T / sums.count
    covariance = sums.xx_CC / sums.count - torch.outer(mean_x, mean_x)
    target = sums.xy_CT / sums.count - torch.outer(mean_x, mean_y)
    values, vectors = torch.linalg.eigh(covariance)
    projected = vectors.T @ target
    solutions = []
    for penalty in penalties:
        weights = vectors @ (projected / (values.clamp(min=0) + penalty)[:, None])
        solutions.append((weights.float(), (mean_y - mean_x @ weights).float()))
    return solutions


def grid_points(
    features_VChw: Features | torch.Tensor, targets_VGGT: np.ndarray, indices: np.ndarray
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Chunks of (features [P, C], targets [P, T]) at the points of the grid whose target is not NaN."""
    size = targets_VGGT.shape[1]
    for start in range(0, len(indices), CHUNK):
        chunk = torch.from_numpy(indices[start : start + CHUNK])
        x = F.interpolate(features_VChw[chunk], size=(size, size), mode="bilinear", align_corners=False)
        x = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
        y = torch.from_numpy(targets_VGGT[chunk.numpy()]).reshape(len(x), -1)
        valid = y.isfinite().all(1)
        yield x[valid], y[valid]


def regressed(features_VChw: torch.Tensor, solution: Solution) -> torch.Tensor:
    """Apply the regression to the feature maps: [V, T, h, w]."""
    weights, bias = solution
    return torch.einsum("vchw,ct->vthw", features_VChw, weights) + bias[:, None, None]


def fit_ridge(
    features: Features | torch.Tensor,
    targets_VGGT: np.ndarray,
    fit: np.ndarray,
    held: np.ndarray,
    penalties: Sequence[float],
    error: Callable[[np.ndarray, np.ndarray], float],
) -> tuple[dict[str, float], float, Solution]:
    """Holdout error by penalty, the best penalty, and its regression on all training images.
    error: (truth [P, T], prediction [P, T]) -> number, lower is better."""
    sums_fit = moments(grid_points(features, targets_VGGT, fit))
    solutions = ridge(sums_fit, penalties)
    truths: list[np.ndarray] = []
    predictions: list[list[np.ndarray]] = [[] for _ in penalties]

    def predicted() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        # in chunks: the held-out points of a large data set do not fit in memory
        for x, y in grid_points(features, targets_VGGT, held):
            truths.append(y.numpy())
            for chunks, (weights, bias) in zip(predictions, solutions, strict=True):
                chunks.append((x @ weights + bias).numpy())
            yield x, y

    sums_held = moments(predicted())
    truth = np.concatenate(truths)
    errors = [error(truth, np.concatenate(chunks)) for chunks in predictions]
    by_penalty = dict(zip(map(str, penalties), errors, strict=True))
    finite(np.array(errors), "errors of ridge regression on the holdout", "look for broken ground truth")
    best = min(penalties, key=lambda penalty: by_penalty[str(penalty)])
    return by_penalty, best, ridge(added(sums_fit, sums_held), [best])[0]
