"""Standardised features of views as heads read them, a batch at a time."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

import numpy as np
import torch

from cliptex.evaluation.probes.feature_cache import FeatureSource

CHUNK_BYTES = 2**28
Split = tuple[np.ndarray, np.ndarray]
"""Training views for fitting, and the held-out ones."""


def split_holdout(count: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the training images for fitting and of the held-out ones, drawn from `seed`, each sorted."""
    order = np.random.default_rng(seed).permutation(count)
    num_held = min(max(1, round(share * count)), count - 1)
    return np.sort(order[num_held:]), np.sort(order[:num_held])


class Features:
    """Features of views: maps [V, C, h, w], or vectors [V, C] if `grid` is None.

    Indexing the first axis, as in a tensor, reads float32 tensors on the CPU; nothing else is held in memory. cls: the
    first token of a view is its class token, concatenated to every cell. mean, scale: per channel, see `standardised`.
    """

    def __init__(
        self,
        source: FeatureSource,
        grid: tuple[int, int] | None,
        cls: bool,
        mean_C: torch.Tensor,
        scale_C: torch.Tensor,
        index: np.ndarray | None = None,
    ):
        self._source, self._grid, self._cls, self._mean, self._scale = source, grid, cls, mean_C, scale_C
        self._index = np.arange(source.shape[0]) if index is None else index
        self.shape = (len(self._index), len(mean_C), *(grid or ()))
        self.computed = source.computed

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: slice | np.ndarray | torch.Tensor) -> torch.Tensor:
        tokens_BTC = self._source.read(self._index[index.numpy() if isinstance(index, torch.Tensor) else index])
        if self._cls:
            tokens_BTC = torch.cat([tokens_BTC[:, 1:], tokens_BTC[:, :1].expand_as(tokens_BTC[:, 1:])], 2)
        values_BCT = ((tokens_BTC - self._mean) * self._scale).transpose(1, 2)
        return values_BCT.unflatten(2, self._grid).contiguous() if self._grid else values_BCT[..., 0]

    def take(self, index: np.ndarray) -> Self:
        """The views `index`."""
        return type(self)(self._source, self._grid, self._cls, self._mean, self._scale, self._index[index])

    def in_memory(self) -> torch.Tensor:
        """All of them in one tensor, without a second copy at any time."""
        out = torch.empty(self.shape)
        for chunk in chunks(self.shape):
            out[chunk] = self[chunk]
        return out


class TensorSubset:
    """Some of the views of a tensor, copied a batch at a time."""

    def __init__(self, values: torch.Tensor, index: np.ndarray):
        self._values, self._index = values, index
        self.shape = (len(index), *values.shape[1:])

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: slice | np.ndarray | torch.Tensor) -> torch.Tensor:
        return self._values[self._index[index.numpy() if isinstance(index, torch.Tensor) else index]]


def take(features: Features | torch.Tensor, index: np.ndarray) -> Features | TensorSubset:
    """The views `index`."""
    return features.take(index) if isinstance(features, Features) else TensorSubset(features, index)


def chunks(shape: Sequence[int]) -> Iterator[slice]:
    """Slices of the views; each takes at most `CHUNK_BYTES` in float64."""
    views = min(256, max(1, CHUNK_BYTES // (8 * math.prod(shape[1:]))))
    return (slice(start, min(start + views, shape[0])) for start in range(0, shape[0], views))


def statistics(source: FeatureSource, cls: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and inverse standard deviation of the channels over all views and cells, float32 [C] each.
    With cls, those of the patch tokens, then of the class token. 0 for constant channels, so that they become zero."""

    def read() -> Iterator[list[torch.Tensor]]:
        for chunk in chunks(source.shape):
            tokens_BTC = source.read(np.arange(chunk.start, chunk.stop)).double()
            yield [tokens_BTC[:, 1:], tokens_BTC[:, :1]] if cls else [tokens_BTC]

    def means(transform: Callable[[torch.Tensor, int], torch.Tensor]) -> list[torch.Tensor]:
        sums: list[Any] = [0, 0]
        counts = [0, 0]
        for parts in read():
            for kind, part in enumerate(parts):
                sums[kind] += transform(part, kind).sum((0, 1))
                counts[kind] += part.shape[0] * part.shape[1]
        return [total / count for total, count in zip(sums, counts, strict=True) if count]

    mean = means(lambda part, kind: part)
    variance = torch.cat(means(lambda part, kind: (part - mean[kind]).square()))
    scale = torch.where(variance > 1e-12, variance.rsqrt(), torch.zeros_like(variance))
    return torch.cat(mean).float(), scale.float()


def standardised(
    sources: Sequence[FeatureSource],
    grid: tuple[int, int] | None,
    cls: bool = False,
    standardise: bool = True,
    memory_bytes: float = float("inf"),
) -> list[Features | torch.Tensor]:
    """Features of the parts of a benchmark, the training split first; tensors if they fit in memory.
    standardise: channels get zero mean and unit variance over the training split, as by batch norm."""
    if standardise:
        mean, scale = statistics(sources[0], cls)
    else:
        channels = sources[0].shape[2] * (1 + cls)
        mean, scale = torch.zeros(channels), torch.ones(channels)
    parts = [Features(source, grid, cls, mean, scale) for source in sources]
    fits = 4 * sum(math.prod(part.shape) for part in parts) <= memory_bytes
    return [part.in_memory() for part in parts] if fits else parts


def resample_nearest(array: np.ndarray, size: int) -> np.ndarray:
    """[H, W, ...] at the centres of a size x size grid."""
    rows, columns = (((np.arange(size) + 0.5) * side / size).astype(int) for side in array.shape[:2])
    return array[rows][:, columns]
