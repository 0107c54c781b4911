"""Joint loading of image, caption and pseudo-labels of one key, cropped and flipped together.

Reads   results/shards/index.json, the shards, and the indexed label stores.
Holds   a sample depends only on (seed, epoch, key), the order of keys only on (seed, epoch), the size of a step only on
        (seed, step). So two models with the same seed see the same batches, a restarted run continues with the same
        batches, and the number of processes or workers changes nothing.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch

from cliptex.config import Train
from cliptex.core.errors import CliptexError
from cliptex.data.sample_reader import check_indexed
from cliptex.data.shard_index import read_index
from cliptex.tasks.base import Task
from cliptex.training.batch import Batch, Drawn, Failure, SampleDecoder, Step, start_worker
from cliptex.training.stored import StoredSamples
from cliptex.training.windows import EpochOrder

BATCH_UNIT = 64
"""Batch sizes at other crop sizes are multiples of gcd(`batch_size`, this)."""
CHECKED_AT_START = 64
"""Shards whose first sample and labels a process checks before training."""
READ_AHEAD_PROCESSES = 4
"""Of more processes, each needs so few samples of a shard that files are not read as a whole."""


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
        self.train, self.image_size, self.seed, self.shuffle_labels = train, image_size, seed, shuffle_labels
        self.rank, self.processes, self.workers = rank, processes, workers
        read_ahead, part = processes <= READ_AHEAD_PROCESSES, (rank, processes)
        self._stored = StoredSamples(read["shards"], stores, train.shuffle_shards, read_ahead, part)
        # few samples of many shards, whose files are not read as a whole
        self._held_out_stored = StoredSamples(read["shards"], stores, train.shuffle_shards, False, None)
        self._decoder = SampleDecoder(train, seed, self._stored, tokenizer)
        self._check_shards()
        self.held_out = self._held_out_ids(train.held_out, read.get("held_out_order", ()))
        held_out_by_shard = np.bincount(self._stored.shards_of(self.held_out), minlength=len(self._stored.sizes))
        self._train_sizes = self._stored.sizes - held_out_by_shard
        self.num_samples = int(self._train_sizes.sum())
        self._check_batch_sizes(index)

    def _check_shards(self) -> None:
        """Compare this process' part of the shards with the index: sizes, and of some the first sample and the keys of
        labels. What is read later is compared by checksums."""
        entries = self._stored.entries
        own = range(self.rank, len(entries), self.processes)
        for number in own:
            entry = entries[number]
            if not (path := Path(entry["path"])).exists() or path.stat().st_size != entry["bytes"]:
                check_indexed(entry)
        for place in np.unique(np.linspace(0, len(own) - 1, min(len(own), CHECKED_AT_START)).round().astype(int)):
            check_indexed(entries[own[place]])
            for payloads in self._stored.labels.values():
                payloads.check(own[place])

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
            keys = (key for entry in self._stored.entries for key in entry["keys"])
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
        drawn = self._drawn(self.steps(start), self.rank, self.processes)
        if not self.workers:
            return map(self._decoder.__getitem__, drawn)
        loaded = torch.utils.data.DataLoader(
            self._decoder,
            batch_size=None,
            sampler=drawn,
            num_workers=self.workers,
            pin_memory=torch.cuda.is_available(),
            multiprocessing_context="forkserver",  # forking is unsafe in a process that uses CUDA or threads
            worker_init_fn=start_worker,
        )
        return map(_without_failure, loaded)

    def label_batches(self, count: int) -> Iterator[dict[str, np.ndarray]]:
        """The targets of the first `count` batches, of all processes, without decoding images."""
        return map(self._decoder.targets, self._drawn(itertools.islice(self.steps(), count)))

    def held_out_batches(self, rows: int, rank: int = 0, processes: int = 1) -> Iterator[Batch]:
        """The held-out samples, neither cropped nor flipped, at most `rows` at a time; every `processes`-th batch."""
        decoder = SampleDecoder(self.train, self.seed, self._held_out_stored, augment=False)
        step = Step(0, 0, rows, self.image_size, False)
        for start in range(rank * rows, len(self.held_out), processes * rows):
            ids = self.held_out[start : start + rows]
            yield decoder[Drawn(ids, ids, step)]

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
        first, end = self._stored.starts[shard : shard + 2]
        held = self.held_out[slice(*np.searchsorted(self.held_out, (first, end)))]
        return np.delete(np.arange(first, end), held - first)

    def _drawn(self, steps: Iterable[Step], rank: int = 0, processes: int = 1) -> Iterator[Drawn]:
        """The part of each step that process `rank` of `processes` decodes."""
        order, epoch, window = None, None, None
        ids: tuple[np.ndarray, np.ndarray] | None = None
        for step in steps:
            if step.epoch != epoch:
                order, epoch, window = self._order(step.epoch), step.epoch, None
            share = step.rows // processes
            at = step.start + rank * share
            end, parts = at + share, []
            while at < end:
                if window != (window := order.window_at(at)):
                    ids = order.draw(window, self.shuffle_labels)
                first, until = order.bounds(window)
                until = min(end, until)
                parts.append([each[at - first : until - first] for each in ids])
                at = until
            yield Drawn(*map(np.concatenate, zip(*parts, strict=True)), step)


def _without_failure(batch: Batch | Failure) -> Batch:
    if isinstance(batch, Failure):
        raise batch.raised()
    return batch
