"""Heads for surface normals: ridge regression of x, y, z, and decoders trained on the angle.

Shapes: V views, N images, C feature width, h x w feature map, G grid side.
"""

from collections.abc import Sequence

import numpy as np
import torch

from cliptex.evaluation.metrics.normals import angles, mean_angles, normals_statistics
from cliptex.evaluation.probes.base import Outcome
from cliptex.evaluation.probes.features import Features, take
from cliptex.evaluation.probes.heads.decoders import apply, normals_head, normals_loss, train_decoder
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
from cliptex.evaluation.probes.normals import AngularNormals, NormalsProtocol
from cliptex.evaluation.probes.selection import Candidate, best_candidate
from cliptex.evaluation.probes.tuning import FROM_RIDGE
from cliptex.evaluation.protocols.base import Ridge
from cliptex.evaluation.thumbnails import MAP_SIDE_PX, normals_thumbnails, shrunk


def probe_normals(
    train_VChw: Maps,
    eval_NChw: Maps,
    train_normals: Sequence[np.ndarray],
    eval_normals: Sequence[np.ndarray],
    task: NormalsProtocol,
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
    fitted: Fitted, eval_NChw: Maps, eval_normals: Sequence[np.ndarray], task: NormalsProtocol, keep: int
) -> Outcome:
    """A head for normals judged on the evaluation images."""
    window = evaluation_window(task, eval_normals)
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
        protocol=f"{fitted.protocol}; {described_averaging(task)}",
        predictions=kept,
        per_image=normals_statistics(errors, task.averaging),
        thumbnails=normals_thumbnails(shown),
    )


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-6)


def solve_normals(train_VChw: Maps, normals: Sequence[np.ndarray], options: Ridge, split: Split) -> Solved:
    """The regression of x, y and z, with the penalty that is best on the holdout, on all views."""

    def angle(truth: np.ndarray, prediction: np.ndarray) -> float:
        return float(angles(truth, _unit(prediction)).mean())

    grid = on_grid(normals, options.grid)
    errors, penalty, solution = fit_ridge(train_VChw, grid, *split, options.penalties, angle)
    return Solved(solution, "normals", grid, {"penalty": penalty, "holdout_mean": errors})


def regression_of_normals(solved: Solved, protocol: str) -> Fitted:
    """The head that such a regression is."""

    def predict(features: Maps, index: int, shape: tuple[int, int]) -> np.ndarray:
        return _unit(resized(regressed(features[np.array([index])], solved.solution)[0], shape))

    return Fitted(predict, sum(part.numel() for part in solved.solution), solved.hyperparameters, protocol)


def _train_normals(
    train_VChw: Maps, normals: Sequence[np.ndarray], options: AngularNormals, split: Split, seed: int
) -> Fitted:
    def trained(index: np.ndarray, candidate: Candidate) -> torch.nn.Module:
        def build() -> torch.nn.Module:
            return normals_head(options, train_VChw.shape[1])

        truths, loss = [normals[view] for view in index], normals_loss(options)
        return train_decoder(build, loss, take(train_VChw, index), truths, options, candidate, seed, "bicubic")

    def predicted(network: torch.nn.Module, features: Maps, index: int, shape: tuple[int, int]) -> np.ndarray:
        return _unit(resized(apply(network, features, index)[:3], shape, "bicubic"))

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


class NormalsTuner(MapTuner):
    """Normals with the encoder in training."""

    task = "normals"

    def solve(self, features: Features, truths: Sequence[np.ndarray], options: Ridge, split: Split) -> Solved:
        return solve_normals(features, truths, options, split)

    def outcome(self, solved: Solved, features: Features, keep: int) -> Outcome:
        fitted = regression_of_normals(solved, FROM_RIDGE)
        return normals_outcome(fitted, features, self.eval_truths, self.section, keep)
