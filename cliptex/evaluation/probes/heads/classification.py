"""Heads for classification from one feature per image: logistic regression, or a grid of linear classifiers.

Shapes: V views, N images, C feature width, K classes, G points of a grid, B views of a batch. Weights of a linear
classifier are [C + 1, K], with the bias in the last row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from cliptex.evaluation.metrics.ranking import ranking_statistics, top_metrics
from cliptex.evaluation.probes.base import Outcome, Run
from cliptex.evaluation.probes.classification import ClassificationProtocol, LinearSgd, Logistic
from cliptex.evaluation.probes.features import (
    Features,
    Split,
    TensorSubset,
    batches_on,
    held_on,
    ranges,
    take,
    views_of,
)
from cliptex.evaluation.probes.finished_heads import trained
from cliptex.evaluation.probes.training import NotFinite, batches, default_device, finite, rate_factor
from cliptex.evaluation.probes.tuning import TUNED, Tuned, Tuner

CHUNK = 65536
LOGISTIC = "multinomial logistic regression by L-BFGS"
SGD = "linear classifiers by SGD, the one of a grid that is best on the holdout"
Vectors = Features | TensorSubset | torch.Tensor


def fit_logistic(
    features_NC: Vectors,
    labels_N: torch.Tensor,
    num_classes: int,
    penalty: float,
    iterations: int,
    start: torch.Tensor | None = None,
) -> torch.Tensor:
    """The weights that minimise mean cross-entropy + penalty / 2 |W|^2; the bias is not penalised. scikit-learn's
    LogisticRegression has the same optimum at C = 1 / (penalty * N). start: initial weights."""
    count, channels = features_NC.shape
    device, parts = labels_N.device, ranges(count, CHUNK)
    weights = torch.zeros(channels + 1, num_classes, device=device) if start is None else start.clone()
    optimizer = torch.optim.LBFGS(
        [weights],
        max_iter=iterations,
        history_size=20,
        tolerance_grad=1e-5,
        tolerance_change=1e-8,
        line_search_fn="strong_wolfe",
    )

    def closure() -> torch.Tensor:
        # explicit gradient, in chunks: the autograd graph of a million images and a thousand classes would not fit
        gradient = torch.cat([penalty * weights[:-1], torch.zeros_like(weights[-1:])])
        loss = penalty / 2 * weights[:-1].square().sum()
        for part, x in zip(parts, batches_on(features_NC, parts, device), strict=True):
            y = labels_N[part]
            scores = torch.log_softmax(x @ weights[:-1] + weights[-1], dim=1)
            loss = loss - scores.gather(1, y[:, None]).sum() / count
            residual = scores.exp_()
            residual[torch.arange(len(y)), y] -= 1
            gradient[:-1] += x.T @ residual / count
            gradient[-1] += residual.sum(0) / count
        weights.grad = gradient
        return loss

    def fit() -> dict[str, torch.Tensor]:
        with torch.no_grad():
            optimizer.step(closure)
        return {"weights": weights}

    return trained(fit, "logistic", penalty, iterations, views_of(features_NC), start)["weights"].to(device)


def mean_log_loss(weights: torch.Tensor, features_NC: Vectors, labels_N: torch.Tensor) -> float:
    """Mean cross-entropy of a classifier on the labels [N]."""
    total = 0.0
    parts = ranges(len(labels_N), CHUNK)
    for part, x in zip(parts, batches_on(features_NC, parts, weights.device), strict=True):
        y = labels_N[part]
        total += float(F.cross_entropy(x @ weights[:-1] + weights[-1], y)) * len(y)
    return total / len(labels_N)


@dataclass(frozen=True)
class GridPoint:
    """One classifier of a grid: learning rate, weight decay, and the columns of the feature that it uses."""

    learning_rate: float
    weight_decay: float
    blocks: int
    mean_patch: bool
    columns: slice

    def __str__(self) -> str:
        inputs = f"{self.blocks} blocks" + (" and mean patch" if self.mean_patch else "")
        return f"{inputs}, rate {self.learning_rate:g}, decay {self.weight_decay:g}"


def grid_of(options: LinearSgd, channels: int, num_blocks: int) -> list[list[GridPoint]]:
    """All points of the grid, in groups that use the same columns and are trained together.
    num_blocks: class tokens in the feature; 0 if the feature does not consist of tokens and is used as a whole."""
    pairs = list(product(options.learning_rates, options.weight_decays))
    if not num_blocks:
        return [[GridPoint(*pair, 0, False, slice(None)) for pair in pairs]]
    width = channels // (num_blocks + 1)  # class tokens of the blocks, then the mean patch token
    return [
        [
            GridPoint(*pair, blocks, mean, slice((num_blocks - blocks) * width, (num_blocks + mean) * width))
            for pair in pairs
        ]
        for blocks, mean in product(options.blocks, options.mean_patch)
    ]


def train_grid(
    features_VC: Vectors,
    labels_V: torch.Tensor,
    num_classes: int,
    points: Sequence[GridPoint],
    options: LinearSgd,
    seed: int,
) -> torch.Tensor:
    """Train one classifier per grid point; each batch is read once for all: weights [G, C + 1, K].
    SGD with momentum, weight decay added to the gradient; all weights start from the same sample of N(0, 0.01)."""
    device = default_device()
    generator = torch.Generator().manual_seed(seed)
    columns = points[0].columns
    width = len(range(features_VC.shape[1])[columns])
    start = torch.randn(width, num_classes, generator=generator) * 0.01
    weights = torch.cat([start, torch.zeros(1, num_classes)]).to(device).repeat(len(points), 1, 1)
    momentum = torch.zeros_like(weights)
    rates, decays = (
        torch.tensor([getattr(point, name) for point in points], device=device)[:, None, None]
        for name in ("learning_rate", "weight_decay")
    )

    def train() -> dict[str, torch.Tensor]:
        nonlocal momentum
        steps = batches(len(labels_V), options.batch_size, options.steps, generator)
        for step, (batch, x) in enumerate(zip(steps, batches_on(features_VC, steps, device), strict=True)):
            x_BC = torch.cat([x[:, columns], torch.ones(len(batch), 1, device=device)], 1)
            y_B = labels_V[batch].to(device)
            residual_GBK = torch.softmax(x_BC @ weights, -1)
            residual_GBK[:, torch.arange(len(y_B)), y_B] -= 1
            gradient = x_BC.T @ residual_GBK / len(batch) + decays * weights
            momentum = options.momentum * momentum + gradient
            weights.sub_(rates * rate_factor(options, step) * momentum)
        return {"weights": weights}

    settings = [(point.learning_rate, point.weight_decay, str(point.columns)) for point in points]
    kept = trained(train, options.model_dump(), settings, seed, views_of(features_VC))
    return kept["weights"].to(device)


def scores_of(weights_GCK: torch.Tensor, features_VC: Vectors, columns: slice) -> torch.Tensor:
    """Scores [G, V, K] of classifiers, on the CPU. Raises NotFinite if one is NaN or infinite."""
    device, chunks = weights_GCK.device, []
    for values in batches_on(features_VC, ranges(len(features_VC), CHUNK), device):
        x_VC = values[:, columns]
        chunks.append((x_VC @ weights_GCK[:, :-1] + weights_GCK[:, -1:]).cpu())
    scores = torch.cat(chunks, 1)
    finite(scores, "scores of a linear classifier")
    return scores


def fit_sgd(
    train_VC: Vectors,
    labels_V: torch.Tensor,
    num_classes: int,
    num_blocks: int,
    options: LinearSgd,
    split: Split,
    seed: int,
) -> tuple[torch.Tensor, slice, dict[str, Any]]:
    """Train on all views the classifier of the grid with the highest accuracy on the holdout.
    num_blocks: as in `grid_of`. Returns its weights, the columns that it uses, and the hyper-parameters."""
    groups = grid_of(options, train_VC.shape[1], num_blocks)
    best = groups[0][0]
    accuracies: list[tuple[GridPoint, float | None]] = []
    if len(groups) > 1 or len(groups[0]) > 1:
        fit, held = split
        for points in groups:
            weights_GCK = train_grid(take(train_VC, fit), labels_V[fit], num_classes, points, options, seed)
            for point, weights_CK in zip(points, weights_GCK, strict=True):
                # one point at a time: the scores of all of them would take G times the memory
                try:
                    predicted = scores_of(weights_CK[None], take(train_VC, held), point.columns)[0].argmax(1)
                except NotFinite:  # its learning rate is too high
                    accuracies.append((point, None))
                else:
                    accuracies.append((point, 100 * (predicted == labels_V[held]).double().mean().item()))
        best, _ = max((pair for pair in accuracies if pair[1] is not None), key=lambda pair: pair[1], default=(best, 0))
    weights_GCK = train_grid(train_VC, labels_V, num_classes, [best], options, seed)
    chosen = {name: getattr(best, name) for name in ("learning_rate", "weight_decay", "blocks", "mean_patch")}
    chosen["holdout_top1"] = {str(point): accuracy for point, accuracy in accuracies}
    return weights_GCK[0], best.columns, chosen


def solve_logistic(
    train_VC: Vectors,
    labels_V: torch.Tensor,
    num_classes: int,
    options: Logistic,
    split: Split,
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Fit all views with the penalty that has the lowest log loss on the holdout: weights, and hyper-parameters."""
    device = default_device()
    x, y = held_on(train_VC, device), labels_V.to(device)
    (x_fit, y_fit), (x_held, y_held) = ((take(x, part), y[torch.from_numpy(part).to(device)]) for part in split)
    losses, weights = {}, None
    # from strong to weak; each fit starts from the previous solution, which is close
    penalties = sorted(options.penalties, reverse=True)
    for penalty in penalties:
        weights = fit_logistic(x_fit, y_fit, num_classes, penalty, options.iterations, weights)
        losses[str(penalty)] = mean_log_loss(weights, x_held, y_held)
        finite(losses[str(penalty)], f"log loss on the holdout with the penalty {penalty:g}", "raise the penalty")
    best = min(penalties, key=lambda penalty: losses[str(penalty)])
    weights = fit_logistic(x, y, num_classes, best, options.iterations)
    return weights, {"penalty": best, "holdout_log_loss": losses}


def probe_classification(
    train_VC: Vectors,
    eval_NC: Vectors,
    train_labels: Sequence[int],
    eval_labels: Sequence[int],
    num_classes: int,
    section: ClassificationProtocol,
    head: str,
    split: Split,
    seed: int,
    keep: int,
) -> Outcome:
    """Train and evaluate the head of that name. split: training views for fitting, and the held-out ones."""
    options, labels = section.heads[head], torch.as_tensor(train_labels, dtype=torch.long)
    if options.kind == "logistic":
        weights, chosen = solve_logistic(train_VC, labels, num_classes, options, split)
        return linear_outcome(weights, eval_NC, slice(None), eval_labels, chosen, LOGISTIC, keep)
    num_blocks = section.features.blocks if section.features.point == "tokens" else 0
    weights, columns, chosen = fit_sgd(train_VC, labels, num_classes, num_blocks, options, split, seed)
    return linear_outcome(weights, eval_NC, columns, eval_labels, chosen, SGD, keep)


def linear_outcome(
    weights_CK: torch.Tensor,
    eval_NC: Vectors,
    columns: slice,
    eval_labels: Sequence[int],
    hyperparameters: dict[str, Any],
    protocol: str,
    keep: int,
) -> Outcome:
    """Evaluate a linear classifier that uses `columns` of the features on the evaluation images."""
    ranking = scores_of(weights_CK[None], eval_NC, columns)[0].topk(min(5, weights_CK.shape[1]), dim=1).indices.numpy()
    return ranking_outcome(ranking, eval_labels, weights_CK.numel(), hyperparameters, protocol, keep)


def ranking_outcome(
    ranking_N5: np.ndarray,
    eval_labels: Sequence[int],
    num_parameters: int,
    hyperparameters: dict[str, Any],
    protocol: str,
    keep: int,
) -> Outcome:
    """Evaluate a ranking of classes: the five best of each evaluation image, or all if fewer, best first."""
    metrics, per_image = top_metrics(ranking_N5, np.asarray(eval_labels)), ranking_statistics(ranking_N5, eval_labels)
    saved = {"prediction": ranking_N5[:keep], "truth": np.asarray(eval_labels[:keep])}
    return Outcome("classification", metrics, num_parameters, hyperparameters, protocol, saved, per_image)


class ClassificationTuner(Tuner):
    """A linear layer that starts from the logistic regression on the features before the first step."""

    task = "classification"

    def prepare(self, run: Run, tuned: Tuned, split: Split) -> None:
        labels, self.eval_labels = (part.truths[self.task] for part in tuned.parts)
        self.labels, num_classes = torch.as_tensor(labels, dtype=torch.long), len(run.benchmark.class_names)
        with torch.no_grad():
            self.weights, self.chosen = solve_logistic(tuned.train, self.labels, num_classes, self.options, split)

    def start(self) -> torch.nn.Module:
        head = torch.nn.Linear(self.weights.shape[0] - 1, self.weights.shape[1])
        head.weight.data, head.bias.data = self.weights[:-1].T.clone(), self.weights[-1].clone()
        return head.to(self.device)

    def loss(
        self, head: torch.nn.Module, features: torch.Tensor, batch: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor:
        return F.cross_entropy(head(features), self.labels[batch].to(features.device))

    def outcomes(self, head: torch.nn.Module, tuned: Tuned, chosen: dict[str, Any], keep: int) -> list[Outcome]:
        weights = torch.cat([head.weight.data.T, head.bias.data[None]])
        protocol = TUNED + "the head starts from logistic regression"
        chosen = self.chosen | chosen
        return [linear_outcome(weights, tuned.eval, slice(None), self.eval_labels, chosen, protocol, keep)]
