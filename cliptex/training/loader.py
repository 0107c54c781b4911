"""Joint loading of image, caption and pseudo-labels of one key, cropped and flipped together.

Reads   results/shards/index.json, the shards, and the indexed label stores.
Holds   a sample depends only on (seed, epoch, key), the order of keys only on (seed, epoch), the size of a step only on
        (seed, step). So two models with the same seed see the same batches, a restarted run continues with the same
        batches, and the number of processes or workers changes nothing.
"""

import bisect
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from cliptex.config import Train
from cliptex.core.errors import CliptexError
from cliptex.data.shard_index import ShardOffsets, check_indexed, read_index
from cliptex.labels.store import LabelFile, open_store
from cliptex.tasks.base import Task
from cliptex.training.batch import Batch, EncodedLabel, EncodedSample, Failure, SampleDecoder, Step, start_worker

BATCH_UNIT = 64
"""Batch sizes at other crop sizes are multiples of gcd(`batch_size`, this)."""


class LoadedShard(NamedTuple):
    """The part of a shard that is in memory while its samples are drawn: all keys, and this process' labels by row."""

    keys: list[str]
    labels: dict[str, dict[int, EncodedLabel]]


@dataclass(frozen=True)
class EpochOrder:
    """The samples of an epoch in order, as ids (numbered over all shards), and the ids of the samples' labels.

    windows: the shards of each window. ends: position after the last sample of each window.
    """

    sample_ids: np.ndarray
    label_ids: np.ndarray
    windows: list[list[int]]
    ends: list[int]

    def bounds(self, window: int) -> tuple[int, int]:
        """The first position of a window, and the one after its last."""
        return self.ends[window - 1] if window else 0, self.ends[window]

    def windows_of(self, step: Step) -> range:
        """The windows that a step draws from."""
        first, last = (bisect.bisect_right(self.ends, at) for at in (step.start, step.start + step.rows - 1))
        return range(first, last + 1)


class JointLoader:
    """Endless batches of `train.batch_size` from the shard index and label stores.

    stores: label store -> (task, its index.json). shuffle_labels: give each image another image's labels (control).
    tokenizer: captions -> int64 [N, L]. rank, processes: of a distributed run; each process reads its own part of every
    batch. workers: number of decoding processes; 0 decodes in this one.
    Raises CliptexError if a shard is missing or differs from the index, if a label file is missing or does not match
    its shard, and if the batch size does not fit the data or the number of processes.
    """

    def __init__(
        self,
        index: Path,
        stores: dict[str, tuple[Task, Path]],
        train: Train,
        image_size: int,
        seed: int,
        shuffle_labels: bool = False,
        *,
        tokenizer: Callable[[list[str]], torch.Tensor] | None = None,
        rank: int = 0,
        processes: int = 1,
        workers: int = 0,
    ):
        self.entries = read_index(index)["shards"]
        self.tasks = {store: task for store, (task, _) in stores.items()}
        self._labels: list[dict[str, LabelFile]] = []
        for entry in self.entries:
            check_indexed(entry)
            self._labels.append({store: open_store(path, entry, task) for store, (task, path) in stores.items()})
        self.train, self.image_size, self.seed, self.shuffle_labels = train, image_size, seed, shuffle_labels
        self.rank, self.processes, self.workers = rank, processes, workers
        self._decoder = SampleDecoder(train, seed, self.tasks, tokenizer)
        self._offsets = [0, *itertools.accumulate(len(entry["keys"]) for entry in self.entries)]
        self.held_out = self._held_out_ids(train.held_out)
        in_training = np.ones(self._offsets[-1], bool)
        in_training[self.held_out] = False
        self._ids = [first + np.flatnonzero(in_training[first:end]) for first, end in itertools.pairwise(self._offsets)]
        self.num_samples = int(in_training.sum())
        self._check_batch_sizes(index)
        self._shard_offsets: dict[int, ShardOffsets] = {}
        self._order = lru_cache(maxsize=1)(self._draw_order)

    def _check_batch_sizes(self, index: Path) -> None:
        divisor = self.processes * self.train.accumulate
        for size in self.train.crop_sizes_px or (self.image_size,):
            rows = self._rows(size)
            if self.num_samples < rows:
                remaining = f" that remain after train.held_out = {self.train.held_out}" if self.train.held_out else ""
                raise CliptexError(
                    f"train.batch_size: {rows} is more than the {self.num_samples} samples of {index}{remaining};"
                    " choose a smaller batch size"
                )
            if rows % divisor:
                raise CliptexError(
                    f"train.batch_size: {rows} images at {size} px cannot be divided among {self.processes} processes"
                    f" with train.accumulate = {self.train.accumulate}; choose a multiple of {divisor}"
                )

    def _held_out_ids(self, count: int) -> np.ndarray:
        """Ids of the samples excluded from training: those with the smallest key digests, for every seed the same."""
        if not count:
            return np.empty(0, np.int64)
        keys = (key for entry in self.entries for key in entry["keys"])
        digests = np.array([int.from_bytes(sha256(key.encode()).digest()[:8], "big") for key in keys], np.uint64)
        return np.sort(np.argsort(digests, kind="stable")[:count])

    @property
    def steps_per_epoch(self) -> int:
        """Full batches per epoch at the encoder's own size; each epoch drops another remainder."""
        return self.num_samples // self.train.batch_size

    def _rows(self, size: int) -> int:
        """Batch size at a crop size: about as many patches as `batch_size` images at the encoder's own size."""
        if size == self.image_size:
            return self.train.batch_size
        unit = math.gcd(self.train.batch_size, BATCH_UNIT)
        rows = self.train.batch_size * (self.image_size / size) ** 2
        return max(1, round(rows / unit)) * unit

    def _size(self, number: int) -> int:
        sizes = self.train.crop_sizes_px
        return sizes[np.random.default_rng([self.seed, number, 1]).integers(len(sizes))] if sizes else self.image_size

    def steps(self, start: int = 0) -> Iterator[Step]:
        """The schedule from step `start` (counted from 0) on, without end."""
        epoch = position = 0
        size = self._size(0)
        for number in itertools.count():
            rows, next_size = self._rows(size), self._size(number + 1)
            ends_epoch = position + rows + self._rows(next_size) > self.num_samples
            if number >= start:
                yield Step(epoch, position, rows, size, ends_epoch)
            epoch, position = (epoch + 1, 0) if ends_epoch else (epoch, position + rows)
            size = next_size

    def batches(self, start: int) -> Iterator[Batch]:
        """This process' part of the batches from step `start` on, without end."""
        samples = self._samples(self.steps(start), self.rank, self.processes)
        if not self.workers:
            return (self._decoder[samples_and_step] for samples_and_step in samples)
        loaded = torch.utils.data.DataLoader(
            self._decoder,
            batch_size=None,
            sampler=samples,  # locations and labels come from this process: workers need not read labels again
            num_workers=self.workers,
            pin_memory=torch.cuda.is_available(),
            multiprocessing_context="forkserver",  # forking is unsafe in a process that uses CUDA or threads
            worker_init_fn=start_worker,
        )
        return map(_without_failure, loaded)

    def label_batches(self, count: int) -> Iterator[dict[str, np.ndarray]]:
        """The targets of the first `count` batches, of all processes, without decoding images."""
        for samples, step in self._samples(itertools.islice(self.steps(), count)):
            yield self._decoder.targets(samples, step.epoch)

    def held_out_batches(self, rows: int) -> Iterator[Batch]:
        """The held-out samples, neither cropped nor flipped, at most `rows` at a time."""
        decoder = SampleDecoder(self.train, self.seed, self.tasks, augment=False)
        step = Step(0, 0, rows, self.image_size, False)
        for start in range(0, len(self._held_out_samples), rows):
            yield decoder[self._held_out_samples[start : start + rows], step]

    @cached_property
    def _held_out_samples(self) -> list[EncodedSample]:
        shard_numbers, samples = self._shards_of(self.held_out), []
        for shard in np.unique(shard_numbers).tolist():
            ids = self.held_out[shard_numbers == shard].tolist()
            loaded = self._load_shards([shard], np.array(ids))
            samples += [self._encoded(sample, sample, loaded) for sample in ids]
        return samples

    def samples_seen(self, steps: int) -> tuple[int, int]:
        """Images seen by all processes in the first `steps` steps, and how many of them are distinct."""
        seen = np.zeros(self._offsets[-1], bool)
        total = 0
        schedule = itertools.islice(self.steps(), steps)
        for epoch, epoch_steps in itertools.groupby(schedule, key=lambda step: step.epoch):
            rows = sum(step.rows for step in epoch_steps)
            total += rows
            if seen.sum() < self.num_samples:
                seen[self._order(epoch).sample_ids[:rows]] = True
        return total, int(seen.sum())

    def _draw_order(self, epoch: int) -> EpochOrder:
        """Shuffle the shards, then the samples within windows of `shuffle_shards` shards."""
        rng = np.random.default_rng([self.seed, epoch])
        shuffled, count = rng.permutation(len(self.entries)).tolist(), self.train.shuffle_shards
        windows = [sorted(shuffled[start : start + count]) for start in range(0, len(shuffled), count)]
        parts = []
        for window in windows:
            ids = np.concatenate([self._ids[shard] for shard in window])
            labels = ids
            if self.shuffle_labels:
                # a random cycle, so that no image keeps its own labels
                cycle = np.random.default_rng([self.seed, len(ids)]).permutation(len(ids))
                labels = np.empty_like(ids)
                labels[cycle] = ids[np.roll(cycle, 1)]
            permutation = rng.permutation(len(ids))
            parts.append((ids[permutation], labels[permutation]))
        sample_ids, label_ids = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        return EpochOrder(sample_ids, label_ids, windows, np.cumsum([len(ids) for ids, _ in parts]).tolist())

    def _samples(
        self, steps: Iterable[Step], rank: int = 0, processes: int = 1
    ) -> Iterator[tuple[list[EncodedSample], Step]]:
        """The part of each step that process `rank` of `processes` decodes; holds the labels of one window or two."""
        for epoch, epoch_steps in itertools.groupby(steps, key=lambda step: step.epoch):
            order, parts = self._order(epoch), []
            for step in epoch_steps:
                share = step.rows // processes
                parts.append((step, slice(step.start + rank * share, step.start + (rank + 1) * share)))
            own_rows = np.concatenate([np.arange(rows.start, rows.stop) for _, rows in parts])
            loaded: dict[int, dict[int, LoadedShard]] = {}
            for step, rows in parts:
                needed = order.windows_of(step)
                for window in loaded.keys() - set(needed):
                    del loaded[window]
                for window in needed:
                    if window not in loaded:
                        rows_in_window = own_rows[slice(*np.searchsorted(own_rows, order.bounds(window)))]
                        loaded[window] = self._load_shards(order.windows[window], order.label_ids[rows_in_window])
                by_shard = {number: shard for window in loaded.values() for number, shard in window.items()}
                pairs = zip(order.sample_ids[rows].tolist(), order.label_ids[rows].tolist(), strict=True)
                yield [self._encoded(*pair, by_shard) for pair in pairs], step

    def _load_shards(self, numbers: Iterable[int], label_ids: np.ndarray) -> dict[int, LoadedShard]:
        """Load the keys of some shards, and the labels of the samples `label_ids`."""
        shard_numbers, loaded = self._shards_of(label_ids), {}
        for number in numbers:
            rows = label_ids[shard_numbers == number] - self._offsets[number]
            labels = {store: file.get_many(rows) for store, file in self._labels[number].items()}
            loaded[number] = LoadedShard(list(self.entries[number]["keys"]), labels)
            if number not in self._shard_offsets:
                self._shard_offsets[number] = ShardOffsets(self.entries[number])
            self._shard_offsets[number].prefetch()
        return loaded

    def _shards_of(self, ids: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._offsets, ids, side="right") - 1

    def _encoded(self, sample: int, label: int, loaded: dict[int, LoadedShard]) -> EncodedSample:
        """Sample id and id of its labels to the encoded sample."""
        shard, label_shard = (bisect.bisect_right(self._offsets, each) - 1 for each in (sample, label))
        row, label_row = sample - self._offsets[shard], label - self._offsets[label_shard]
        location = self._shard_offsets[shard].at(row, loaded[shard].keys[row])
        labels = {store: rows[label_row] for store, rows in loaded[label_shard].labels.items()}
        return EncodedSample(location, loaded[label_shard].keys[label_row], labels)


def _without_failure(batch: Batch | Failure) -> Batch:
    if isinstance(batch, Failure):
        raise batch.raised()
    return batch
