"""Base class of experts: built from the config, they load weights, label batches of images and may be trainable."""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from cliptex.core.errors import CliptexError


class SourceLabels(Protocol):
    """Labels of another store, for an expert that changes them."""

    @property
    def codec(self) -> dict[str, Any]:
        """The store's codec, which has the parameters of its task."""

    def label(self, key: str) -> np.ndarray | None:
        """The decoded label of an image; None if it has none."""

    def shard_keys(self, key: str) -> Sequence[str]:
        """Keys of all images in this image's shard, in order."""


class Expert(ABC):
    """A frozen network (or another source) that labels images for one task. settings: the expert's section of the
    config, as JSON values (`network`, `training`, `batch_size`, ...)."""

    task: ClassVar[str]
    """Name of the task of its labels."""
    trainable: ClassVar[bool] = True
    """Whether it has weights; an expert without weights is identified by its `network` options instead."""
    uses_miniature: ClassVar[bool] = False
    """Whether the labels of an expert without weights depend on the config's `miniature`."""
    fitted_to_shards: ClassVar[bool] = False
    """Whether a part of it is fitted to the shards before it labels them (`cliptex fit-pca`). Then it has no quality
    on renders, and its attribute `folder` is where that part is."""
    takes_labels: ClassVar[bool] = False
    """Whether it changes the labels of another store (config: `label_stores.*.of`); then `take` is called first."""

    def __init__(self, settings: dict[str, Any]):
        self.settings = settings

    @abstractmethod
    def load(self, weights: Path | None) -> None:
        """Build the network and load `weights` strictly: a file, or the folder of a saved model if the expert supports
        that (`cliptex.experts.weights` reads both without executing code). None: leave it untrained, for `fit`."""

    def task_parameters(self) -> dict[str, Any]:
        """Those keys of the task's codec that the weights determine, e.g. `class_names`, as JSON values; called after
        `load` and `take`. The task is built from them by `Task.from_codec`."""
        return {}

    def check(self, weights: Path) -> None:  # noqa: B027 (an expert may have none)
        """Raise CliptexError if the labels of the loaded `weights` are clearly the wrong way round (depth, axes, order
        of classes); called once, before labelling, for weights that were not made here."""

    def take(self, labels: SourceLabels) -> None:
        """Get access to the labels of the other store; called before `predict` if `takes_labels`."""
        raise TypeError(f"{type(self).__name__} does not change the labels of another store")

    @abstractmethod
    def predict(self, images: list[np.ndarray], keys: list[str]) -> list[np.ndarray]:
        """Label images (uint8 RGB [H, W, 3], sizes may differ); each label has the height and width of its image,
        unless the task is not `aligned`. Returns labels as the task's `encode` takes them. Must be deterministic, and
        independent of the other images in the batch."""

    def batch_key(self, height: int, width: int) -> Hashable:
        """Images of sizes with equal keys can share a forward pass (config: `batch_window`); by default all can."""
        return None

    def session(self) -> AbstractContextManager[None]:
        """Context entered around many calls of `predict`, in the same thread, for state that they share."""
        return nullcontext()

    def extra_columns(self) -> dict[str, Any]:
        """Name -> pyarrow type of additional columns of the label store; none by default."""
        return {}

    def predict_rows(self, images: list[np.ndarray], keys: list[str]) -> list[tuple[np.ndarray, dict[str, Any]]]:
        """Like `predict`, with the values of `extra_columns` for each label. The label store is written from this."""
        return [(label, {}) for label in self.predict(images, keys)]

    def fit(self, renders: Path, seed: int) -> dict[str, Any]:
        """Train on the labelled renders in the HDF5 file `renders`; return values for the record of the training."""
        raise TypeError(f"{type(self).__name__} cannot be trained by the workflow; give weights")

    def randomise(self, seed: int) -> None:
        """Build the network with random weights drawn from `seed`; for tests and benchmarks."""
        raise TypeError(f"{type(self).__name__} has no weights to initialise")

    def own_quality(self, renders: Path) -> dict[str, float]:
        """Metrics on labelled renders in addition to the task's, e.g. average precision of instances."""
        return {}

    def check_methods(self, weights: str, has_backbone: bool) -> None:
        """Raise CliptexError if the class lacks what this source of weights (config: `weights`) needs of it.
        has_backbone: whether training starts from the config's `backbone`."""
        lacks = self._lacks(weights, has_backbone) if self.trainable else []
        if lacks:
            does = "trained" if weights == "trained" else "initialised"
            remedy = "define it, give `weights` as local, url or hub, or set `trainable = False` if it has none"
            raise CliptexError(f"{type(self).__name__} cannot be {does} here, since it lacks {lacks[0]!r}; {remedy}")

    def _lacks(self, weights: str, has_backbone: bool) -> list[str]:
        needed = {"trained": ("fit", "state"), "random": ("randomise", "state")}.get(weights, ())
        return [name for name in needed if getattr(type(self), name) is getattr(Expert, name)]

    def state(self) -> dict[str, Any]:
        """Name -> tensor, as `load` expects them."""
        raise TypeError(f"{type(self).__name__} has no weights")
