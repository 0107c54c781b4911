"""Depth and surface normals from frozen dense features: heads fitted or trained, and how they are judged.

Shapes: V views, N images, C feature width, h x w feature map.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from cliptex.core.errors import CliptexError
from cliptex.evaluation.metrics import affine_aligned, angles, depth_errors, mean_angles, mean_depth
from cliptex.evaluation.per_image import depth_statistics, normals_statistics
from cliptex.evaluation.probes.decoders import apply, depth_head, depth_loss, normals_head, normals_loss, train_decoder
from cliptex.evaluation.probes.features import Features, Outcome, resample_nearest, take
from cliptex.evaluation.probes.ridge import Solution, fit_ridge, regressed
from cliptex.evaluation.probes.selection import Candidate, best_candidate
from cliptex.evaluation.protocols.base import AngularNormals, Depth, DepthBins, DepthRidge, MapTask, Normals, Ridge
from cliptex.evaluation.thumbnails import MAP_SIDE_PX, depth_thumbnails, normals_thumbnails, shrunk

Maps = Features | torch.Tensor
Split = tuple[np.ndarray, np.ndarray]
"""Training views for fitting, and those held out."""


@dataclass(frozen=True)
class Fitted:
    """A head that predicts a map: `predict(features, index, shape)` is its prediction [H, W, ...] for one view."""

    predict: Callable[[Maps, int, tuple[int, int]], np.ndarray]
    num_parameters: int
    hyperparameters: dict[str, Any]
    protocol: str


def probe_depth(
    train_VChw: Maps,
    eval_NChw: Maps,
    train_depths: Sequence[np.ndarray],
    eval_depths: Sequence[np.ndarray],
    task: Depth,
    head: str,
    split: Split,
    seed: int,
    keep: int,
) -> Outcome:
    """Depth in metres by the head of that name. Training depths on the truths' grid, evaluation depths at the original
    resolution, NaN = invalid."""
    options = task.heads[head]
    if options.kind == "ridge":
        fitted = regression_of_depth(solve_depth(train_VChw, train_depths, task, options, split), task, RIDGE)
    else:
        low, high = task.min_depth_m, task.max_depth_m
        fitted = _train_depth(train_VChw, _known(train_depths, task), options, split, seed, low, high)
    return depth_outcome(fitted, eval_NChw, eval_depths, task, keep)


def depth_outcome(
    fitted: Fitted, eval_NChw: Maps, eval_depths: Sequence[np.ndarray], task: Depth, keep: int
) -> Outcome:
    """A head for depth judged on the evaluation images."""
    low, high = task.min_depth_m, task.max_depth_m
    window = _window(task, eval_depths)
    kept, shown, plain, aligned = {}, [], [], []
    for index, truth in enumerate(eval_depths):
        prediction = fitted.predict(eval_NChw, index, truth.shape)
        if index < keep:
            kept[f"depth_prediction_{index}"], kept[f"depth_truth_{index}"] = prediction, truth
        shown.append(shrunk(prediction, MAP_SIDE_PX))
        pair = truth[window], prediction[window]
        plain.append(depth_errors([pair], low, high))
        if task.alignment == "affine":
            aligned.append(depth_errors([(pair[0], affine_aligned(*pair, low, high))], low, high))
    errors, pixels = map(np.concatenate, zip(*plain, strict=True))
    metrics = mean_depth(errors, pixels, task.averaging)
    if aligned:
        scaled = mean_depth(*map(np.concatenate, zip(*aligned, strict=True)), task.averaging)
        metrics |= {f"affine_{name}": value for name, value in scaled.items()}
    return Outcome(
        task="depth",
        metrics=metrics,
        num_parameters=fitted.num_parameters,
        hyperparameters=fitted.hyperparameters,
        protocol=f"{fitted.protocol}; {_judged(task)}; {low} to {high} m",
        predictions=kept,
        per_image=depth_statistics(errors, pixels, task.averaging),
        thumbnails=depth_thumbnails(shown),
    )


def probe_normals(
    train_VChw: Maps,
    eval_NChw: Maps,
    train_normals: Sequence[np.ndarray],
    eval_normals: Sequence[np.ndarray],
    task: Normals,
    head: str,
    split: Split,
    seed: int,
    keep: int,
) -> Outcome:
    """Unit normals [H, W, 3] by the head of that name, NaN = invalid: what it predicts is resized, then normalised."""
    options = task.heads[head]
    if options.kind == "ridge":
        fitted = regression_of_normals(solve_normals(train_VChw, train_normals, options, split), RIDGE)
    else:
        fitted = _train_normals(train_VChw, train_normals, options, split, seed)
    return normals_outcome(fitted, eval_NChw, eval_normals, task, keep)


def normals_outcome(
    fitted: Fitted, eval_NChw: Maps, eval_normals: Sequence[np.ndarray], task: Normals, keep: int
) -> Outcome:
    """A head for normals judged on the evaluation images."""
    window = _window(task, eval_normals)
    kept, shown, errors = {}, [], []
    for index, truth in enumerate(eval_normals):
        prediction = fitted.predict(eval_NChw, index, truth.shape[:2])
        if index < keep:
            kept[f"normals_prediction_{index}"] = prediction.astype(np.float32)
            kept[f"normals_truth_{index}"] = truth
        shown.append(shrunk(prediction, MAP_SIDE_PX))
        errors.append(angles(truth[window], prediction[window]).astype(np.float32))
    return Outcome(
        task="normals",
        metrics=mean_angles(errors, task.averaging),
        num_parameters=fitted.num_parameters,
        hyperparameters=fitted.hyperparameters,
        protocol=f"{fitted.protocol}; {_judged(task)}",
        predictions=kept,
        per_image=normals_statistics(errors, task.averaging),
        thumbnails=normals_thumbnails(shown),
    )


def _judged(task: MapTask) -> str:
    averaging = "metrics an image, averaged over images" if task.averaging == "image" else "all valid pixels pooled"
    return averaging + ("; Eigen crop" if task.crop == "eigen" else "; no crop")


def _window(task: MapTask, truths: Sequence[np.ndarray]) -> tuple[slice, slice]:
    """What of a map is judged."""
    if task.crop == "none":
        return slice(None), slice(None)
    for truth in truths:
        if truth.shape[:2] != (480, 640):
            raise CliptexError(
                f"crop: 'eigen' is for 480 x 640 maps, this one is {truth.shape[0]} x {truth.shape[1]}; set it to none"
            )
    return slice(45, 471), slice(41, 601)


def _resized(map_Thw: torch.Tensor, shape: tuple[int, int], mode: str = "bilinear") -> np.ndarray:
    """[H, W, T] at the image's resolution."""
    return F.interpolate(map_Thw[None], size=shape, mode=mode, align_corners=False)[0].permute(1, 2, 0).numpy()


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-6)


def _on_grid(truths: Sequence[np.ndarray], side: int) -> np.ndarray:
    """float32 [V, side, side, T]."""
    grid = np.stack([resample_nearest(truth, side) for truth in truths]).astype(np.float32)
    return grid if grid.ndim == 4 else grid[..., None]


RIDGE = "ridge regression with bias in closed form; prediction resized (bilinear) to the original resolution"


@dataclass(frozen=True)
class Solved:
    """A regression on features, with what was chosen for it.

    target: "metric", "log" or "normals". targets_VGGT: what was regressed, NaN = not known.
    """

    solution: Solution
    target: str
    targets_VGGT: np.ndarray
    hyperparameters: dict[str, Any]


def _known(depths: Sequence[np.ndarray], task: Depth) -> list[np.ndarray]:
    """Depths outside of the protocol's range as NaN."""
    low, high = task.min_depth_m, task.max_depth_m
    return [np.where((depth >= low) & (depth <= high), depth, np.nan).astype(np.float32) for depth in depths]


def solve_depth(
    train_VChw: Maps, depths: Sequence[np.ndarray], task: Depth, options: DepthRidge, split: Split
) -> Solved:
    """The regression of depth or its logarithm, with the penalty that is best on the holdout, on all views."""
    low, high = task.min_depth_m, task.max_depth_m
    grid = _on_grid(_known(depths, task), options.grid)

    def metric_error(truth: np.ndarray, prediction: np.ndarray) -> float:
        return float(np.sqrt(np.mean((truth - np.clip(prediction, low, high)) ** 2)))

    def log_error(truth: np.ndarray, prediction: np.ndarray) -> float:
        return metric_error(np.exp(truth), np.exp(np.clip(prediction, np.log(low), np.log(high))))

    candidates = {}
    if "metric" in options.targets:
        candidates["metric"] = fit_ridge(train_VChw, grid, *split, options.penalties, metric_error)
    if "log" in options.targets:
        candidates["log"] = fit_ridge(train_VChw, np.log(grid), *split, options.penalties, log_error)
    target = min(candidates, key=lambda name: min(candidates[name][0].values()))
    _, penalty, solution = candidates[target]
    errors = {name: by_penalty for name, (by_penalty, _, _) in candidates.items()}
    chosen = {"target": target, "penalty": penalty, "holdout_rmse": errors}
    return Solved(solution, target, np.log(grid) if target == "log" else grid, chosen)


def regression_of_depth(solved: Solved, task: Depth, protocol: str) -> Fitted:
    """The head that such a regression is."""
    low, high = task.min_depth_m, task.max_depth_m

    def predict(features: Maps, index: int, shape: tuple[int, int]) -> np.ndarray:
        depth = _resized(regressed(features[np.array([index])], solved.solution)[0], shape)[..., 0]
        return np.clip(np.exp(np.minimum(depth, np.log(high))) if solved.target == "log" else depth, low, high)

    return Fitted(predict, sum(part.numel() for part in solved.solution), solved.hyperparameters, protocol)


def solve_normals(train_VChw: Maps, normals: Sequence[np.ndarray], options: Ridge, split: Split) -> Solved:
    """The regression of x, y and z, with the penalty that is best on the holdout, on all views."""

    def angle(truth: np.ndarray, prediction: np.ndarray) -> float:
        return float(angles(truth, _unit(prediction)).mean())

    grid = _on_grid(normals, options.grid)
    errors, penalty, solution = fit_ridge(train_VChw, grid, *split, options.penalties, angle)
    return Solved(solution, "normals", grid, {"penalty": penalty, "holdout_mean": errors})


def regression_of_normals(solved: Solved, protocol: str) -> Fitted:
    """The head that such a regression is."""

    def predict(features: Maps, index: int, shape: tuple[int, int]) -> np.ndarray:
        return _unit(_resized(regressed(features[np.array([index])], solved.solution)[0], shape))

    return Fitted(predict, sum(part.numel() for part in solved.solution), solved.hyperparameters, protocol)


def _train_depth(
    train_VChw: Maps,
    depths: Sequence[np.ndarray],
    options: DepthBins,
    split: Split,
    seed: int,
    low: float,
    high: float,
) -> Fitted:
    def trained(index: np.ndarray, candidate: Candidate) -> torch.nn.Module:
        def build() -> torch.nn.Module:
            return depth_head(options, train_VChw.shape[1], low, high)

        truths = [depths[view] for view in index]
        loss = depth_loss(options)
        return train_decoder(build, loss, take(train_VChw, index), truths, options, candidate, seed, "bilinear")

    def predicted(network: torch.nn.Module, features: Maps, index: int, shape: tuple[int, int]) -> np.ndarray:
        return np.clip(_resized(apply(network, features, index), shape)[..., 0], low, high)

    def score(candidate: Candidate) -> float:
        network = trained(split[0], candidate)
        pairs = ((depths[view], predicted(network, train_VChw, view, depths[view].shape)) for view in split[1])
        return -mean_depth(*depth_errors(pairs, low, high), "image")["rmse"]

    best, scores = best_candidate(options, score)
    network = trained(np.arange(len(depths)), best)
    return Fitted(
        lambda features, index, shape: predicted(network, features, index, shape),
        sum(parameter.numel() for parameter in network.parameters()),
        {**best._asdict(), "holdout_rmse": {name: -value for name, value in scores.items()}},
        f"{options.decoder} decoder to {options.bins} bins of depth; resized (bilinear) to the original resolution",
    )


def _train_normals(
    train_VChw: Maps, normals: Sequence[np.ndarray], options: AngularNormals, split: Split, seed: int
) -> Fitted:
    def trained(index: np.ndarray, candidate: Candidate) -> torch.nn.Module:
        def build() -> torch.nn.Module:
            return normals_head(options, train_VChw.shape[1])

        truths, loss = [normals[view] for view in index], normals_loss(options)
        return train_decoder(build, loss, take(train_VChw, index), truths, options, candidate, seed, "bicubic")

    def predicted(network: torch.nn.Module, features: Maps, index: int, shape: tuple[int, int]) -> np.ndarray:
        return _unit(_resized(apply(network, features, index)[:3], shape, "bicubic"))

    def score(candidate: Candidate) -> float:
        network = trained(split[0], candidate)
        errors = [
            angles(normals[view], predicted(network, train_VChw, view, normals[view].shape[:2])) for view in split[1]
        ]
        return -float(np.concatenate(errors).mean())

    best, scores = best_candidate(options, score)
    network = trained(np.arange(len(normals)), best)
    loss = "likelihood of the angular von Mises-Fisher density" if options.uncertainty else "angle"
    return Fitted(
        lambda features, index, shape: predicted(network, features, index, shape),
        sum(parameter.numel() for parameter in network.parameters()),
        {**best._asdict(), "holdout_mean": {name: -value for name, value in scores.items()}},
        f"{options.decoder} decoder, {loss}; resized (bicubic) to the original resolution, then normalised",
    )
