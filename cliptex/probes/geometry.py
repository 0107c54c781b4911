"""Depth and surface normals from frozen dense features by ridge regression, solved exactly.

A 1x1 convolution and bilinear resizing commute, so the regression is fitted on features resized to a modest grid and
applied to the small map; only its output is resized to the image. No optimizer, no under-trained probe.

Shapes: N images, C feature width, h x w feature map, G grid side, T targets.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F

from cliptex.errors import CliptexError
from cliptex.probes.features import Outcome, resample_nearest, split_holdout
from cliptex.probes.metrics import angles, depth_errors, mean_depth, pooled_angles
from cliptex.probes.per_image import depth_statistics, normals_statistics
from cliptex.probes.protocols import Depth, DepthRidge, Ridge
from cliptex.probes.thumbnails import MAP_SIDE_PX, depth_thumbnails, normals_thumbnails, shrunk

PROTOCOL = (
    "frozen features of the squashed image, standardised a channel over the training split; ridge regression with "
    "bias in closed form; no augmentation; prediction resized (bilinear) to the original resolution; "
)
DEPTH_PROTOCOL = PROTOCOL + "metrics an image, averaged over images"
NORMALS_PROTOCOL = PROTOCOL + "angles pooled over all valid pixels"
CHUNK = 64


@dataclass(frozen=True)
class Moments:
    """Sums over points, in float64: enough to solve a ridge regression, and they add up over sets of points."""

    count: int
    x_C: torch.Tensor
    y_T: torch.Tensor
    xx_CC: torch.Tensor
    xy_CT: torch.Tensor

    def __add__(self, other: Self) -> Self:
        return Moments(
            self.count + other.count,
            self.x_C + other.x_C,
            self.y_T + other.y_T,
            self.xx_CC + other.xx_CC,
            self.xy_CT + other.xy_CT,
        )


def moments(points: Iterator[tuple[torch.Tensor, torch.Tensor]]) -> Moments:
    """Moments of chunks of (features [P, C], targets [P, T])."""
    total = None
    for x, y in points:
        xx, xy = x.T @ x, x.T @ y
        part = Moments(len(x), x.sum(0).double(), y.sum(0).double(), xx.double(), xy.double())
        total = part if total is None else total + part
    return total


def ridge(sums: Moments, penalties: Sequence[float]) -> list[tuple[torch.Tensor, torch.Tensor]]:
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
    features_NChw: torch.Tensor, targets_NGGT: np.ndarray, indices: np.ndarray
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Chunks of (features [P, C], targets [P, T]) at the grid's points whose target is not NaN."""
    size = targets_NGGT.shape[1]
    for start in range(0, len(indices), CHUNK):
        chunk = torch.from_numpy(indices[start : start + CHUNK])
        x = F.interpolate(features_NChw[chunk], size=(size, size), mode="bilinear", align_corners=False)
        x = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
        y = torch.from_numpy(targets_NGGT[chunk.numpy()]).reshape(len(x), -1)
        valid = y.isfinite().all(1)
        yield x[valid], y[valid]


def _maps(features_NChw: torch.Tensor, solution: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """The regression applied to the small map: [N, T, h, w]."""
    weights, bias = solution
    return torch.einsum("nchw,ct->nthw", features_NChw, weights) + bias[:, None, None]


def _resized(map_Thw: torch.Tensor, shape: tuple[int, int]) -> np.ndarray:
    """[H, W, T] at the image's resolution."""
    return F.interpolate(map_Thw[None], size=shape, mode="bilinear", align_corners=False)[0].permute(1, 2, 0).numpy()


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-6)


def _chosen(
    features: torch.Tensor,
    targets_NGGT: np.ndarray,
    fit: np.ndarray,
    held: np.ndarray,
    penalties: Sequence[float],
    error: Callable[[np.ndarray, np.ndarray], float],
) -> tuple[dict[str, float], float, tuple[torch.Tensor, torch.Tensor]]:
    """Holdout error by penalty, the best penalty, and the regression with it on all training images.

    error: (truth [P, T], prediction [P, T]) -> number, smaller is better.
    """
    sums_fit = moments(grid_points(features, targets_NGGT, fit))
    held_points = list(grid_points(features, targets_NGGT, held))
    truth = np.concatenate([y.numpy() for _, y in held_points])
    errors = {}
    for penalty, (weights, bias) in zip(penalties, ridge(sums_fit, penalties), strict=True):
        prediction = np.concatenate([(x @ weights + bias).numpy() for x, _ in held_points])
        errors[str(penalty)] = error(truth, prediction)
    best = min(penalties, key=lambda penalty: errors[str(penalty)])
    return errors, best, ridge(sums_fit + moments(iter(held_points)), [best])[0]


def probe_depth(
    train_NChw: torch.Tensor,
    eval_NChw: torch.Tensor,
    train_depths: Sequence[np.ndarray],
    eval_depths: Sequence[np.ndarray],
    task: Depth,
    options: DepthRidge,
    holdout: float,
    seed: int,
    keep: int,
) -> Outcome:
    """Depth in metres. Train depths are [G, G] or larger, eval depths at the original resolution, NaN = invalid."""
    low, high = task.min_depth_m, task.max_depth_m
    grid = np.stack([resample_nearest(depth, options.grid) for depth in train_depths])[..., None].astype(np.float32)
    grid[~((grid >= low) & (grid <= high))] = np.nan
    fit, held = split_holdout(len(grid), holdout, seed)

    def metric_error(truth: np.ndarray, prediction: np.ndarray) -> float:
        return float(np.sqrt(np.mean((truth - np.clip(prediction, low, high)) ** 2)))

    def log_error(truth: np.ndarray, prediction: np.ndarray) -> float:
        return metric_error(np.exp(truth), np.exp(np.clip(prediction, np.log(low), np.log(high))))

    candidates = {}
    if "metric" in options.targets:
        candidates["metric"] = _chosen(train_NChw, grid, fit, held, options.penalties, metric_error)
    if "log" in options.targets:
        candidates["log"] = _chosen(train_NChw, np.log(grid), fit, held, options.penalties, log_error)
    target = min(candidates, key=lambda name: min(candidates[name][0].values()))
    _, penalty, solution = candidates[target]

    maps = _maps(eval_NChw, solution)

    def predicted(index: int) -> np.ndarray:
        depth = _resized(maps[index], eval_depths[index].shape)[..., 0]
        return np.clip(np.exp(np.minimum(depth, np.log(high))) if target == "log" else depth, low, high)

    window = _eigen_window(eval_depths) if task.crop == "eigen" else (slice(None), slice(None))
    kept = {}
    for index in range(min(keep, len(eval_depths))):
        kept[f"depth_prediction_{index}"] = predicted(index)
        kept[f"depth_truth_{index}"] = eval_depths[index]
    shown = []

    def pairs() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for index, depth in enumerate(eval_depths):
            prediction = predicted(index)
            shown.append(shrunk(prediction, MAP_SIDE_PX))
            yield depth[window], prediction[window]

    errors = depth_errors(pairs(), low, high)
    return Outcome(
        task="depth",
        metrics=mean_depth(errors),
        num_parameters=solution[0].numel() + solution[1].numel(),
        hyperparameters={
            "target": target,
            "penalty": penalty,
            "holdout_rmse": {name: errors for name, (errors, _, _) in candidates.items()},
        },
        protocol=DEPTH_PROTOCOL + f"; {low} to {high} m" + ("; Eigen crop" if task.crop == "eigen" else "; no crop"),
        predictions=kept,
        per_image=depth_statistics(errors),
        thumbnails=depth_thumbnails(shown),
    )


def _eigen_window(depths: Sequence[np.ndarray]) -> tuple[slice, slice]:
    for depth in depths:
        if depth.shape != (480, 640):
            raise CliptexError(
                f"depth.crop: 'eigen' is for 480 x 640 maps, this one is {depth.shape[0]} x {depth.shape[1]}; "
                "set it to none"
            )
    return slice(45, 471), slice(41, 601)


def probe_normals(
    train_NChw: torch.Tensor,
    eval_NChw: torch.Tensor,
    train_normals: Sequence[np.ndarray],
    eval_normals: Sequence[np.ndarray],
    options: Ridge,
    holdout: float,
    seed: int,
    keep: int,
) -> Outcome:
    """Unit normals [H, W, 3], NaN = invalid: x, y, z are regressed and the resized result is normalised."""
    grid = np.stack([resample_nearest(normals, options.grid) for normals in train_normals]).astype(np.float32)
    fit, held = split_holdout(len(grid), holdout, seed)

    def angle(truth: np.ndarray, prediction: np.ndarray) -> float:
        return float(angles(truth, _unit(prediction)).mean())

    errors, penalty, solution = _chosen(train_NChw, grid, fit, held, options.penalties, angle)
    maps = _maps(eval_NChw, solution)

    def predicted(index: int) -> np.ndarray:
        return _unit(_resized(maps[index], eval_normals[index].shape[:2]))

    kept = {}
    for index in range(min(keep, len(eval_normals))):
        kept[f"normals_prediction_{index}"] = predicted(index).astype(np.float32)
        kept[f"normals_truth_{index}"] = eval_normals[index]
    judged, shown = [], []
    for index, truth in enumerate(eval_normals):
        prediction = predicted(index)
        judged.append(angles(truth, prediction).astype(np.float32))
        shown.append(shrunk(prediction, MAP_SIDE_PX))
    return Outcome(
        task="normals",
        metrics=pooled_angles(judged),
        num_parameters=solution[0].numel() + solution[1].numel(),
        hyperparameters={"penalty": penalty, "holdout_mean": errors},
        protocol=NORMALS_PROTOCOL,
        predictions=kept,
        per_image=normals_statistics(judged),
        thumbnails=normals_thumbnails(shown),
    )
