"""Joint loading: image, caption and pseudo-labels of one key, cropped and flipped together.

Reads   results/shards/index.json, the shards, and the indexed label stores.
Holds   what a sample becomes is a function of (seed, epoch, key) alone; the order of keys of (seed, epoch) alone; the
        size of a step of (seed, step) alone. So two models with the same seed see the same batches, a restart continues
        where it was, and neither the number of processes nor that of workers changes anything.
"""

import bisect
import itertools
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType
from typing import Self

import numpy as np
import torch
from PIL import Image

from cliptex.config import Train
from cliptex.core.errors import CliptexError
from cliptex.data import shards
from cliptex.data.images import decode_image
from cliptex.labels.label import LabelFile, open_store
from cliptex.tasks.base import Task, View

WHOLE = View(0.0, 0.0, 1.0, 1.0, False)
COARSEST_UNIT = 64
"""Batches of other crop sizes are multiples of at most this many rows."""


@dataclass(frozen=True)
class Batch:
    """Rows of one step. Images uint8 [B, S, S, 3], captions, keys, and per store the stacked targets of the task.

    tokens: int64 [B, L], where the loader has a tokenizer. ends_epoch: the next step is of another epoch.
    """

    keys: list[str]
    images: torch.Tensor
    captions: list[str]
    targets: dict[str, torch.Tensor]
    tokens: torch.Tensor | None = None
    epoch: int = 0
    ends_epoch: bool = False

    def pin_memory(self) -> Self:
        """The batch in pinned memory; called by torch's DataLoader."""
        return type(self)(
            self.keys,
            self.images.pin_memory(),
            self.captions,
            {store: target.pin_memory() for store, target in self.targets.items()},
            None if self.tokens is None else self.tokens.pin_memory(),
            self.epoch,
            self.ends_epoch,
        )


def draw_view(train: Train, seed: int, epoch: int, key: str) -> View:
    """The crop and flip of a sample: area in `crop_scale`, aspect ratio 3/4..4/3, inside the image."""
    rng = np.random.default_rng([seed, epoch, zlib.crc32(key.encode())])
    area = rng.uniform(*train.crop_scale)
    ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
    height, width = min(1.0, np.sqrt(area / ratio)), min(1.0, np.sqrt(area * ratio))
    top, left = rng.uniform(0, 1 - height), rng.uniform(0, 1 - width)
    return View(float(top), float(left), float(height), float(width), bool(rng.random() < train.flip))


def crop_image(image_HWC: np.ndarray, view: View, size: int) -> np.ndarray:
    """uint8 RGB [H, W, 3] to [size, size, 3] under `view`, bicubic with antialiasing."""
    height, width = image_HWC.shape[:2]
    left, top = view.left * width, view.top * height
    box = (left, top, min(width, left + view.width * width), min(height, top + view.height * height))
    cropped = np.asarray(Image.fromarray(image_HWC).resize((size, size), Image.Resampling.BICUBIC, box=box))
    return cropped[:, ::-1] if view.flip else cropped


@dataclass(frozen=True)
class Step:
    """One step of the plan: rows `start` to `start + rows` of the epoch's order, at crop size `size`."""

    epoch: int
    start: int
    rows: int
    size: int
    ends_epoch: bool


Label = tuple[bytes, int, int] | None
"""The arguments of `Task.decode`; None where the label failed."""


@dataclass(frozen=True)
class Encoded:
    """A sample as it is stored: where its image and caption lie, and its label of each store.

    label_key: key of the image that the labels belong to.
    """

    place: shards.Place
    label_key: str
    labels: dict[str, Label]


@dataclass(frozen=True)
class Held:
    """What is in memory of a shard whose samples are being drawn: all its keys and, by row, this process' labels."""

    keys: list[str]
    labels: dict[str, dict[int, Label]]


@dataclass(frozen=True)
class Order:
    """The samples of an epoch in turn: their ids, which count samples over shards, and the ids of their labels.

    windows: numbers of the shards in each window; ends: position after the last sample of each.
    """

    ids: np.ndarray
    labels: np.ndarray
    windows: list[list[int]]
    ends: list[int]

    def bounds(self, window: int) -> tuple[int, int]:
        """First position of a window, and that after its last."""
        return self.ends[window - 1] if window else 0, self.ends[window]

    def windows_of(self, step: Step) -> range:
        """Those that a step draws from."""
        first, last = (bisect.bisect_right(self.ends, at) for at in (step.start, step.start + step.rows - 1))
        return range(first, last + 1)


Work = tuple[list[Encoded], Step]


@dataclass(frozen=True)
class Decoder:
    """Encoded samples to a batch; runs in the training process or in workers.

    augment: whether samples are cropped and flipped; else the whole picture is squashed.
    """

    train: Train
    seed: int
    tasks: dict[str, Task]
    tokenizer: Callable[[list[str]], torch.Tensor] | None = None
    augment: bool = True

    def __getitem__(self, work: Work) -> Batch:
        samples, step = work
        images, captions, views = [], [], {}
        for sample in samples:
            pair = sample.place.read()
            view = views[pair.key] = self._view(step.epoch, pair.key)
            images.append(crop_image(decode_image(pair.image), view, step.size))
            captions.append(pair.caption)
        return Batch(
            [sample.place.key for sample in samples],
            torch.from_numpy(np.stack(images)),
            captions,
            {store: torch.from_numpy(target) for store, target in self.targets(samples, step.epoch, views).items()},
            None if self.tokenizer is None else self.tokenizer(captions),
            step.epoch,
            step.ends_epoch,
        )

    def targets(
        self, samples: list[Encoded], epoch: int, views: Mapping[str, View] = MappingProxyType({})
    ) -> dict[str, np.ndarray]:
        """Per store the stacked targets of some samples. views: by key, those that were drawn already."""
        size = self.train.target_size_px
        targets: dict[str, list[np.ndarray]] = {store: [] for store in self.tasks}
        for sample in samples:
            # another image's labels are cropped as that image is: a crop in common would still tell where it was taken
            view = views.get(sample.label_key) or self._view(epoch, sample.label_key)
            for store, task in self.tasks.items():
                found = sample.labels[store]
                label = task.missing(size) if found is None else task.target(*found, view, size)
                targets[store].append(label)
        return {store: np.stack(values) for store, values in targets.items()}

    def _view(self, epoch: int, key: str) -> View:
        return draw_view(self.train, self.seed, epoch, key) if self.augment else WHOLE


class JointLoader:
    """Endless batches of `train.batch_size` from the shard index and label stores.

    stores: label store -> (task, its index.json). shuffle_labels: give every image another one's labels (control).
    tokenizer: captions -> int64 [N, L]. rank, processes: of a distributed run; each process reads its own part of every
    batch. workers: processes that decode; 0 decodes in this one.
    Raises CliptexError at construction when a shard is missing or not what was indexed, when a label file is missing,
    foreign, or does not hold the shard's keys, and when the batch does not fit the data or the processes.
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
        self.entries = shards.read_index(index)["shards"]
        self.tasks = {store: task for store, (task, _) in stores.items()}
        self._labels: list[dict[str, LabelFile]] = []
        for entry in self.entries:
            shards.check_indexed(entry)
            files = {store: open_store(path, entry, task) for store, (task, path) in stores.items()}
            for file in files.values():
                file.keys = entry["keys"]  # they are equal; millions of keys need not be held once a store
            self._labels.append(files)
        self.train, self.image_size, self.seed, self.shuffle_labels = train, image_size, seed, shuffle_labels
        self.rank, self.processes, self.workers = rank, processes, workers
        self._decoder = Decoder(train, seed, self.tasks, tokenizer)
        counts = [len(entry["keys"]) for entry in self.entries]
        self._offsets = [0, *itertools.accumulate(counts)]
        self.held_out = self._held_out(train.held_out)
        kept = np.ones(self._offsets[-1], bool)
        kept[self.held_out] = False
        self._ids = [first + np.flatnonzero(kept[first:end]) for first, end in itertools.pairwise(self._offsets)]
        self.num_samples = int(kept.sum())
        self._check_batches(index)
        self._places: dict[int, shards.Places] = {}
        self._kept_out: list[Encoded] | None = None
        self._ordered: tuple[int, Order] | None = None

    def _check_batches(self, index: Path) -> None:
        share = self.processes * self.train.accumulate
        for size in self.train.crop_sizes_px or (self.image_size,):
            rows = self._rows(size)
            if self.num_samples < rows:
                kept = f" that train.held_out = {self.train.held_out} leaves" if self.train.held_out else ""
                raise CliptexError(
                    f"train.batch_size: {rows} is more than the {self.num_samples} samples of {index}{kept}"
                )
            if rows % share:
                raise CliptexError(
                    f"train.batch_size: {rows} images at {size} px cannot be shared by {self.processes} processes"
                    f" with train.accumulate = {self.train.accumulate}; choose a multiple of {share}"
                )

    def _held_out(self, count: int) -> np.ndarray:
        """Ids of the samples kept out of training: those whose keys have the smallest digests, whatever the seed."""
        if not count:
            return np.empty(0, np.int64)
        keys = (key for entry in self.entries for key in entry["keys"])
        digests = np.array([int.from_bytes(sha256(key.encode()).digest()[:8], "big") for key in keys], np.uint64)
        return np.sort(np.argsort(digests, kind="stable")[:count])

    @property
    def steps_per_epoch(self) -> int:
        """Full batches an epoch at the encoder's own size; the remainder is left out (another one each epoch)."""
        return self.num_samples // self.train.batch_size

    def _rows(self, size: int) -> int:
        """Rows of a batch at a crop size: the number of patches stays about that of `batch_size` images."""
        if size == self.image_size:
            return self.train.batch_size
        unit = math.gcd(self.train.batch_size, COARSEST_UNIT)
        rows = self.train.batch_size * (self.image_size / size) ** 2
        return max(1, round(rows / unit)) * unit

    def _size(self, number: int) -> int:
        sizes = self.train.crop_sizes_px
        return sizes[np.random.default_rng([self.seed, number, 1]).integers(len(sizes))] if sizes else self.image_size

    def steps(self, start: int = 0) -> Iterator[Step]:
        """What step `start` (from 0) and those after it consist of, without end."""
        epoch = position = 0
        size = self._size(0)
        for number in itertools.count():
            rows, following = self._rows(size), self._size(number + 1)
            ends = position + rows + self._rows(following) > self.num_samples
            if number >= start:
                yield Step(epoch, position, rows, size, ends)
            epoch, position = (epoch + 1, 0) if ends else (epoch, position + rows)
            size = following

    def batches(self, start: int) -> Iterator[Batch]:
        """This process' part of the batches from step `start` on, without end."""
        work = self._work(self.steps(start), self.rank, self.processes)
        if not self.workers:
            return (self._decoder[one] for one in work)
        return iter(
            torch.utils.data.DataLoader(
                self._decoder,
                batch_size=None,
                # where samples lie, and their labels, which are read once and held by one process
                sampler=work,
                num_workers=self.workers,
                pin_memory=torch.cuda.is_available(),
                # a fork of a process that computes on a GPU, or has threads, does not work
                multiprocessing_context="forkserver",
                worker_init_fn=_start_worker,
            )
        )

    def label_batches(self, count: int) -> Iterator[dict[str, np.ndarray]]:
        """The targets of the first `count` batches, of all processes, without decoding an image."""
        for samples, step in self._work(itertools.islice(self.steps(), count)):
            yield self._decoder.targets(samples, step.epoch)

    def held_out_batches(self, rows: int) -> Iterator[Batch]:
        """The held-out samples, whole and unflipped, at most `rows` at a time."""
        if self._kept_out is None:
            numbers, self._kept_out = np.searchsorted(self._offsets, self.held_out, side="right") - 1, []
            for number in np.unique(numbers).tolist():
                ids = self.held_out[numbers == number]
                held = self._hold([number], ids)
                self._kept_out += [self._encoded(sample, sample, held) for sample in ids.tolist()]
        decoder = Decoder(self.train, self.seed, self.tasks, augment=False)
        step = Step(0, 0, rows, self.image_size, False)
        for start in range(0, len(self._kept_out), rows):
            yield decoder[self._kept_out[start : start + rows], step]

    def samples_seen(self, steps: int) -> tuple[int, int]:
        """Images seen in the first `steps` steps by all processes, and how many of them were different ones."""
        seen = np.zeros(self._offsets[-1], bool)
        total = 0
        planned = itertools.islice(self.steps(), steps)
        for epoch, of_epoch in itertools.groupby(planned, key=lambda step: step.epoch):
            rows = sum(step.rows for step in of_epoch)
            total += rows
            if seen.sum() < self.num_samples:
                seen[self._order(epoch).ids[:rows]] = True
        return total, int(seen.sum())

    def _order(self, epoch: int) -> Order:
        """Shards are shuffled, then samples within windows of `shuffle_shards` shards."""
        if self._ordered is not None and self._ordered[0] == epoch:
            return self._ordered[1]
        rng = np.random.default_rng([self.seed, epoch])
        shuffled = rng.permutation(len(self.entries))
        windows = [
            sorted(shuffled[start : start + self.train.shuffle_shards].tolist())
            for start in range(0, len(shuffled), self.train.shuffle_shards)
        ]
        parts = []
        for window in windows:
            ids = np.concatenate([self._ids[number] for number in window])
            labels = ids
            if self.shuffle_labels:
                # a random cycle: nobody keeps its own labels
                cycle = np.random.default_rng([self.seed, len(ids)]).permutation(len(ids))
                labels = np.empty_like(ids)
                labels[cycle] = ids[np.roll(cycle, 1)]
            drawn = rng.permutation(len(ids))
            parts.append((ids[drawn], labels[drawn]))
        ids, labels = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        order = Order(ids, labels, windows, np.cumsum([len(ids) for ids, _ in parts]).tolist())
        self._ordered = (epoch, order)
        return order

    def _work(self, steps: Iterable[Step], rank: int = 0, processes: int = 1) -> Iterator[Work]:
        """The part of one of `processes` of each step, with its labels, of which a window's are in memory."""
        for epoch, of_epoch in itertools.groupby(steps, key=lambda step: step.epoch):
            order, parts = self._order(epoch), []
            for step in of_epoch:
                share = step.rows // processes
                parts.append((step, slice(step.start + rank * share, step.start + (rank + 1) * share)))
            own = np.concatenate([np.arange(rows.start, rows.stop) for _, rows in parts])
            held: dict[int, dict[int, Held]] = {}
            for step, rows in parts:
                needed = order.windows_of(step)
                for window in held.keys() - set(needed):
                    del held[window]
                for window in needed:
                    if window not in held:
                        here = own[slice(*np.searchsorted(own, order.bounds(window)))]
                        held[window] = self._hold(order.windows[window], order.labels[here])
                by_shard = {number: shard for window in held.values() for number, shard in window.items()}
                pairs = zip(order.ids[rows].tolist(), order.labels[rows].tolist(), strict=True)
                yield [self._encoded(*pair, by_shard) for pair in pairs], step

    def _hold(self, numbers: Iterable[int], labels: np.ndarray) -> dict[int, Held]:
        """What is needed of some shards to draw from them. labels: ids of the samples whose labels are."""
        of_shard = np.searchsorted(self._offsets, labels, side="right") - 1
        held = {}
        for number in numbers:
            rows = labels[of_shard == number] - self._offsets[number]
            found = {store: file.some(rows) for store, file in self._labels[number].items()}
            held[number] = Held(list(self.entries[number]["keys"]), found)
            if number not in self._places:
                self._places[number] = shards.Places(self.entries[number])
            self._places[number].will_be_read()
        return held

    def _encoded(self, sample: int, label: int, held: dict[int, Held]) -> Encoded:
        number, label_number = (bisect.bisect_right(self._offsets, one) - 1 for one in (sample, label))
        row, label_row = sample - self._offsets[number], label - self._offsets[label_number]
        place, of_label = self._places[number].at(row, held[number].keys[row]), held[label_number]
        labels = {store: found[label_row] for store, found in of_label.labels.items()}
        return Encoded(place, of_label.keys[label_row], labels)


def _start_worker(number: int) -> None:
    """In a worker: one thread of its own, and deaf to the signals that ask the run to stop, which end the parent."""
    import signal

    from threadpoolctl import threadpool_limits

    torch.set_num_threads(1)
    threadpool_limits(1)  # NumPy's, of which each worker would have as many as the machine has processors
    for name in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(name, signal.SIG_IGN)
