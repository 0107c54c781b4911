"""Joint loading: image, caption and pseudo-labels of one key, cropped and flipped together.

Reads   results/shards/index.json, the shards, and the indexed label stores.
Holds   what a sample becomes is a function of (seed, epoch, key) alone; the order of keys of (seed, epoch) alone, so
        two models with the same seed see the same batches and a restart continues where it was.
"""

import itertools
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cliptex import shards
from cliptex.config import Train
from cliptex.errors import CliptexError
from cliptex.images import decode_image
from cliptex.labels import open_store
from cliptex.tasks.base import Task, View


@dataclass(frozen=True)
class Batch:
    """Images uint8 [B, S, S, 3], captions, keys, and per store the stacked targets of the task."""

    keys: list[str]
    images: np.ndarray
    captions: list[str]
    targets: dict[str, np.ndarray]


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


Sample = tuple[shards.Pair, str, dict[str, Any]]


class JointLoader:
    """Endless batches of `train.batch_size` from the shard index and label stores.

    stores: label store -> (task, its index.json). shuffle_labels: give every image another one's labels (control).
    Raises CliptexError at construction when a label file is missing, foreign, or does not hold the shard's keys.
    """

    def __init__(
        self,
        index: Path,
        stores: dict[str, tuple[Task, Path]],
        train: Train,
        image_size: int,
        seed: int,
        shuffle_labels: bool = False,
    ):
        self.entries = shards.read_index(index)["shards"]
        self.tasks = {store: task for store, (task, _) in stores.items()}
        self.labels = {
            entry["shard"]: {store: open_store(path, entry, task) for store, (task, path) in stores.items()}
            for entry in self.entries
        }
        self.train, self.image_size, self.seed, self.shuffle_labels = train, image_size, seed, shuffle_labels
        self.num_samples = sum(len(entry["keys"]) for entry in self.entries)
        if self.num_samples < train.batch_size:
            raise CliptexError(
                f"train.batch_size: {train.batch_size} is more than the {self.num_samples} samples of {index}"
            )
        self._window: tuple[list[str], list[Any]] = ([], [])

    @property
    def steps_per_epoch(self) -> int:
        """Full batches an epoch; the remainder is left out (another one each epoch)."""
        return self.num_samples // self.train.batch_size

    def batches(self, start: int) -> Iterator[Batch]:
        """Batches from step `start` on, without end."""
        step = start
        while True:
            epoch, skip = divmod(step, self.steps_per_epoch)
            for number, rows in enumerate(self._batches_of(epoch)):
                if number >= skip:
                    yield self._load(rows, epoch)
                    step += 1

    def label_batches(self, count: int) -> Iterator[dict[str, np.ndarray]]:
        """The targets of the first `count` batches, without decoding an image."""
        rows_and_epochs = ((rows, epoch) for epoch in itertools.count() for rows in self._batches_of(epoch))
        for rows, epoch in itertools.islice(rows_and_epochs, count):
            yield self._targets(rows, epoch)

    def _batches_of(self, epoch: int) -> Iterator[list[Sample]]:
        """Samples of an epoch in batches: shards shuffled, then samples within windows of `shuffle_shards` shards."""
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(len(self.entries))
        left: list[Any] = []
        made = 0
        for start in range(0, len(order), self.train.shuffle_shards):
            window = self._samples([self.entries[i] for i in sorted(order[start : start + self.train.shuffle_shards])])
            left += [window[i] for i in rng.permutation(len(window))]
            while len(left) >= self.train.batch_size and made < self.steps_per_epoch:
                yield left[: self.train.batch_size]
                left = left[self.train.batch_size :]
                made += 1

    def _samples(self, entries: list[dict[str, Any]]) -> list[Sample]:
        """(pair, key of the labels, store -> (label file, row)) of some shards.

        The last window is kept, as small sets have only one.
        """
        names = [entry["shard"] for entry in entries]
        if self._window[0] != names:
            for name in set(self._window[0]) - set(names):
                for file in self.labels[name].values():
                    file.release()
            samples = []
            for entry in entries:
                files = self.labels[entry["shard"]]
                for row, pair in enumerate(shards.read_indexed(entry)):
                    samples.append((pair, pair.key, {store: (file, row) for store, file in files.items()}))
            if self.shuffle_labels:
                # a random cycle: nobody keeps its own labels
                cycle = np.random.default_rng([self.seed, len(samples)]).permutation(len(samples))
                labels = [samples[i][1:] for i in cycle]
                for place, i in enumerate(cycle):
                    samples[i] = (samples[i][0], *labels[place - 1])
            self._window = (names, samples)
        return self._window[1]

    def _load(self, rows: list[Sample], epoch: int) -> Batch:
        images = []
        for pair, *_ in rows:
            view = draw_view(self.train, self.seed, epoch, pair.key)
            images.append(crop_image(decode_image(pair.image), view, self.image_size))
        return Batch(
            [pair.key for pair, *_ in rows],
            np.stack(images),
            [pair.caption for pair, *_ in rows],
            self._targets(rows, epoch),
        )

    def _targets(self, rows: list[Sample], epoch: int) -> dict[str, np.ndarray]:
        """Per store the stacked targets of some samples."""
        size = self.train.target_size_px
        targets: dict[str, list[np.ndarray]] = {store: [] for store in self.tasks}
        for _, label_key, labels in rows:
            # another image's labels are cropped as that image is: a crop in common would still tell where it was taken
            view = draw_view(self.train, self.seed, epoch, label_key)
            for store, task in self.tasks.items():
                file, row = labels[store]
                label = task.missing(size) if (found := file.get(row)) is None else task.decode(*found)
                targets[store].append(label if found is None else task.crop(label, view, size))
        return {store: np.stack(values) for store, values in targets.items()}
