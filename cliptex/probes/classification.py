"""Classification from the frozen pooled feature by multinomial logistic regression, fitted to convergence.

Shapes: N images, C feature width, K classes.
"""

from collections.abc import Sequence

import numpy as np
import torch

from cliptex.probes.features import Outcome, split_holdout
from cliptex.probes.metrics import top_metrics
from cliptex.probes.per_image import ranking_statistics
from cliptex.probes.protocols import Logistic

PROTOCOL = (
    "frozen pooled feature before the projection, of the resized and centre-cropped image, standardised a channel "
    "over the training split; multinomial logistic regression by L-BFGS; no augmentation"
)
CHUNK = 65536


def fit_logistic(
    features_NC: torch.Tensor,
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
    weights = torch.zeros(channels + 1, num_classes, device=features_NC.device) if start is None else start.clone()
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
            x, y = features_NC[at : at + CHUNK], labels_N[at : at + CHUNK]
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


def mean_log_loss(weights: torch.Tensor, features_NC: torch.Tensor, labels_N: torch.Tensor) -> float:
    """Mean cross-entropy of the classes [N]."""
    return float(torch.nn.functional.cross_entropy(features_NC @ weights[:-1] + weights[-1], labels_N))


def probe_classification(
    train_NC: torch.Tensor,
    eval_NC: torch.Tensor,
    train_labels: Sequence[int],
    eval_labels: Sequence[int],
    num_classes: int,
    options: Logistic,
    holdout: float,
    seed: int,
    keep: int,
) -> Outcome:
    """Fit on standardised features; the penalty with the smallest log loss on the holdout is taken, then all refit."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    x, x_eval = train_NC.to(device), eval_NC.to(device)
    y = torch.as_tensor(train_labels, dtype=torch.long, device=device)
    fit, held = (torch.from_numpy(part).to(device) for part in split_holdout(len(x), holdout, seed))
    losses, weights = {}, None
    # from strong to weak, each from the one before, which is near
    penalties = sorted(options.penalties, reverse=True)
    for penalty in penalties:
        weights = fit_logistic(x[fit], y[fit], num_classes, penalty, options.iterations, weights)
        losses[str(penalty)] = mean_log_loss(weights, x[held], y[held])
    best = min(penalties, key=lambda penalty: losses[str(penalty)])
    weights = fit_logistic(x, y, num_classes, best, options.iterations)
    scores = x_eval @ weights[:-1] + weights[-1]
    ranking = scores.topk(min(5, num_classes), dim=1).indices.cpu().numpy()
    count = min(keep, len(ranking))
    return Outcome(
        task="classification",
        metrics=top_metrics(ranking, np.asarray(eval_labels)),
        num_parameters=weights.numel(),
        hyperparameters={"penalty": best, "holdout_log_loss": losses},
        protocol=PROTOCOL,
        predictions={"prediction": ranking[:count], "truth": np.asarray(eval_labels[:count])},
        per_image=ranking_statistics(ranking, eval_labels),
    )
