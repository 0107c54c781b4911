"""Samples and their labels by id, read where they are decoded: training's main process only draws ids."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cliptex.data.sample_reader import SampleLocation, ShardOffsets
from cliptex.data.shard_index import num_usable
from cliptex.labels.payloads import EncodedLabel, StoredPayloads
from cliptex.tasks.base import Task


class StoredSamples:
    """Samples numbered over all shards, and their labels. Sent to another process, it opens files there.

    entries: shards of the shard index. stores: label store -> (task, its index.json). shards: number of shards that are
    read at a time. read_ahead: read a shard's files as a whole, in order, since most of its samples are needed. part:
    rank and number of processes, of which each compares a part of the label files with their digests, once; None: none.
    """

    def __init__(
        self,
        entries: Sequence[dict[str, Any]],
        stores: dict[str, tuple[Task, Path]],
        shards: int,
        read_ahead: bool,
        part: tuple[int, int] | None,
    ):
        self._arguments = entries, stores, shards, read_ahead, part
        self.entries, self._read_ahead, self._part = entries, read_ahead, part
        self._compared: set[int] = set()
        self.tasks = {store: task for store, (task, _) in stores.items()}
        self.sizes = np.array(num_usable(entries), np.int64)
        """Number of samples of each shard."""
        self.starts = np.concatenate([[0], np.cumsum(self.sizes)])
        """Id of the first sample of each shard, and the number of all."""
        kept = 2 * shards  # of a window and the next one
        self._shard = lru_cache(maxsize=kept)(self._open_shard)
        self.labels = {store: StoredPayloads(index, entries, task, kept) for store, (task, index) in stores.items()}

    def __reduce__(self) -> tuple[Any, ...]:
        return StoredSamples, self._arguments

    def shards_of(self, ids: np.ndarray) -> np.ndarray:
        """The shards of samples, int64 [N]."""
        return np.searchsorted(self.starts, ids, side="right") - 1

    def location(self, sample_id: int) -> SampleLocation:
        """Where image and caption of a sample are."""
        shard, row = self._place(sample_id)
        return self._shard(shard).at(row)

    def key(self, sample_id: int) -> str:
        """The key of a sample."""
        shard, row = self._place(sample_id)
        return self._shard(shard).key(row)

    def label(self, store: str, sample_id: int) -> EncodedLabel:
        """The encoded label of a sample."""
        return self.labels[store].get(*self._place(sample_id))

    def _place(self, sample_id: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self.starts, sample_id, side="right")) - 1
        return shard, sample_id - int(self.starts[shard])

    def _open_shard(self, shard: int) -> ShardOffsets:
        offsets = ShardOffsets(self.entries[shard])
        if self._is_own(shard) and shard not in self._compared:
            for payloads in self.labels.values():
                payloads.check_digest(shard)
            self._compared.add(shard)
        if self._read_ahead:
            offsets.read_ahead()
            for payloads in self.labels.values():
                payloads.read_ahead(shard)
        return offsets

    def _is_own(self, shard: int) -> bool:
        """Whether this process compares the shard's label files; of those that decode for a rank, one does."""
        if self._part is None:
            return False
        rank, processes = self._part
        worker = torch.utils.data.get_worker_info()
        own = 0 if worker is None else worker.id
        return shard % processes == rank and shard // processes % (1 if worker is None else worker.num_workers) == own
