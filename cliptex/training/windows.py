"""The order of an epoch, drawn window by window."""

import bisect
from collections.abc import Callable

import numpy as np

from cliptex.config import Train


class EpochOrder:
    """The order of an epoch's samples, as ids (numbered over all shards): shards are shuffled, then the samples within
    windows of `shuffle_shards` shards. Windows are drawn one after the other from one generator, none is kept.

    sizes: samples in training of each shard. ids: shard -> ids of these. windows: the shards of each window. ends:
    position after the last sample of each window.
    """

    def __init__(self, train: Train, seed: int, epoch: int, sizes: np.ndarray, ids: Callable[[int], np.ndarray]):
        self._seed, self._epoch, self._ids = [seed, epoch], epoch, ids
        self._shards_per_window = train.shuffle_shards
        shuffled = self._restart(len(sizes))
        starts = range(0, len(shuffled), self._shards_per_window)
        self.windows = [sorted(shuffled[start : start + self._shards_per_window]) for start in starts]
        self.ends = np.cumsum([sizes[window].sum() for window in self.windows], dtype=np.int64).tolist()

    def _restart(self, num_shards: int) -> list[int]:
        self._rng, self._next = np.random.default_rng(self._seed), 0
        return self._rng.permutation(num_shards).tolist()

    def bounds(self, window: int) -> tuple[int, int]:
        """The first position of a window, and the one after its last."""
        return self.ends[window - 1] if window else 0, self.ends[window]

    def window_at(self, position: int) -> int:
        """The window that has a position."""
        return bisect.bisect_right(self.ends, position)

    def draw(self, window: int, shuffle_labels: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Ids of a window's samples in order, and of the samples whose labels they get. Steps through the draws of
        earlier windows."""
        if window < self._next:
            self._restart(sum(map(len, self.windows)))
        for earlier in range(self._next, window):
            start, end = self.bounds(earlier)
            self._rng.permutation(end - start)
        self._next = window + 1
        ids = np.concatenate([self._ids(shard) for shard in self.windows[window]])
        permutation = self._rng.permutation(len(ids))
        if not shuffle_labels:
            return (drawn := ids[permutation]), drawn
        # a random cycle, so that no image keeps its own labels
        cycle = np.random.default_rng([self._seed[0], len(ids)]).permutation(len(ids))
        labels = np.empty_like(ids)
        labels[cycle] = ids[np.roll(cycle, 1)]
        return ids[permutation], labels[permutation]
