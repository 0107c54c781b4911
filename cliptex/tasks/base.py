"""What a task must say: label codec, geometry, head, loss, metric, picture.

Imports NumPy only, so that the workflow and the label store do not pay for torch; the loss imports it when called.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from cliptex.core.errors import CliptexError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class View:
    """A crop and flip, drawn once a sample and applied to the image and to every label.

    Edges are shares of the image's height and width in 0..1, so that they hold for grids of any size.
    """

    top: float
    left: float
    height: float
    width: float
    flip: bool


@dataclass(frozen=True, kw_only=True)
class LossOptions:
    """Choices that a task's loss leaves, the config's `models.*.losses`; a task with choices has a subclass of it."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}


class Task(ABC):
    """A dense task. Labels are NumPy arrays [H, W] or [H, W, C] in the stored image's frame."""

    name: ClassVar[str]
    channels: int
    """Output channels of the task's head; with some losses another number, see `with_loss`."""
    options: LossOptions = LossOptions()
    """How the loss is computed; `with_loss` gives a task with others than the defaults."""

    def with_loss(self, options: Mapping[str, Any], where: str) -> Self:
        """This task with other options of its loss. Raises CliptexError naming the key under `where`."""
        from pydantic import TypeAdapter, ValidationError

        kind = type(self.options)
        try:
            checked = TypeAdapter(kind).validate_python(dict(options))
        except ValidationError as error:
            known = ", ".join(field.name for field in fields(kind)) or "none"
            problems = []
            for item in error.errors():
                key = ".".join(map(str, (where, *item["loc"])))
                if item["type"] == "unexpected_keyword_argument":
                    problems.append(f"{key}: unknown key; known are {known}")
                else:
                    problems.append(f"{key}: {item['msg']}, got {item['input']!r}")
            raise CliptexError("; ".join(problems)) from error
        task = copy(self)
        task.options = checked
        return task

    @abstractmethod
    def codec(self) -> dict[str, Any]:
        """What the label store records: codec name and parameters, dtype, invalid value, frame, class names."""

    @abstractmethod
    def encode(self, label: np.ndarray) -> bytes:
        """Label to payload. Raises ValueError when the label is of a wrong shape or all invalid."""

    @abstractmethod
    def decode(self, payload: bytes, height: int, width: int) -> np.ndarray:
        """Payload to label; the label's error against what was encoded is within the codec's stated step."""

    @abstractmethod
    def scalars(self, label: np.ndarray) -> dict[str, float]:
        """Numbers kept beside the payload, e.g. `coverage` (share of valid pixels) and `confidence`."""

    @abstractmethod
    def resize(self, label: np.ndarray, height: int, width: int) -> np.ndarray:
        """Label on another grid: never invents classes, never bleeds invalid values into valid ones."""

    @abstractmethod
    def crop(self, label: np.ndarray, view: View, size: int) -> np.ndarray:
        """The training target [size, size] or [size, size, C] under `view` (a flip turns directions too)."""

    def target(self, payload: bytes, height: int, width: int, view: View, size: int) -> np.ndarray:
        """`crop` of `decode`, to rounding; a task may do both at once, which is quicker."""
        return self.crop(self.decode(payload, height, width), view, size)

    @abstractmethod
    def missing(self, size: int) -> np.ndarray:
        """The training target of an image whose label failed: every pixel invalid."""

    @abstractmethod
    def loss(self, prediction_BCHW: torch.Tensor, target_B: torch.Tensor) -> torch.Tensor:
        """Scalar loss of the head's raw output against stacked `crop` results; finite for any label, zero gradient
        where the label is invalid. The prediction is resized (bilinear) to the target's grid by the caller."""

    def predicted(self, output_CHW: np.ndarray) -> np.ndarray:
        """The label [H, W] or [H, W, C] that a head's raw output, float32 [channels, H, W], stands for."""
        raise CliptexError(f"{self.name}: the task does not say what a head's output means; give it `predicted`")

    def classes(self, label: np.ndarray) -> np.ndarray:
        """The class map [H, W] of a label, for a task whose codec has class names."""
        return label

    @abstractmethod
    def quality(self, pairs: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
        """Metrics of (predicted label, true label) pairs, for an expert's held-out quality."""

    @abstractmethod
    def picture(self, label: np.ndarray) -> np.ndarray:
        """uint8 [H, W, 3] for people to look at; invalid pixels are dark grey."""
