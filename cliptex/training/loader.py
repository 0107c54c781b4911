"""Joint loading of image, caption and pseudo-labels of one key, cropped and flipped together.

Reads   results/shards/index.json, the shards, and the indexed label stores.
Holds   a sample depends only on (seed, epoch, key), the order of keys only on (seed, epoch), the size of a step only on
        (seed, step). So two models with the same seed see the same batches, a restarted run continues with the same
        batches, and the number of processes or workers changes nothing.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from functools import lru_cache
from hashlib import sha256
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cliptex.config import Train
from cliptex.core.errors import CliptexError
from cliptex.data.samples_file import StoredKeys
from cliptex.data.shard_index import ShardOffsets, check_indexed, num_usable, read_index
from cliptex.labels.store import LabelFile, open_store
from cliptex.tasks.base import Task
from cliptex.training.batch import Batch, EncodedSample, Failure, SampleDecoder, Step, start_worker
from cliptex.training.windows import EpochOrder, LoadedWindow, Segment, load_ahead

BATCH_UNIT = 64
"""Batch sizes at other crop sizes are multiples of gcd(`batch_size`, this)."""


CHECKED_AT_START = 64
"""Shards whose first sample and labels a process checks before training; it checks the others when it loads them."""
OPEN_LABEL_FILES = 4096
"""Label files of which a process keeps path, metadata and digest."""


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
        read = read_index(index)
        self.entries = read["shards"]
        self._stores = stores
        self.tasks = {store: task for store, (task, _) in stores.items()}
        self.train, self.image_size, self.seed, self.shuffle_labels = train, image_size, seed, shuffle_labels
        self.rank, self.processes, self.workers = rank, processes, workers
        self._decoder = SampleDecoder(train, seed, self.tasks, tokenizer)
        self._label_file = lru_cache(maxsize=OPEN_LABEL_FILES)(self._open_label_file)
        self._walked: dict[int, ShardOffsets] = {}
        self._check_shards()
        self._sizes = np.array(num_usable(self.entries), np.int64)
        self._offsets = np.concatenate([[0], np.cumsum(self._sizes)])
        self.held_out = self._held_out_ids(train.held_out, read.get("held_out_order", ()))
        self._train_sizes = self._sizes - np.bincount(self._shards_of(self.held_out), minlength=len(self._sizes))
        self.num_samples = int(self._train_sizes.sum())
        self._check_batch_sizes(index)

    def _check_shards(self) -> None:
        """Compare this process' part of the shards with the index: sizes, and of some what `_load` compares of all."""
        own = range(self.rank, len(self.entries), self.processes)
        for number in own:
            entry = self.entries[number]
            if not (path := Path(entry["path"])).exists() or path.stat().st_size != entry["bytes"]:
                check_indexed(entry)
        for place in np.unique(np.linspace(0, len(own) - 1, min(len(own), CHECKED_AT_START)).round().astype(int)):
            check_indexed(self.entries[own[place]])
            for store in self._stores:
                self._label_file(own[place], store)

    def _open_label_file(self, number: int, store: str) -> LabelFile:
        """The labels of a shard. Keys and digest are compared by one process of all."""
        task, path = self._stores[store]
        return open_store(path, self.entries[number], task, trusted=number % self.processes != self.rank)

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

    def _held_out_ids(self, count: int, order: Sequence[int]) -> np.ndarray:
        """Ids of the samples excluded from training: those with the smallest key digests, for every seed the same.
        order: the first of them, as the index lists them."""
        if count > len(order):
            keys = (key for entry in self.entries for key in entry["keys"])
            digests = np.array([int.from_bytes(sha256(key.encode()).digest()[:8], "big") for key in keys], np.uint64)
            order = np.argsort(digests, kind="stable")
        return np.sort(np.array(order[:count], np.int64))

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

    def held_out_batches(self, rows: int, rank: int = 0, processes: int = 1) -> Iterator[Batch]:
        """The held-out samples, neither cropped nor flipped, at most `rows` at a time; every `processes`-th batch."""
        decoder = SampleDecoder(self.train, self.seed, self.tasks, augment=False)
        step = Step(0, 0, rows, self.image_size, False)
        for start in range(rank * rows, len(self.held_out), processes * rows):
            yield decoder[self._samples_of(self.held_out[start : start + rows]), step]

    def _samples_of(self, sample_ids: np.ndarray) -> list[EncodedSample]:
        """The encoded samples with these ids, which are in ascending order, with their own labels."""
        return self._load([], sample_ids, sample_ids).encoded(0, len(sample_ids))

    def samples_seen(self, steps: int) -> tuple[int, int]:
        """Images seen by all processes in the first `steps` steps, and how many of them are distinct."""
        schedule = itertools.groupby(itertools.islice(self.steps(), steps), key=lambda step: step.epoch)
        rows = {epoch: sum(step.rows for step in epoch_steps) for epoch, epoch_steps in schedule}
        if len(rows) < 2:
            return sum(rows.values()), sum(rows.values())
        full = max(rows, key=rows.__getitem__)  # of which the fewest samples are left, as ids in memory
        order = self._order(full)
        left = (order.draw(window)[0] for window in range(order.window_at(rows[full]), len(order.windows)))
        cut = rows[full] - order.bounds(order.window_at(rows[full]))[0] if rows[full] < self.num_samples else 0
        unseen = np.concatenate([*left, np.empty(0, np.int64)])[cut:]
        for epoch in rows.keys() - {full}:
            order = self._order(epoch)
            for window in range(order.window_at(rows[epoch] - 1) + 1) if len(unseen) else ():
                start = order.bounds(window)[0]
                unseen = np.setdiff1d(unseen, order.draw(window)[0][: rows[epoch] - start], assume_unique=True)
        return sum(rows.values()), self.num_samples - len(unseen)

    def _order(self, epoch: int) -> EpochOrder:
        return EpochOrder(self.train, self.seed, epoch, self._train_sizes, self._training_ids)

    def _training_ids(self, shard: int) -> np.ndarray:
        """The ids of a shard's samples in training."""
        first, end = self._offsets[shard], self._offsets[shard + 1]
        held = self.held_out[slice(*np.searchsorted(self.held_out, (first, end)))]
        return np.delete(np.arange(first, end), held - first)

    def _segments(
        self, steps: Iterable[Step], rank: int, processes: int
    ) -> Iterator[tuple[tuple[EpochOrder, int], Segment]]:
        """The order of the epoch, the window, and the segment, for each part of a step that is in one window."""
        order, epoch = None, None
        for step in steps:
            if step.epoch != epoch:
                order, epoch = self._order(step.epoch), step.epoch
            share = step.rows // processes
            at = step.start + rank * share
            end = at + share
            while at < end:
                window = order.window_at(at)
                until = min(end, order.ends[window])
                yield (order, window), Segment(step, at, until, until == end)
                at = until

    def _samples(
        self, steps: Iterable[Step], rank: int = 0, processes: int = 1
    ) -> Iterator[tuple[list[EncodedSample], Step]]:
        """The part of each step that process `rank` of `processes` decodes. While the samples of a window are drawn,
        a thread loads the next one."""
        grouped = itertools.groupby(self._segments(steps, rank, processes), key=itemgetter(0))
        windows = ((order, window, [segment for _, segment in group]) for (order, window), group in grouped)
        samples: list[EncodedSample] = []
        with closing(load_ahead(self._load_window, windows)) as loaded:
            for window in loaded:
                row = 0
                for segment in window.segments:
                    count = segment.end - segment.start
                    samples += window.encoded(row, row + count)
                    row += count
                    if segment.ends_step:
                        yield samples, segment.step
                        samples = []

    def _load_window(self, order: EpochOrder, window: int, segments: list[Segment]) -> LoadedWindow:
        sample_ids, label_ids = order.draw(window, self.shuffle_labels)
        first = order.bounds(window)[0]
        rows = np.concatenate([np.arange(segment.start - first, segment.end - first) for segment in segments])
        return self._load(segments, sample_ids[rows], label_ids[rows])

    def _load(self, segments: list[Segment], sample_ids: np.ndarray, label_ids: np.ndarray) -> LoadedWindow:
        """Load locations and labels of some samples."""
        samples, label_samples = (self._shards_and_rows(ids) for ids in (sample_ids, label_ids))
        locations, keys, labels = {}, {}, {}
        for number in np.unique(np.concatenate([samples[:, 0], label_samples[:, 0]])).tolist():
            entry = self.entries[number]
            keys[number] = list(entry["keys"])
            if (samples[:, 0] == number).any():
                locations[number] = self._located(number, entry)
                locations[number].prefetch()
            rows = label_samples[label_samples[:, 0] == number, 1]
            labels[number] = {store: self._label_file(number, store).get_many(rows) for store in self._stores}
        return LoadedWindow(segments, samples, label_samples, locations, keys, labels)

    def _located(self, number: int, entry: dict[str, Any]) -> ShardOffsets:
        if isinstance(entry["keys"], StoredKeys):
            return ShardOffsets(entry)
        if number not in self._walked:  # an earlier version's index: headers are read once
            self._walked[number] = ShardOffsets(entry)
        return self._walked[number]

    def _shards_of(self, ids: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._offsets, ids, side="right") - 1

    def _shards_and_rows(self, ids: np.ndarray) -> np.ndarray:
        shards = self._shards_of(ids)
        return np.stack([shards, ids - self._offsets[shards]], axis=1)


def _without_failure(batch: Batch | Failure) -> Batch:
    if isinstance(batch, Failure):
        raise batch.raised()
    return batch
