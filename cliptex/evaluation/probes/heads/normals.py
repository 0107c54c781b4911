"""Heads for surface normals: ridge regression of x, y, z, and decoders trained on the angle.

Shapes: V views, N images, C feature width, h x w feature map, G grid side.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from cliptex.evaluation.metrics.normals import angles, mean_angles, normals_statistics
from cliptex.evaluation.probes.base import Outcome
from cliptex.evaluation.probes.features import Split
from cliptex.evaluation.probes.heads import maps
from cliptex.evaluation.probes.heads.decoders import DecoderProbe, apply_head, build_decoder, fit_decoder, normals_loss
from cliptex.evaluation.probes.heads.ridge import fit_ridge, regressed
from cliptex.evaluation.probes.normals import AngularNormals, NormalsProtocol
from cliptex.evaluation.protocols.base import Ridge
from cliptex.evaluation.thumbnails import MAP_SIDE_PX, normals_thumbnails, shrunk


def probe_normals(
    train_VChw: maps.Maps,
    eval_NChw: maps.Maps,
    train_normals: Sequence[np.ndarray],
    eval_normals: Sequence[np.ndarray],
    section: NormalsProtocol,
    head: str,
    split: Split,
    seed: int,
    keep: int,
) -> Outcome:
    """Train and evaluate the head of that name.
    Unit normals [H, W, 3], NaN = invalid; predictions are resized, then normalised."""
    options = section.heads[head]
    if options.kind == "ridge":
        solved = solve_normals(train_VChw, train_normals, section, options, split)
        fitted = normals_regression(solved, section, maps.RIDGE)
    else:
        fitted = _fit_angular(train_VChw, train_normals, options, split, seed)
    return normals_outcome(fitted, eval_NChw, eval_normals, section, keep)


def normals_outcome(
    fitted: maps.Fitted, eval_NChw: maps.Maps, eval_normals: Sequence[np.ndarray], section: NormalsProtocol, keep: int
) -> Outcome:
    """Evaluate a head for normals on the evaluation images."""
    window = maps.evaluation_window(section, eval_normals)
    predictions, thumbnails, errors = {}, [], []
    for index, truth in enumerate(eval_normals):
        prediction = fitted.predict(eval_NChw, index, truth.shape[:2])
        if index < keep:
            predictions[f"normals_prediction_{index}"] = prediction.astype(np.float32)
            predictions[f"normals_truth_{index}"] = truth
        thumbnails.append(shrunk(prediction, MAP_SIDE_PX))
        errors.append(angles(truth[window], prediction[window]).astype(np.float32))
    return Outcome(
        task="normals",
        metrics=mean_angles(errors, section.averaging),
        num_parameters=fitted.num_parameters,
        hyperparameters=fitted.hyperparameters,
        protocol=f"{fitted.protocol}; {maps.described_averaging(section)}",
        predictions=predictions,
        per_image=normals_statistics(errors, section.averaging),
        thumbnails=normals_thumbnails(thumbnails),
    )


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

    def predict(features: maps.Maps, index: int, shape: tuple[int, int]) -> np.ndarray:
        return _unit(maps.resized(regressed(features[np.array([index])], solved.solution)[0], shape))

    return maps.Fitted(predict, sum(part.numel() for part in solved.solution), solved.hyperparameters, protocol)


def _fit_angular(
    train_VChw: maps.Maps, normals: Sequence[np.ndarray], options: AngularNormals, split: Split, seed: int
) -> maps.Fitted:
    def build() -> torch.nn.Module:
        return build_decoder(options, train_VChw.shape[1], 3 + options.uncertainty)

    def predict(network: torch.nn.Module, features: maps.Maps, index: int, shape: tuple[int, int]) -> np.ndarray:
        return _unit(maps.resized(apply_head(network, features, index)[:3], shape, "bicubic"))

    def error(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> float:
        return float(np.concatenate([angles(truth, prediction) for truth, prediction in pairs]).mean())

    loss = "likelihood of the angular von Mises-Fisher density" if options.uncertainty else "angle"
    protocol = f"{options.decoder} decoder, {loss}; resized (bicubic) to the original resolution, then normalised"
    probe = DecoderProbe(build, normals_loss(options), predict, error, "holdout_mean", "bicubic", protocol)
    return fit_decoder(probe, train_VChw, normals, options, split, seed)


class NormalsTuner(maps.MapTuner):
    """Normals, together with the encoder."""

    task = "normals"
    solve, regression = staticmethod(solve_normals), staticmethod(normals_regression)
    outcome = staticmethod(normals_outcome)
