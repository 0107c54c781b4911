"""Classification from one frozen feature an image: multinomial logistic regression, or a grid of linear classifiers.

Shapes: V views, N images, C feature width, K classes, G settings of a grid, B views of a batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from cliptex.config import FineTuning
from cliptex.evaluation.metrics.ranking import ranking_statistics, top_metrics
from cliptex.evaluation.probes.base import Outcome, Run
from cliptex.evaluation.probes.classification import ClassificationProtocol, LinearSgd, Logistic
from cliptex.evaluation.probes.features import Features, Taken, take
from cliptex.evaluation.probes.training import batches, rate_factor
from cliptex.evaluation.probes.tuning import TUNED, Tuned, Tuner, recipe_of_solved_head

CHUNK = 65536
LOGISTIC = "multinomial logistic regression by L-BFGS"
SGD = "linear classifiers by SGD, the one of a grid that is best on the holdout"
Vectors = Features | Taken | torch.Tensor


def fit_logistic(
    features_NC: Vectors,
    labels_N: torch.Tensor,
    num_classes: int,
    penalty: float,
    iterations: int,
    start: torch.Tensor | None = None,
) -> torch.Tensor:
    """Weights and, as the last row, bias: [C + 1, K] that minimise mean cross-entropy + penalty / 2 |W|^2.

    The bias is not penalised. scikit-learn's LogisticRegression has the same optimum at C = 1 / (penalty * N).
    """
    count, channels = features_NC.shape
    device = labels_N.device
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
        # by hand and in chunks: a million images times a thousand classes do not fit in an autograd graph
        gradient = torch.cat([penalty * weights[:-1], torch.zeros_like(weights[-1:])])
        loss = penalty / 2 * weights[:-1].square().sum()
        for at in range(0, count, CHUNK):
            x, y = features_NC[at : at + CHUNK].to(device), labels_N[at : at + CHUNK]
            scores = torch.log_softmax(x @ weights[:-1] + weights[-1], dim=1)
            loss = loss - scores.gather(1, y[:, None]).sum() / count
            residual = scores.exp_()
            residual[torch.arange(len(y)), y] -= 1
            gradient[:-1] += x.T @ residual / count
            gradient[-1] += residual.sum(0) / count
        weights.grad = gradient
        return loss

    with torch.no_grad():
        optimizer.step(closure)
    return weights


def mean_log_loss(weights: torch.Tensor, features_NC: Vectors, labels_N: torch.Tensor) -> float:
    """Mean cross-entropy of the classes [N]."""
    total = 0.0
    for at in range(0, len(labels_N), CHUNK):
        x, y = features_NC[at : at + CHUNK].to(weights.device), labels_N[at : at + CHUNK]
        total += float(F.cross_entropy(x @ weights[:-1] + weights[-1], y)) * len(y)
    return total / len(labels_N)


@dataclass(frozen=True)
class Setting:
    """One classifier of a grid: its optimizer's values, and which columns of the feature it reads."""

    learning_rate: float
    weight_decay: float
    blocks: int
    mean_patch: bool
    columns: slice

    def __str__(self) -> str:
        read = f"{self.blocks} blocks" + (" and mean patch" if self.mean_patch else "")
        return f"{read}, rate {self.learning_rate:g}, decay {self.weight_decay:g}"


def settings_of(options: LinearSgd, channels: int, blocks_kept: int) -> list[list[Setting]]:
    """All settings, by what they read: those of a list are trained together. blocks_kept: 0 where the feature is none
    of tokens, and is read whole."""
    grid = list(product(options.learning_rates, options.weight_decays))
    if not blocks_kept:
        return [[Setting(*pair, 0, False, slice(None)) for pair in grid]]
    width = channels // (blocks_kept + 1)  # class tokens of the blocks, then the mean patch
    return [
        [
            Setting(*pair, blocks, mean, slice((blocks_kept - blocks) * width, (blocks_kept + mean) * width))
            for pair in grid
        ]
        for blocks, mean in product(options.blocks, options.mean_patch)
    ]


def train_together(
    features_VC: Vectors,
    labels_V: torch.Tensor,
    num_classes: int,
    settings: Sequence[Setting],
    options: LinearSgd,
    seed: int,
) -> torch.Tensor:
    """Weights and, as the last row, bias of one classifier a setting: [G, C + 1, K].

    One pass: each batch is read once and serves all of them, as one product of matrices. SGD with momentum, weight
    decay added to the gradient; weights start from N(0, 0.01), the same for all.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = torch.Generator().manual_seed(seed)
    columns = settings[0].columns
    width = len(range(features_VC.shape[1])[columns])
    start = torch.randn(width, num_classes, generator=generator) * 0.01
    weights = torch.cat([start, torch.zeros(1, num_classes)]).to(device).repeat(len(settings), 1, 1)
    momentum = torch.zeros_like(weights)
    rates, decays = (
        torch.tensor([getattr(one, name) for one in settings], device=device)[:, None, None]
        for name in ("learning_rate", "weight_decay")
    )
    for step, batch in enumerate(batches(len(labels_V), options.batch_size, options.steps, generator)):
        x_BC = torch.cat([features_VC[batch].to(device)[:, columns], torch.ones(len(batch), 1, device=device)], 1)
        y_B = labels_V[batch].to(device)
        residual_GBK = torch.softmax(x_BC @ weights, -1)
        residual_GBK[:, torch.arange(len(y_B)), y_B] -= 1
        gradient = x_BC.T @ residual_GBK / len(batch) + decays * weights
        momentum = options.momentum * momentum + gradient
        weights -= rates * rate_factor(options, step) * momentum
    return weights


def scores_of(weights_GCK: torch.Tensor, features_VC: Vectors, columns: slice) -> torch.Tensor:
    """Scores [G, V, K] of classifiers, bias in the last row of each; on the CPU."""
    device, parts = weights_GCK.device, []
    for start in range(0, len(features_VC), CHUNK):
        x_VC = features_VC[start : start + CHUNK].to(device)[:, columns]
        parts.append((x_VC @ weights_GCK[:, :-1] + weights_GCK[:, -1:]).cpu())
    return torch.cat(parts, 1)


def _best_of_grid(
    train_VC: Vectors,
    labels_V: torch.Tensor,
    num_classes: int,
    task: ClassificationProtocol,
    options: LinearSgd,
    split: tuple[np.ndarray, np.ndarray],
    seed: int,
) -> tuple[Setting, dict[str, float]]:
    """The setting with the highest accuracy on the holdout, and the accuracy of each, percent."""
    kept = task.features.blocks if task.features.point == "tokens" else 0
    groups = settings_of(options, train_VC.shape[1], kept)
    if len(groups) == len(groups[0]) == 1:
        return groups[0][0], {}
    fit, held = split
    accuracy: list[tuple[Setting, float]] = []
    for settings in groups:
        weights = train_together(take(train_VC, fit), labels_V[fit], num_classes, settings, options, seed)
        for setting, one in zip(settings, weights, strict=True):
            # a setting at a time: scores of all would be as many times larger
            ranking = scores_of(one[None], take(train_VC, held), setting.columns)[0].argmax(1)
            accuracy.append((setting, 100 * (ranking == labels_V[held]).double().mean().item()))
    best, _ = max(accuracy, key=lambda pair: pair[1])
    return best, {str(setting): value for setting, value in accuracy}


def _by_sgd(
    train_VC: Vectors,
    labels_V: torch.Tensor,
    num_classes: int,
    task: ClassificationProtocol,
    options: LinearSgd,
    split: tuple[np.ndarray, np.ndarray],
    seed: int,
) -> tuple[torch.Tensor, slice, dict[str, Any]]:
    """Weights and, as the last row, bias [C + 1, K] of the best setting, the columns it reads, and what was chosen."""
    best, accuracy = _best_of_grid(train_VC, labels_V, num_classes, task, options, split, seed)
    weights = train_together(train_VC, labels_V, num_classes, [best], options, seed)
    chosen = {name: getattr(best, name) for name in ("learning_rate", "weight_decay", "blocks", "mean_patch")}
    return weights[0], best.columns, {**chosen, "holdout_top1": accuracy}


def solve_logistic(
    train_VC: Vectors,
    labels_V: torch.Tensor,
    num_classes: int,
    options: Logistic,
    split: tuple[np.ndarray, np.ndarray],
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Weights and, as the last row, bias [C + 1, K] of all views, with the penalty that has the smallest log loss on
    the holdout, and what was chosen."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if isinstance(train_VC, Features) and train_VC.computed:  # at each of some hundred steps
        train_VC = train_VC[:]
    x, y = train_VC.to(device) if isinstance(train_VC, torch.Tensor) else train_VC, labels_V.to(device)
    (x_fit, y_fit), (x_held, y_held) = ((take(x, part), y[torch.from_numpy(part).to(device)]) for part in split)
    losses, weights = {}, None
    # from strong to weak, each from the one before, which is near
    penalties = sorted(options.penalties, reverse=True)
    for penalty in penalties:
        weights = fit_logistic(x_fit, y_fit, num_classes, penalty, options.iterations, weights)
        losses[str(penalty)] = mean_log_loss(weights, x_held, y_held)
    best = min(penalties, key=lambda penalty: losses[str(penalty)])
    weights = fit_logistic(x, y, num_classes, best, options.iterations)
    return weights, {"penalty": best, "holdout_log_loss": losses}


def probe_classification(
    train_VC: Vectors,
    eval_NC: Vectors,
    train_labels: Sequence[int],
    eval_labels: Sequence[int],
    num_classes: int,
    task: ClassificationProtocol,
    head: str,
    split: tuple[np.ndarray, np.ndarray],
    seed: int,
    keep: int,
) -> Outcome:
    """Classify by the head of that name. split: training views for fitting, and those held out."""
    options, labels = task.heads[head], torch.as_tensor(train_labels, dtype=torch.long)
    if options.kind == "logistic":
        weights, chosen = solve_logistic(train_VC, labels, num_classes, options, split)
        return linear_outcome(weights, eval_NC, slice(None), eval_labels, chosen, LOGISTIC, keep)
    weights, columns, chosen = _by_sgd(train_VC, labels, num_classes, task, options, split, seed)
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
    """A linear classifier, bias in its last row, of some columns of the features, judged on the evaluation images."""
    ranking = scores_of(weights_CK[None], eval_NC, columns)[0].topk(min(5, weights_CK.shape[1]), dim=1).indices.numpy()
    kept = min(keep, len(ranking))
    return Outcome(
        task="classification",
        metrics=top_metrics(ranking, np.asarray(eval_labels)),
        num_parameters=weights_CK.numel(),
        hyperparameters=hyperparameters,
        protocol=protocol,
        predictions={"prediction": ranking[:kept], "truth": np.asarray(eval_labels[:kept])},
        per_image=ranking_statistics(ranking, eval_labels),
    )


class ClassificationTuner(Tuner):
    """A linear layer that starts from the logistic regression on the features before the first step."""

    def __init__(
        self,
        run: Run,
        name: str,
        tuned: Tuned,
        split: tuple[np.ndarray, np.ndarray],
        seed: int,
        options: FineTuning,
    ):
        labels, self.eval_labels = (part.truths["classification"] for part in tuned.parts)
        head, classes = run.protocol.section("classification").heads[name], len(run.benchmark.class_names)
        self.labels, self.device = torch.as_tensor(labels, dtype=torch.long), tuned.encoder.device
        with torch.no_grad():
            self.weights, self.chosen = solve_logistic(tuned.train, self.labels, classes, head, split)
        self.recipes = [recipe_of_solved_head(options)]

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
