"""Base class of tasks: label codec, resizing and cropping, loss, metrics and visualisation.

Imports NumPy only, so that the workflow and the label store need not load torch; the losses import it when called.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from copy import copy
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from pydantic import TypeAdapter, ValidationError

from cliptex.config.explain import explain, nearest
from cliptex.core.errors import CliptexError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class View:
    """A crop and flip, drawn once for each sample and applied to the image and all its labels. Coordinates are shares
    of the image's height and width in 0..1, so that they apply to grids of any size."""

    top: float
    left: float
    height: float
    width: float
    flip: bool


@dataclass(frozen=True, kw_only=True)
class LossOptions:
    """Options of a task's loss (config: `models.*.losses`); a task with options defines a subclass."""

    __pydantic_config__: ClassVar = {"extra": "forbid", "allow_inf_nan": False}


class Task(ABC):
    """A dense task. Labels are NumPy arrays [H, W] or [H, W, C] over the whole stored image."""

    name: ClassVar[str]
    aligned: ClassVar[bool] = True
    """Whether an expert's label has the height and width of its image; otherwise its cells divide the image."""
    channels: int
    """Output channels of the task's head; may depend on the options of the loss."""
    options: LossOptions = LossOptions()
    """Options of the loss; see `with_loss`."""

    def with_loss(self, options: Mapping[str, Any], where: str) -> Self:
        """A copy of this task with other options of its loss. Raises CliptexError that names the key under `where`."""
        if wrong := list(self.wrong_options(options, (where,))):
            raise CliptexError("; ".join(f"{'.'.join(path)}: {sentence}" for path, sentence in wrong))
        task = copy(self)
        task.options = TypeAdapter(type(self.options)).validate_python(dict(options))
        return task

    def wrong_options(
        self, options: Mapping[str, Any], where: tuple[str, ...]
    ) -> Iterator[tuple[tuple[str, ...], str]]:
        """The path of each wrong option of the loss under `where`, and what is wrong with it."""
        kind = type(self.options)
        known = [field.name for field in fields(kind)]
        for name in set(options) - set(known):
            hint = nearest(str(name), known) or f"; there are {', '.join(known) or 'none'}"
            yield (*where, str(name)), f"unknown key{hint}"
        values = {name: options[name] for name in known if name in options}
        try:
            TypeAdapter(kind).validate_python(values)
        except ValidationError as error:
            for path, sentence in explain(error, kind, values):
                yield (*where, *map(str, path)), sentence

    @classmethod
    def from_codec(cls, codec: Mapping[str, Any]) -> Self:
        """The task of a label store with this `codec`, which is from a file and not yet checked, or with an expert's
        `task_parameters`; {} gives the defaults. A task with parameters, e.g. class names, reads them from it; all
        others ignore it. Readers of files then compare the task's `codec` with the file's. Raises ValueError, in one
        line, if a parameter cannot be used."""
        return cls()

    @abstractmethod
    def codec(self) -> dict[str, Any]:
        """Metadata of the label store: codec name and parameters, dtype, invalid value, frame, class names."""

    @abstractmethod
    def encode(self, label: np.ndarray) -> bytes:
        """Label to payload. Raises ValueError if the label has the wrong shape or no valid pixel."""

    @abstractmethod
    def decode(self, payload: bytes, height: int, width: int) -> np.ndarray:
        """Payload to label; it differs from the encoded label by at most the `step` of the codec."""

    @abstractmethod
    def scalars(self, label: np.ndarray) -> dict[str, float]:
        """Statistics stored with the payload, e.g. `coverage` (share of valid pixels) and `confidence`."""

    @abstractmethod
    def resize(self, label: np.ndarray, height: int, width: int) -> np.ndarray:
        """Label resampled to another grid. Must not mix classes, or invalid values into valid ones."""

    @abstractmethod
    def crop(self, label: np.ndarray, view: View, size: int) -> np.ndarray:
        """The training target [size, size] or [size, size, C] under `view` (a flip also mirrors directions); of a task
        that is not `aligned`, it may be smaller, always as `missing`."""

    def target(self, payload: bytes, height: int, width: int, view: View, size: int) -> np.ndarray:
        """`crop` of `decode`, up to rounding; override it to do both at once, which is faster."""
        return self.crop(self.decode(payload, height, width), view, size)

    @abstractmethod
    def missing(self, size: int) -> np.ndarray:
        """The training target of an image without a label: every pixel invalid."""

    @abstractmethod
    def loss(self, prediction_BCHW: torch.Tensor, target_B: torch.Tensor) -> torch.Tensor:
        """Scalar loss of the head's raw output and stacked `crop` results. Must be finite for any label, with zero
        gradient where the label is invalid. The caller resizes the prediction (bilinear) to the target's grid."""

    def agreement(self, target_B: torch.Tensor, other_B: torch.Tensor) -> torch.Tensor:
        """How far two stores' targets of the same images agree, float32 [B, H, W] in 0..1; 1 where either is invalid.
        Symmetric. A task that implements it takes these weights as the third argument of `loss`, `weight_BHW`."""
        raise CliptexError(
            f"{self.name}: the task cannot compare the labels of two stores; implement `agreement`, or remove"
            " weight_by_agreement"
        )

    def predicted(self, output_CHW: np.ndarray) -> np.ndarray:
        """Convert a head's raw output, float32 [channels, H, W], to a label [H, W] or [H, W, C]."""
        raise CliptexError(f"{self.name}: the task cannot convert a head's output to a label; implement `predicted`")

    def differs(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """bool [H, W]: pixels in which two decoded labels of one size differ by more than rounding.

        The first channel of an integer label is a class and must be equal. All others are values: they may be off by
        2 % of their range in `a`, integers also by 1, and must be valid in both or in neither.
        """
        a, b = (label.reshape(*label.shape[:2], -1) for label in (a, b))
        exact = 0 if a.dtype.kind == "f" else 1
        differs_HW = (a[..., :exact] != b[..., :exact]).any(axis=-1)
        a, b = (label[..., exact:].astype(np.float64) for label in (a, b))
        step = np.maximum(0.02 * (np.nanmax(a, axis=(0, 1)) - np.nanmin(a, axis=(0, 1))), exact)
        return differs_HW | (~np.isclose(b, a, rtol=1e-4, atol=step, equal_nan=True)).any(axis=-1)

    def valid(self, label: np.ndarray) -> np.ndarray:
        """bool [H, W]: pixels of a label that have a value, i.e. differ from those of `missing`."""
        first = label.reshape(*label.shape[:2], -1)
        if label.dtype.kind == "f":
            return np.isfinite(first).all(axis=-1)
        return first[..., 0] != self.missing(1).flat[0]

    def classes(self, label: np.ndarray) -> np.ndarray:
        """The class map [H, W] of a label, for tasks whose codec has class names."""
        return label

    @abstractmethod
    def quality(self, pairs: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
        """Metrics of (predicted label, true label) pairs, to evaluate experts on held-out images."""

    @abstractmethod
    def picture(self, label: np.ndarray) -> np.ndarray:
        """Visualisation uint8 [H, W, 3]; invalid pixels are dark grey."""
