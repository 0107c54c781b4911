"""What an expert must do: be built from config, load weights, predict a batch, and where it can, be trained."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np


class OtherLabels(Protocol):
    """Labels of another store, for an expert that changes them."""

    def label(self, key: str) -> np.ndarray | None:
        """Of a picture, decoded; None where it failed."""

    def beside(self, key: str) -> Sequence[str]:
        """Keys of the picture's shard, in order, its own among them."""


class Expert(ABC):
    """A frozen network (or other source) that labels images for one task.

    settings: the expert's section of the config, as JSON values (`network`, `training`, `batch_size`, ...).
    """

    task: ClassVar[str]
    """Name of the task whose labels it makes."""
    trainable: ClassVar[bool] = True
    """Whether there are weights; one that has none at all says False, and is identified by its `network` settings."""
    uses_miniature: ClassVar[bool] = False
    """Whether the labels of one without weights depend on the config's `miniature`."""
    takes_labels: ClassVar[bool] = False
    """Whether it changes the labels of another store, the config's `label_stores.*.of`; then `take` is called first."""

    def __init__(self, settings: dict[str, Any]):
        self.settings = settings

    @abstractmethod
    def load(self, weights: Path | None) -> None:
        """Build the network and load `weights`, strictly: a file, or the folder of a saved model where the expert
        takes one (`cliptex.experts.weights` reads both without running them). None: leave it untrained, for `fit`."""

    def take(self, labels: OtherLabels) -> None:
        """Called before `predict` where `takes_labels`: what the other store has."""
        raise TypeError(f"{type(self).__name__} changes no labels of others")

    @abstractmethod
    def predict(self, images: list[np.ndarray], keys: list[str]) -> list[np.ndarray]:
        """Label images (uint8 RGB [H, W, 3], sizes may differ); each label is in its image's own [H, W] frame.

        The labels are those the task's `encode` takes. Deterministic, and independent of the batch mates.
        """

    def session(self) -> AbstractContextManager[None]:
        """Entered around many calls of `predict`, in the thread that makes them: what they can share is made once."""
        return nullcontext()

    def extra_columns(self) -> dict[str, Any]:
        """Name -> pyarrow type of the columns kept beside each label; none by default."""
        return {}

    def predict_rows(self, images: list[np.ndarray], keys: list[str]) -> list[tuple[np.ndarray, dict[str, Any]]]:
        """What `predict` gives, each label with its `extra_columns`. The label store is written from this."""
        return [(label, {}) for label in self.predict(images, keys)]

    def fit(self, renders: Path, seed: int) -> dict[str, Any]:
        """Train on the labelled renders in the HDF5 file `renders`; return what the training log should keep."""
        raise TypeError(f"{type(self).__name__} is not trained by the workflow; give weights")

    def randomise(self, seed: int) -> None:
        """Build the network with random weights, a function of `seed`; for tests and benchmarks."""
        raise TypeError(f"{type(self).__name__} has no weights to draw at random")

    def own_quality(self, renders: Path) -> dict[str, float]:
        """Metrics on the labelled renders beyond those of the task, e.g. average precision of instances."""
        return {}

    def state(self) -> dict[str, Any]:
        """Name -> tensor, what `load` reads back."""
        raise TypeError(f"{type(self).__name__} has no weights")
