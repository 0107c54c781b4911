"""Heads for depth: ridge regression of metres or their logarithm, and decoders to bins.

Shapes: V views, N images, C feature width, h x w feature map, G grid side.
"""

from collections.abc import Sequence

import numpy as np
import torch

from cliptex.evaluation.metrics.depth import Pairs, affine_aligned, depth_errors, depth_statistics, mean_depth
from cliptex.evaluation.probes.base import Outcome
from cliptex.evaluation.probes.depth import DepthBins, DepthProtocol, DepthRidge
from cliptex.evaluation.probes.features import Split
from cliptex.evaluation.probes.heads import maps
from cliptex.evaluation.probes.heads.decoders import DecoderProbe, apply_head, depth_head, depth_loss, fit_decoder
from cliptex.evaluation.probes.heads.ridge import fit_ridge
from cliptex.evaluation.thumbnails import MAP_SIDE_PX, depth_thumbnails, shrunk


def depth_outcome(
    fitted: maps.Fitted, eval_NChw: maps.Maps, eval_depths: Sequence[np.ndarray], section: DepthProtocol, keep: int
) -> Outcome:
    """Evaluate a head for depth on the evaluation images."""
    low, high = section.min_depth_m, section.max_depth_m
    predictions, thumbnails, plain, aligned = {}, [], [], []
    for index, truth in enumerate(eval_depths):
        prediction = fitted.predicted(eval_NChw, index, truth.shape)
        if index < keep:
            predictions[f"depth_prediction_{index}"], predictions[f"depth_truth_{index}"] = prediction, truth
        thumbnails.append(shrunk(prediction, MAP_SIDE_PX))
        window = maps.evaluation_window(section, truth)
        pair = truth[window], prediction[window]
        plain.append(depth_errors([pair], low, high))
        if section.alignment == "affine":
            aligned.append(depth_errors([(pair[0], affine_aligned(*pair, low, high))], low, high))
    errors, pixels = map(np.concatenate, zip(*plain, strict=True))
    metrics = mean_depth(errors, pixels, section.averaging)
    if aligned:
        affine = mean_depth(*map(np.concatenate, zip(*aligned, strict=True)), section.averaging)
        metrics |= {f"affine_{name}": value for name, value in affine.items()}
    per_image = depth_statistics(errors, pixels, section.averaging)
    limits, small = f"; {low} to {high} m", depth_thumbnails(thumbnails)
    return fitted.outcome("depth", section, limits, metrics, predictions, per_image, small)


def _clear_out_of_range(depths: Sequence[np.ndarray], section: DepthProtocol) -> list[np.ndarray]:
    """Replace depths outside the protocol's range by NaN."""
    low, high = section.min_depth_m, section.max_depth_m
    return [np.where((depth >= low) & (depth <= high), depth, np.nan).astype(np.float32) for depth in depths]


def solve_depth(
    train_VChw: maps.Maps, depths: Sequence[np.ndarray], section: DepthProtocol, options: DepthRidge, split: Split
) -> maps.Solved:
    """Ridge regression of depth or its logarithm on all views, with the target and penalty best on the holdout."""
    low, high = section.min_depth_m, section.max_depth_m
    grid = maps.on_grid(_clear_out_of_range(depths, section), options.grid)

    def metric_error(truth: np.ndarray, prediction: np.ndarray) -> float:
        return float(np.sqrt(np.mean((truth - np.clip(prediction, low, high)) ** 2)))

    def log_error(truth: np.ndarray, prediction: np.ndarray) -> float:
        return metric_error(np.exp(truth), np.exp(np.clip(prediction, np.log(low), np.log(high))))

    targets = {"metric": (grid, metric_error), "log": (np.log(grid), log_error)}
    candidates = {
        name: fit_ridge(train_VChw, values, *split, options.penalties, error)
        for name, (values, error) in targets.items()
        if name in options.targets
    }
    target = min(candidates, key=lambda name: min(candidates[name][0].values()))
    _, penalty, solution = candidates[target]
    errors = {name: by_penalty for name, (by_penalty, _, _) in candidates.items()}
    chosen = {"target": target, "penalty": penalty, "holdout_rmse": errors}
    return maps.Solved(solution, target, targets[target][0], chosen)


def depth_regression(solved: maps.Solved, section: DepthProtocol, protocol: str) -> maps.Fitted:
    """A regression as a head."""
    low, high = section.min_depth_m, section.max_depth_m

    def depth(map_HWT: np.ndarray) -> np.ndarray:
        values = map_HWT[..., 0]
        return np.clip(np.exp(np.minimum(values, np.log(high))) if solved.target == "log" else values, low, high)

    return solved.fitted(depth, protocol)


def _fit_bins(
    train_VChw: maps.Maps,
    depths: Sequence[np.ndarray],
    section: DepthProtocol,
    options: DepthBins,
    split: Split,
    seed: int,
) -> maps.Fitted:
    low, high = section.min_depth_m, section.max_depth_m

    def build() -> torch.nn.Module:
        return depth_head(options, train_VChw.shape[1], low, high)

    def predict(network: torch.nn.Module, features: maps.Maps, index: int, shape: tuple[int, int]) -> np.ndarray:
        return np.clip(maps.resized(apply_head(network, features, index), shape)[..., 0], low, high)

    def error(pairs: Pairs) -> float:
        return mean_depth(*depth_errors(pairs, low, high), "image")["rmse"]

    protocol = f"{options.decoder} decoder to {options.bins} bins of depth"
    protocol += "; resized (bilinear) to the original resolution"
    depths = _clear_out_of_range(depths, section)
    probe = DecoderProbe(build, depth_loss(options), predict, error, "holdout_rmse", "bilinear", protocol)
    return fit_decoder(probe, train_VChw, depths, options, split, seed)


class DepthTuner(maps.MapTuner):
    """Depths in metres, NaN = invalid: training depths on a grid, evaluation depths at the original resolution."""

    task = "depth"
    solve, regression = staticmethod(solve_depth), staticmethod(depth_regression)
    decoder, outcome = staticmethod(_fit_bins), staticmethod(depth_outcome)


probe_depth = DepthTuner.probe
