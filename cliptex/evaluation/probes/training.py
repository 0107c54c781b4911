"""How heads are trained: batches, optimizer, rate."""

import math
from collections.abc import Iterable

import torch
from torch.optim.lr_scheduler import LambdaLR

from cliptex.evaluation.probes.selection import Candidate
from cliptex.evaluation.protocols.base import Training


def batches(count: int, batch_size: int, steps: int, generator: torch.Generator) -> list[torch.Tensor]:
    """Indices of `steps` batches: permutations of the training set one after another, each batch full."""
    size = min(batch_size, count)
    order = torch.cat([torch.randperm(count, generator=generator) for _ in range(-(-steps * size // count))])
    return list(order[: steps * size].view(steps, size))


def rate_factor(options: Training, step: int) -> float:
    """The learning rate of a step (from 0) as a share of the peak."""
    rising = max(1, round(options.warmup * options.steps))
    up = min((step + 1) / rising, 1)
    falling = max(0, step - rising) / max(1, options.steps - rising)
    if options.decay == "cosine":
        return up * (options.final + (1 - options.final) * (1 + math.cos(math.pi * falling)) / 2)
    if options.decay == "steps":
        return up * options.gamma ** sum(step >= share * options.steps for share in options.milestones)
    return up * (options.final + (1 - options.final) * (1 - falling) ** options.power)


class Optimisation:
    """The optimizer and the schedule of one head: `step(loss)` does all of a step."""

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
        """One step down the gradient of `loss`."""
        self._optimizer.zero_grad()
        loss.backward()
        if self._clip is not None:
            torch.nn.utils.clip_grad_norm_(self._parameters, self._clip)
        self._optimizer.step()
        self._schedule.step()
