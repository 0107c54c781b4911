"""What the probes share: a benchmark's images decoded once, an encoder's features computed once, seeds, schedules."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.optim.lr_scheduler import LambdaLR


@dataclass(frozen=True)
class Outcome:
    """What a head's training gives: a result row without names, and what is kept of its predictions.

    predictions: arrays for the .npz file, see `cliptex.probe`. per_image: see `cliptex.probes.per_image`. thumbnails:
    see `cliptex.probes.thumbnails`; empty where there is nothing to look at.
    """

    task: str
    metrics: dict[str, float | None]
    num_parameters: int
    hyperparameters: dict[str, Any]
    protocol: str
    predictions: dict[str, np.ndarray]
    per_image: Mapping[str, np.ndarray]
    thumbnails: Mapping[str, np.ndarray] = field(default_factory=dict)


def seed_of(*parts: int | str) -> int:
    """A seed from numbers and names; the same on every machine."""
    words = [part if isinstance(part, int) else zlib.crc32(part.encode()) for part in parts]
    return int(np.random.default_rng(words).integers(2**31))


def split_holdout(count: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the training images for fitting and of those held out, drawn from `seed`, each sorted."""
    order = np.random.default_rng(seed).permutation(count)
    held = min(max(1, round(share * count)), count - 1)
    return np.sort(order[held:]), np.sort(order[:held])


def standardise(train: torch.Tensor, *others: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Features [N, C, ...] with zero mean and unit variance a channel over the training split, as BatchNorm gives.

    Channels that do not vary become zero.
    """
    axes = [0, *range(2, train.ndim)]
    variance, mean = torch.var_mean(train.double(), dim=axes, keepdim=True, correction=0)
    scale = torch.where(variance > 1e-12, variance.rsqrt(), torch.zeros_like(variance)).float()
    return tuple((features - mean.float()) * scale for features in (train, *others))


def resample_nearest(array: np.ndarray, size: int) -> np.ndarray:
    """[H, W, ...] at the centres of a size x size grid."""
    rows, columns = (((np.arange(size) + 0.5) * side / size).astype(int) for side in array.shape[:2])
    return array[rows][:, columns]


def batches(count: int, batch_size: int, steps: int, generator: torch.Generator) -> list[torch.Tensor]:
    """Indices of `steps` batches: permutations of the training set one after another, each batch full."""
    size = min(batch_size, count)
    order = torch.cat([torch.randperm(count, generator=generator) for _ in range(-(-steps * size // count))])
    return list(order[: steps * size].view(steps, size))


def schedule(optimizer: torch.optim.Optimizer, steps: int, warmup: float, power: float) -> LambdaLR:
    """Linear warm-up over a share of the steps, then polynomial decay to zero."""
    rising = max(1, round(warmup * steps))
    return LambdaLR(
        optimizer,
        lambda step: min((step + 1) / rising, 1) * (1 - max(0, step - rising) / max(1, steps - rising)) ** power,
    )


def first(samples: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """The first samples themselves."""
    return [samples[index] for index in range(min(count, len(samples)))]
