"""Train heads: batches, learning rate, optimizer, the loop over steps, and the choice of hyper-parameters."""

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import product
from typing import Any, NamedTuple, TypeVar

import torch
from torch.optim.lr_scheduler import LambdaLR

from cliptex.core.errors import CliptexError
from cliptex.core.finite import require_finite
from cliptex.evaluation.probes.features import Features, TensorSubset, batches_on, views_of
from cliptex.evaluation.probes.finished_heads import trained
from cliptex.evaluation.protocols.base import Training

T = TypeVar("T")


class Candidate(NamedTuple):
    """Learning rate and weight decay of a head's optimizer."""

    learning_rate: float
    weight_decay: float

    def __str__(self) -> str:
        return f"rate {self.learning_rate:g}, decay {self.weight_decay:g}"


class NotFinite(CliptexError):
    """Weights, predictions or scores of a head are NaN or infinite, as after a learning rate that is too high."""


def finite(values: Any, subject: str, remedy: str = "lower its learning rates in the protocol") -> None:
    """`require_finite` that raises NotFinite."""
    try:
        require_finite(values, subject, remedy)
    except CliptexError as error:
        raise NotFinite(str(error)) from error


def require_trained(network: torch.nn.Module) -> None:
    """Raise NotFinite if a weight of a trained network is NaN or infinite."""
    for name, values in network.state_dict().items():
        finite(values, f"weight {name} after training")


def candidates(options: Training) -> list[Candidate]:
    """All combinations of learning rates and weight decays."""
    return [Candidate(*pair) for pair in product(options.learning_rates, options.weight_decays)]


def default_device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def batches(count: int, batch_size: int, steps: int, generator: torch.Generator) -> list[torch.Tensor]:
    """Indices of `steps` full batches, cut from consecutive permutations of the training set."""
    size = min(batch_size, count)
    order = torch.cat([torch.randperm(count, generator=generator) for _ in range(-(-steps * size // count))])
    return list(order[: steps * size].view(steps, size))


def rate_factor(options: Training, step: int) -> float:
    """The learning rate of a step (from 0) as a fraction of the peak."""
    warmup_steps = max(1, round(options.warmup * options.steps))
    warmup = min((step + 1) / warmup_steps, 1)
    progress = max(0, step - warmup_steps) / max(1, options.steps - warmup_steps)
    if options.decay == "cosine":
        return warmup * (options.final + (1 - options.final) * (1 + math.cos(math.pi * progress)) / 2)
    if options.decay == "steps":
        return warmup * options.gamma ** sum(step >= share * options.steps for share in options.milestones)
    return warmup * (options.final + (1 - options.final) * (1 - progress) ** options.power)


class Optimisation:
    """Optimizer, gradient clipping and learning-rate schedule of one head."""

    def __init__(self, parameters: Iterable[torch.nn.Parameter], options: Training, candidate: Candidate):
        self._parameters = list(parameters)
        self._clip = options.clip
        rate, decay = candidate
        if options.optimizer == "sgd":
            self._optimizer = torch.optim.SGD(self._parameters, lr=rate, momentum=options.momentum, weight_decay=decay)
        else:
            self._optimizer = torch.optim.AdamW(self._parameters, lr=rate, weight_decay=decay, fused=True)
        self._schedule = LambdaLR(self._optimizer, lambda step: rate_factor(options, step))

    def step(self, loss: torch.Tensor) -> None:
        """Backpropagate `loss` and update the parameters and the learning rate."""
        self._optimizer.zero_grad()
        loss.backward()
        if self._clip is not None:
            torch.nn.utils.clip_grad_norm_(self._parameters, self._clip)
        self._optimizer.step()
        self._schedule.step()


def train_network(
    build: Callable[[], torch.nn.Module],
    loss: Callable[[torch.nn.Module, torch.Tensor, torch.Tensor, torch.Generator], torch.Tensor],
    features: Features | TensorSubset | torch.Tensor,
    options: Training,
    candidate: Candidate,
    seed: int,
) -> torch.nn.Module:
    """Build a head and train it on all views of `features`; returned in evaluation mode. The same seed gives the same
    initial weights and the same batches for every encoder. loss: (head, features of a batch on its device, indices of
    its views, generator) -> scalar."""
    torch.manual_seed(seed)
    generator, device = torch.Generator().manual_seed(seed), default_device()
    network = build().train().to(device)

    def train() -> dict[str, torch.Tensor]:
        optimisation = Optimisation(network.parameters(), options, candidate)
        steps = batches(len(features), options.batch_size, options.steps, generator)
        for batch, values in zip(steps, batches_on(features, steps, device), strict=True):
            optimisation.step(loss(network, values, batch, generator))
        return network.state_dict()

    network.load_state_dict(trained(train, options.model_dump(), candidate, seed, views_of(features)))
    require_trained(network)
    return network.eval()


def best_of(
    grid: Sequence[T], score: Callable[[T], float], name: Callable[[T], str] = str
) -> tuple[T, dict[str, float | None]]:
    """The item with the highest score, the first one of equals, and all scores by name; None where training diverged.
    Raises NotFinite if all of them diverged."""
    scores: dict[str, float | None] = {}
    for item in grid:
        try:
            scores[name(item)] = score(item)
        except NotFinite as error:
            scores[name(item)], diverged = None, error
            continue
        finite(scores[name(item)], f"the score on the holdout of {name(item)}", "look for images without ground truth")
    trained = [item for item in grid if scores[name(item)] is not None]
    if not trained:
        raise diverged
    return max(trained, key=lambda item: scores[name(item)]), scores


def best_candidate(options: Training, score: Callable[[Candidate], float]) -> tuple[Candidate, dict[str, float | None]]:
    """`best_of` the candidates on the holdout; a single one is returned without a score."""
    grid = candidates(options)
    if len(grid) == 1:
        return grid[0], {}
    return best_of(grid, score)
