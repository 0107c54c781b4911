"""Heads for surface normals: ridge regression of x, y, z, and decoders trained on the angle.

Shapes: V views, N images, C feature width, h x w feature map, G grid side.
"""

from collections.abc import Sequence

import numpy as np
import torch

from cliptex.evaluation.metrics.depth import Pairs
from cliptex.evaluation.metrics.normals import angles, mean_angles, normals_statistics
from cliptex.evaluation.probes.base import Outcome
from cliptex.evaluation.probes.features import Split
from cliptex.evaluation.probes.heads import maps
from cliptex.evaluation.probes.heads.decoders import DecoderProbe, apply_head, build_decoder, fit_decoder, normals_loss
from cliptex.evaluation.probes.heads.ridge import fit_ridge
from cliptex.evaluation.probes.normals import AngularNormals, NormalsProtocol
from cliptex.evaluation.protocols.base import Ridge
from cliptex.evaluation.thumbnails import MAP_SIDE_PX, normals_thumbnails, shrunk


def normals_outcome(
    fitted: maps.Fitted, eval_NChw: maps.Maps, eval_normals: Sequence[np.ndarray], section: NormalsProtocol, keep: int
) -> Outcome:
    """Evaluate a head for normals on the evaluation images."""
    predictions, thumbnails, errors = {}, [], []
    for index, truth in enumerate(eval_normals):
        prediction = fitted.predicted(eval_NChw, index, truth.shape[:2])
        if index < keep:
            predictions[f"normals_prediction_{index}"] = prediction.astype(np.float32)
            predictions[f"normals_truth_{index}"] = truth
        thumbnails.append(shrunk(prediction, MAP_SIDE_PX))
        window = maps.evaluation_window(section, truth)
        errors.append(angles(truth[window], prediction[window]).astype(np.float32))
    metrics, per_image = mean_angles(errors, section.averaging), normals_statistics(errors, section.averaging)
    return fitted.outcome("normals", section, "", metrics, predictions, per_image, normals_thumbnails(thumbnails))


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-6)


def solve_normals(
    train_VChw: maps.Maps, normals: Sequence[np.ndarray], section: NormalsProtocol, options: Ridge, split: Split
) -> maps.Solved:
    """Ridge regression of x, y and z on all views, with the penalty that is best on the holdout."""

    def angle(truth: np.ndarray, prediction: np.ndarray) -> float:
        return float(angles(truth, _unit(prediction)).mean())

    grid = maps.on_grid(normals, options.grid)
    errors, penalty, solution = fit_ridge(train_VChw, grid, *split, options.penalties, angle)
    return maps.Solved(solution, "normals", grid, {"penalty": penalty, "holdout_mean": errors})


def normals_regression(solved: maps.Solved, section: NormalsProtocol, protocol: str) -> maps.Fitted:
    """A regression as a head."""
    return solved.fitted(_unit, protocol)


def _fit_angular(
    train_VChw: maps.Maps,
    normals: Sequence[np.ndarray],
    section: NormalsProtocol,
    options: AngularNormals,
    split: Split,
    seed: int,
) -> maps.Fitted:
    def build() -> torch.nn.Module:
        return build_decoder(options, train_VChw.shape[1], 3 + options.uncertainty)

    def predict(network: torch.nn.Module, features: maps.Maps, index: int, shape: tuple[int, int]) -> np.ndarray:
        return _unit(maps.resized(apply_head(network, features, index)[:3], shape, "bicubic"))

    def error(pairs: Pairs) -> float:
        return float(np.concatenate([angles(truth, prediction) for truth, prediction in pairs]).mean())

    loss = "likelihood of the angular von Mises-Fisher density" if options.uncertainty else "angle"
    protocol = f"{options.decoder} decoder, {loss}; resized (bicubic) to the original resolution, then normalised"
    probe = DecoderProbe(build, normals_loss(options), predict, error, "holdout_mean", "bicubic", protocol)
    return fit_decoder(probe, train_VChw, normals, options, split, seed)


class NormalsTuner(maps.MapTuner):
    """Unit normals [H, W, 3], NaN = invalid; predictions are resized, then normalised."""

    task = "normals"
    solve, regression = staticmethod(solve_normals), staticmethod(normals_regression)
    decoder, outcome = staticmethod(_fit_angular), staticmethod(normals_outcome)


probe_normals = NormalsTuner.probe
