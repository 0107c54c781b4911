"""Heads for depth: ridge regression of metres or their logarithm, and decoders to bins.

Shapes: V views, N images, C feature width, h x w feature map, G grid side.
"""

from collections.abc import Sequence

import numpy as np
import torch

from cliptex.evaluation.metrics.depth import affine_aligned, depth_errors, depth_statistics, mean_depth
from cliptex.evaluation.probes.base import Outcome
from cliptex.evaluation.probes.depth import DepthBins, DepthProtocol, DepthRidge
from cliptex.evaluation.probes.features import Features, take
from cliptex.evaluation.probes.heads.decoders import apply, depth_head, depth_loss, train_decoder
from cliptex.evaluation.probes.heads.maps import (
    RIDGE,
    Fitted,
    Maps,
    MapTuner,
    Solved,
    Split,
    described_averaging,
    evaluation_window,
    on_grid,
    resized,
)
from cliptex.evaluation.probes.heads.ridge import fit_ridge, regressed
from cliptex.evaluation.probes.selection import Candidate, best_candidate
from cliptex.evaluation.probes.tuning import FROM_RIDGE
from cliptex.evaluation.thumbnails import MAP_SIDE_PX, depth_thumbnails, shrunk


def probe_depth(
    train_VChw: Maps,
    eval_NChw: Maps,
    train_depths: Sequence[np.ndarray],
    eval_depths: Sequence[np.ndarray],
    task: DepthProtocol,
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
    fitted: Fitted, eval_NChw: Maps, eval_depths: Sequence[np.ndarray], task: DepthProtocol, keep: int
) -> Outcome:
    """A head for depth judged on the evaluation images."""
    low, high = task.min_depth_m, task.max_depth_m
    window = evaluation_window(task, eval_depths)
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
        protocol=f"{fitted.protocol}; {described_averaging(task)}; {low} to {high} m",
        predictions=kept,
        per_image=depth_statistics(errors, pixels, task.averaging),
        thumbnails=depth_thumbnails(shown),
    )


def _known(depths: Sequence[np.ndarray], task: DepthProtocol) -> list[np.ndarray]:
    """Depths outside of the protocol's range as NaN."""
    low, high = task.min_depth_m, task.max_depth_m
    return [np.where((depth >= low) & (depth <= high), depth, np.nan).astype(np.float32) for depth in depths]


def solve_depth(
    train_VChw: Maps, depths: Sequence[np.ndarray], task: DepthProtocol, options: DepthRidge, split: Split
) -> Solved:
    """The regression of depth or its logarithm, with the penalty that is best on the holdout, on all views."""
    low, high = task.min_depth_m, task.max_depth_m
    grid = on_grid(_known(depths, task), options.grid)

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


def regression_of_depth(solved: Solved, task: DepthProtocol, protocol: str) -> Fitted:
    """The head that such a regression is."""
    low, high = task.min_depth_m, task.max_depth_m

    def predict(features: Maps, index: int, shape: tuple[int, int]) -> np.ndarray:
        depth = resized(regressed(features[np.array([index])], solved.solution)[0], shape)[..., 0]
        return np.clip(np.exp(np.minimum(depth, np.log(high))) if solved.target == "log" else depth, low, high)

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
        return np.clip(resized(apply(network, features, index), shape)[..., 0], low, high)

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


class DepthTuner(MapTuner):
    """Depth with the encoder in training."""

    task = "depth"

    def solve(self, features: Features, truths: Sequence[np.ndarray], options: DepthRidge, split: Split) -> Solved:
        return solve_depth(features, truths, self.section, options, split)

    def outcome(self, solved: Solved, features: Features, keep: int) -> Outcome:
        fitted = regression_of_depth(solved, self.section, FROM_RIDGE)
        return depth_outcome(fitted, features, self.eval_truths, self.section, keep)
