"""Train heads: batches, learning rate, optimizer, the loop over steps, and the choice of hyper-parameters."""

import math
from collections.abc import Callable, Iterable
from itertools import product
from typing import NamedTuple

import torch
from torch.optim.lr_scheduler import LambdaLR

from cliptex.evaluation.protocols.base import Training


class Candidate(NamedTuple):
    """Learning rate and weight decay of a head's optimizer."""

    learning_rate: float
    weight_decay: float

    def __str__(self) -> str:
        return f"rate {self.learning_rate:g}, decay {self.weight_decay:g}"


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
    loss: Callable[[torch.nn.Module, torch.Tensor, torch.Generator], torch.Tensor],
    count: int,
    options: Training,
    candidate: Candidate,
    seed: int,
) -> torch.nn.Module:
    """Build a head and train it on `count` views; returned in evaluation mode. The same seed gives the same initial
    weights and the same batches for every encoder. loss: (head, indices of a batch, generator) -> scalar."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    network = build().train().to(default_device())
    optimisation = Optimisation(network.parameters(), options, candidate)
    for batch in batches(count, options.batch_size, options.steps, generator):
        optimisation.step(loss(network, batch, generator))
    return network.eval()


def best_candidate(options: Training, score: Callable[[Candidate], float]) -> tuple[Candidate, dict[str, float]]:
    """The candidate with the highest `score` on the holdout, and all scores.
    A single candidate is returned without a score. If scores are equal, the first candidate wins."""
    grid = candidates(options)
    if len(grid) == 1:
        return grid[0], {}
    scores = {candidate: score(candidate) for candidate in grid}
    return max(grid, key=lambda candidate: scores[candidate]), {
        str(candidate): value for candidate, value in scores.items()
    }
