"""What the probes share: a benchmark's images decoded once, an encoder's features computed once, seeds, schedules."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

import numpy as np
import torch

from cliptex.evaluation.probes.feature_cache import Rows

CHUNK_BYTES = 2**28


def split_holdout(count: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the training images for fitting and of those held out, drawn from `seed`, each sorted."""
    order = np.random.default_rng(seed).permutation(count)
    held = min(max(1, round(share * count)), count - 1)
    return np.sort(order[held:]), np.sort(order[:held])


class Features:
    """Features of views, given out a batch at a time: maps [V, C, h, w], or vectors [V, C] where `grid` is None.

    Indexing like a tensor's first axis gives float32 tensors on the CPU; nothing else is held in memory. cls: the first
    token of a view is its class token, concatenated to every cell. mean, scale: of the channels, see `standardised`.
    """

    def __init__(
        self,
        rows: Rows,
        grid: tuple[int, int] | None,
        cls: bool,
        mean_C: torch.Tensor,
        scale_C: torch.Tensor,
        index: np.ndarray | None = None,
    ):
        self._rows, self._grid, self._cls, self._mean, self._scale = rows, grid, cls, mean_C, scale_C
        self._index = np.arange(rows.shape[0]) if index is None else index
        self.shape = (len(self._index), len(mean_C), *(grid or ()))
        self.computed = rows.computed

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: slice | np.ndarray | torch.Tensor) -> torch.Tensor:
        tokens_BTC = self._rows.read(self._index[index.numpy() if isinstance(index, torch.Tensor) else index])
        if self._cls:
            tokens_BTC = torch.cat([tokens_BTC[:, 1:], tokens_BTC[:, :1].expand_as(tokens_BTC[:, 1:])], 2)
        values_BCT = ((tokens_BTC - self._mean) * self._scale).transpose(1, 2)
        return values_BCT.unflatten(2, self._grid).contiguous() if self._grid else values_BCT[..., 0]

    def take(self, index: np.ndarray) -> Self:
        """Only some of the views."""
        return type(self)(self._rows, self._grid, self._cls, self._mean, self._scale, self._index[index])


class Taken:
    """Some of the views of a tensor, which are copied a batch at a time."""

    def __init__(self, values: torch.Tensor, index: np.ndarray):
        self._values, self._index = values, index
        self.shape = (len(index), *values.shape[1:])

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: slice | np.ndarray | torch.Tensor) -> torch.Tensor:
        return self._values[self._index[index.numpy() if isinstance(index, torch.Tensor) else index]]


def take(features: Features | torch.Tensor, index: np.ndarray) -> Features | Taken:
    """Only some of the views."""
    return features.take(index) if isinstance(features, Features) else Taken(features, index)


def chunks(shape: Sequence[int]) -> Iterator[slice]:
    """Views a few at a time, so many that in float64 they take no more than `CHUNK_BYTES`."""
    views = min(256, max(1, CHUNK_BYTES // (8 * math.prod(shape[1:]))))
    return (slice(start, min(start + views, shape[0])) for start in range(0, shape[0], views))


def statistics(rows: Rows, cls: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and inverse standard deviation of the channels over all views and cells, float32 [C] each.

    With cls first those of the patch tokens, then those of the class token. A channel that does not vary has the
    inverse deviation 0, so that it becomes zero.
    """

    def read() -> Iterator[list[torch.Tensor]]:
        for some in chunks(rows.shape):
            tokens_BTC = rows.read(np.arange(some.start, some.stop)).double()
            yield [tokens_BTC[:, 1:], tokens_BTC[:, :1]] if cls else [tokens_BTC]

    def means(of: Callable[[torch.Tensor, int], torch.Tensor]) -> list[torch.Tensor]:
        sums: list[Any] = [0, 0]
        counts = [0, 0]
        for parts in read():
            for kind, part in enumerate(parts):
                sums[kind] += of(part, kind).sum((0, 1))
                counts[kind] += part.shape[0] * part.shape[1]
        return [total / count for total, count in zip(sums, counts, strict=True) if count]

    mean = means(lambda part, kind: part)
    variance = torch.cat(means(lambda part, kind: (part - mean[kind]).square()))
    scale = torch.where(variance > 1e-12, variance.rsqrt(), torch.zeros_like(variance))
    return torch.cat(mean).float(), scale.float()


def standardised(
    rows: Sequence[Rows],
    grid: tuple[int, int] | None,
    cls: bool = False,
    standardise: bool = True,
    memory_bytes: float = float("inf"),
) -> list[Features | torch.Tensor]:
    """Features of the parts of a benchmark, of which the first is the training split: tensors where they fit in memory.

    standardise: channels get zero mean and unit variance over the training split, as BatchNorm gives.
    """
    mean, scale = statistics(rows[0], cls) if standardise else _unchanged(rows[0].shape[2] * (1 + cls))
    parts = [Features(one, grid, cls, mean, scale) for one in rows]
    if 4 * sum(math.prod(part.shape) for part in parts) > memory_bytes:
        return parts
    return [_in_memory(part) for part in parts]


def _in_memory(features: Features) -> torch.Tensor:
    """All of them, without a second copy at any time."""
    out = torch.empty(features.shape)
    for some in chunks(features.shape):
        out[some] = features[some]
    return out


def _unchanged(channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(channels), torch.ones(channels)


def resample_nearest(array: np.ndarray, size: int) -> np.ndarray:
    """[H, W, ...] at the centres of a size x size grid."""
    rows, columns = (((np.arange(size) + 0.5) * side / size).astype(int) for side in array.shape[:2])
    return array[rows][:, columns]
