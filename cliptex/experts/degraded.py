"""Labels of another store, corrupted by a known amount, to measure how much a model depends on its experts.

Each image is divided into blocks. A share of them, drawn from the seed and the image's key, is replaced by the same
blocks of the label of another image in the shard. So every value is one that the expert gives somewhere; at strength 0
the labels are unchanged, at 1 each is the whole label of another image.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from cliptex.core.plugins import find
from cliptex.experts.base import Expert, SourceLabels
from cliptex.experts.options import DegradedOptions, parse_options
from cliptex.tasks.base import Task


class DegradedExpert(Expert):
    """Has no network; reads the store named by `label_stores.*.of`."""

    trainable = False
    takes_labels = True

    def __init__(self, settings: dict[str, Any]):
        super().__init__(settings)
        self.options = parse_options(DegradedOptions, settings.get("network", {}), "network")
        self._task: Task = find("tasks", self.options.task)()
        self.task = self._task.name

    def load(self, weights: Path | None) -> None:
        pass

    def take(self, labels: SourceLabels) -> None:
        self._labels = labels
        self._task = type(self._task).from_codec(labels.codec)

    def task_parameters(self) -> dict[str, Any]:
        return self._task.codec()

    def predict(self, images: list[np.ndarray], keys: list[str]) -> list[np.ndarray]:
        """Raises ValueError for an image that has no label in the other store."""
        return [self._label(image.shape[:2], key) for image, key in zip(images, keys, strict=True)]

    def _label(self, size: tuple[int, int], key: str) -> np.ndarray:
        own = self._labels.label(key)
        if own is None:
            raise ValueError("no label in the other store")
        size = size if self._task.aligned else own.shape[:2]
        own = self._fitted(own, size)
        digest = hashlib.sha256(f"{self.options.seed}/{key}".encode()).digest()
        rng = np.random.default_rng(list(digest))
        count = self.options.blocks**2
        replaced = np.zeros(count, bool)
        replaced[rng.permutation(count)[: round(self.options.strength * count)]] = True
        keys = self._labels.shard_keys(key)
        others = (self._labels.label(keys[index]) for index in rng.permutation(len(keys)) if keys[index] != key)
        other = next((label for label in others if label is not None), None)
        if other is None or not replaced.any():
            return own
        side = self.options.blocks
        rows, columns = (np.arange(length) * side // length for length in own.shape[:2])
        mask_HW = replaced.reshape(side, side)[rows[:, None], columns]
        return np.where(mask_HW if own.ndim == 2 else mask_HW[..., None], self._fitted(other, size), own)

    def _fitted(self, label: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        return label if label.shape[:2] == size else self._task.resize(label, *size)


PLUGIN = DegradedExpert
