"""Standardised features of views as heads read them, a batch at a time."""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import numpy as np
import torch

from cliptex.evaluation.probes.feature_cache import FeatureSource, Loaded, StoredFeatures
from cliptex.evaluation.protocols.base import DenseTask, ProbeSection
from cliptex.models.encoders import Encoder

AHEAD = 2
"""Batches that are read in the background while a head computes."""
BLOCK = 2**20
"""Values that are converted at a time on a CPU, so that they stay in its cache."""
CHUNK_BYTES = 2**28
Index = slice | np.ndarray | torch.Tensor
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
        self.index = np.arange(source.shape[0]) if index is None else index
        self.shape = (len(self.index), len(mean_C), *(grid or ()))
        self.computed = source.computed

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: Index) -> torch.Tensor:
        return self.standardised(self.load(index))

    def load(self, index: Index, pinned: bool = False) -> Loaded:
        """Views as stored, on the CPU. pinned: in memory from which a GPU copies without waiting."""
        loaded = self._source.load(self.index[index.numpy() if isinstance(index, torch.Tensor) else index])
        return tuple(part.pin_memory() if pinned and part is not None else part for part in loaded)

    def standardised(self, loaded: Loaded, device: torch.device | str = "cpu") -> torch.Tensor:
        """float32 on the device; they are transferred as stored and converted there."""
        tokens_BTC, scales_BC = (None if part is None else part.to(device, non_blocking=True) for part in loaded)
        mean, scale = self._mean.to(device)[:, None], self._scale.to(device)[:, None]
        count, tokens, channels = tokens_BTC.shape
        if tokens_BTC.requires_grad or tokens_BTC.device.type != "cpu":
            step = max(1, count)
        else:
            step = max(1, BLOCK // (tokens * channels))
        values_BCT = torch.empty(count, len(mean), tokens - self._cls, device=device)
        for start in range(0, count, step):
            part, out = slice(start, start + step), values_BCT[start : start + step]
            stored_BCT = tokens_BTC[part].transpose(1, 2).contiguous()
            out[:, :channels] = stored_BCT[..., int(self._cls) :]
            if self._cls:
                out[:, channels:] = stored_BCT[..., :1]
            if scales_BC is not None:
                out *= scales_BC[part].repeat(1, 1 + self._cls)[..., None]
            out -= mean
            out *= scale
        return values_BCT.unflatten(2, self._grid) if self._grid else values_BCT[..., 0]

    def take(self, index: np.ndarray) -> Self:
        """The views `index`."""
        return type(self)(self._source, self._grid, self._cls, self._mean, self._scale, self.index[index])

    def stored_in_memory(self) -> Self:
        """The same with what is stored held in memory; only of features that are stored."""
        return type(self)(self._source.in_memory(), self._grid, self._cls, self._mean, self._scale, self.index)

    def in_memory(self) -> torch.Tensor:
        """All of them in one tensor, without a second copy at any time."""
        out = torch.empty(self.shape)
        for chunk in chunks(self.shape):
            out[chunk] = self[chunk]
        return out


class TensorSubset:
    """Some of the views of a tensor, copied a batch at a time."""

    def __init__(self, values: torch.Tensor, index: np.ndarray):
        self._values, self.index = values, index
        self.shape = (len(index), *values.shape[1:])

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: Index) -> torch.Tensor:
        return self._values[self.index[index.numpy() if isinstance(index, torch.Tensor) else index]]


def take(features: Features | torch.Tensor, index: np.ndarray) -> Features | TensorSubset:
    """The views `index`."""
    return features.take(index) if isinstance(features, Features) else TensorSubset(features, index)


def batches_on(
    features: Features | TensorSubset | torch.Tensor, batches: Iterable[Index], device: torch.device | str
) -> Iterator[torch.Tensor]:
    """Features of each batch in turn, float32 on the device. Stored ones are read ahead in a thread."""
    if not isinstance(features, Features) or features.computed:
        yield from (features[batch].to(device) for batch in batches)
        return
    pinned, waiting = torch.device(device).type == "cuda", deque()
    with ThreadPoolExecutor(1) as reader:
        for batch in batches:
            waiting.append(reader.submit(features.load, batch, pinned))
            if len(waiting) > AHEAD:
                yield features.standardised(waiting.popleft().result(), device)
        while waiting:
            yield features.standardised(waiting.popleft().result(), device)


def free_bytes(device: torch.device) -> int:
    """Free memory of a GPU; 0 for a CPU, whose share `standardised` has used."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


def held_on(
    features: Features | TensorSubset | torch.Tensor, device: torch.device
) -> Features | TensorSubset | torch.Tensor:
    """The features, for a solver that reads them a hundred times: float32 on the device if they take at most half of
    its free memory, otherwise as they are. Features that an encoder computes are held in the CPU's memory."""
    if not isinstance(features, Features):
        return features.to(device) if isinstance(features, torch.Tensor) else features
    if features.computed:
        return features[:]
    if 4 * math.prod(features.shape) > free_bytes(device) / 2:
        return features
    out, parts = torch.empty(features.shape, device=device), list(chunks(features.shape))
    for part, values in zip(parts, batches_on(features, parts, device), strict=True):
        out[part] = values
    return out


def views_of(features: Features | TensorSubset | torch.Tensor) -> np.ndarray:
    """Indices of the views in their part of the benchmark."""
    return np.arange(len(features)) if isinstance(features, torch.Tensor) else features.index


def ranges(count: int, size: int) -> list[slice]:
    """Slices of `size` that cover `count` items."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


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


def unstandardised(sources: Sequence[FeatureSource], grid: tuple[int, int] | None, cls: bool = False) -> list[Features]:
    """Features of the parts of a benchmark as the encoder computed them, read from their source every time."""
    channels = sources[0].shape[2] * (1 + cls)
    return [Features(source, grid, cls, torch.zeros(channels), torch.ones(channels)) for source in sources]


def standardised(
    sources: Sequence[FeatureSource],
    grid: tuple[int, int] | None,
    cls: bool = False,
    standardise: bool = True,
    memory_bytes: float = float("inf"),
) -> list[Features | torch.Tensor]:
    """Features of the parts of a benchmark, the training split first; tensors if they fit in memory as float32. If only
    their stored form fits, it is held there and converted when it is read; else files are read every time.
    standardise: channels get zero mean and unit variance over the training split, as by batch norm."""
    parts = unstandardised(sources, grid, cls)
    if standardise:
        mean, scale = statistics(sources[0], cls)
        parts = [Features(source, grid, cls, mean, scale) for source in sources]
    fits = 4 * sum(math.prod(part.shape) for part in parts) <= memory_bytes
    if fits:
        return [part.in_memory() for part in parts]
    stored = [source for source in sources if isinstance(source, StoredFeatures)]
    if len(stored) == len(parts) and sum(source.num_bytes for source in stored) <= memory_bytes:
        return [part.stored_in_memory() for part in parts]
    return parts


def standardised_parts(
    section: ProbeSection, encoder: Encoder, sources: Sequence[FeatureSource], memory_bytes: float
) -> list[Features | torch.Tensor]:
    """Features of both parts as the section's heads read them; see `standardised`."""
    return standardised(sources, *_layout(section, encoder), section.features.standardise, memory_bytes)


def unstandardised_parts(
    section: ProbeSection, encoder: Encoder, sources: Sequence[FeatureSource]
) -> tuple[Features, Features]:
    """Features of both parts as the encoder computes them; nothing is held in memory."""
    return tuple(unstandardised(sources, *_layout(section, encoder)))


def _layout(section: ProbeSection, encoder: Encoder) -> tuple[tuple[int, int] | None, bool]:
    """Grid of a view's features, None for one vector, and whether the class token is next to every cell."""
    if not isinstance(section, DenseTask):
        return None, False
    return encoder.map_shape(encoder.input_size(section.input.size_px))[1:], section.features.cls


def resample_nearest(array: np.ndarray, size: int) -> np.ndarray:
    """[H, W, ...] at the centres of a size x size grid."""
    rows, columns = (((np.arange(size) + 0.5) * side / size).astype(int) for side in array.shape[:2])
    return array[rows][:, columns]
