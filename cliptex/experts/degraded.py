"""Another store's labels, made worse by a known amount: how much does a model depend on its experts?

Each picture is divided into blocks. In a share of them, drawn from the seed and the picture's key, stands what the
store has there for another picture of the same shard. So every value is one that the expert gives somewhere; at
strength 0 the labels are the store's, at 1 each is a whole label of another picture.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from cliptex.config import Positive, Section, Share
from cliptex.core.plugins import find
from cliptex.experts.base import Expert, OtherLabels
from cliptex.experts.options import parse_options
from cliptex.tasks.base import Task


class Network(Section):
    """Options of the expert `degraded`."""

    task: str
    """Task of the labels, as in `label_stores`."""
    strength: Share
    """Share of the blocks that come from another picture."""
    blocks: Positive = 8
    """Blocks a side."""
    seed: int = 0
    """Of the blocks and of the other pictures."""


class DegradedExpert(Expert):
    """No network: it reads the store that `label_stores.*.of` names."""

    trainable = False
    takes_labels = True

    def __init__(self, settings: dict[str, Any]):
        super().__init__(settings)
        self.options = parse_options(Network, settings.get("network", {}), "network")
        self._task: Task = find("tasks", self.options.task)()
        self.task = self._task.name

    def load(self, weights: Path | None) -> None:
        pass

    def take(self, labels: OtherLabels) -> None:
        self._labels = labels

    def predict(self, images: list[np.ndarray], keys: list[str]) -> list[np.ndarray]:
        """Raises ValueError for a picture that has no label in the other store."""
        return [self._label(image.shape[:2], key) for image, key in zip(images, keys, strict=True)]

    def _label(self, size: tuple[int, int], key: str) -> np.ndarray:
        own = self._labels.label(key)
        if own is None:
            raise ValueError("no label in the other store")
        own = self._fitted(own, size)
        digest = hashlib.sha256(f"{self.options.seed}/{key}".encode()).digest()
        rng = np.random.default_rng(list(digest))
        count = self.options.blocks**2
        taken = np.zeros(count, bool)
        taken[rng.permutation(count)[: round(self.options.strength * count)]] = True
        other = self._other(key, rng)
        if other is None or not taken.any():
            return own
        return np.where(self._spread(taken, own), self._fitted(other, size), own)

    def _other(self, key: str, rng: np.random.Generator) -> np.ndarray | None:
        """The label of another picture of the shard; None where no other has one."""
        keys = self._labels.beside(key)
        for index in rng.permutation(len(keys)):
            if keys[index] != key and (label := self._labels.label(keys[index])) is not None:
                return label
        return None

    def _fitted(self, label: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        return label if label.shape[:2] == size else self._task.resize(label, *size)

    def _spread(self, taken: np.ndarray, label: np.ndarray) -> np.ndarray:
        """bool [H, W] or [H, W, 1]: the pixels of the blocks that are taken."""
        side = self.options.blocks
        rows, columns = (np.arange(length) * side // length for length in label.shape[:2])
        mask = taken.reshape(side, side)[rows[:, None], columns]
        return mask if label.ndim == 2 else mask[..., None]


PLUGIN = DegradedExpert
