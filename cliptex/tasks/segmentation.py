"""Semantic segmentation: the class of each pixel, [H, W].

By default uint8 with 0 = background, 1..80 = the COCO classes in official order, 255 = ignore. An expert may bring 2 to
1,000 classes of its own: uint8 with 255 = ignore up to 255 classes, uint16 with 65535 = ignore above.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from cliptex.benchmarks.coco_names import coco_categories
from cliptex.tasks.base import Task, View
from cliptex.tasks.batch_mean import batch_mean
from cliptex.tasks.grid import INVALID_COLOUR, WHOLE, pack, take_nearest, unpack

if TYPE_CHECKING:
    import torch

IGNORE = 255
"""Of labels with up to 255 classes; 65535 with more."""
DISAGREEMENT = 0.2
"""Agreement of different classes; not 0, since either expert may be right."""
MAX_CLASSES = 1000
MAX_NAME_CHARACTERS = 200
BACKGROUND = "background"
BACKGROUND_COLOUR = (232, 232, 232)


class Segmentation(Task):
    """Class of each pixel, with cross-entropy.

    class_names: 2 to 1,000, by class number; None for background and COCO's 80. colours: [red, green, blue] of each, in
    0..255; None for `palette`. Attributes: `dtype` of labels and their value `ignore`.
    """

    name = "segmentation"
    channels = 81

    def __init__(self, class_names: list[str] | None = None, colours: list[list[int]] | None = None) -> None:
        self.class_names = class_names or [BACKGROUND, *(name for _, name, _ in coco_categories())]
        self.colours, self.channels = colours, len(self.class_names)
        self.dtype = "uint8" if self.channels <= IGNORE else "uint16"
        self.ignore = int(np.iinfo(self.dtype).max)

    @classmethod
    def from_codec(cls, codec: Mapping[str, Any]) -> Self:
        """Reads `class_names` and `colours`: 2 to 1,000 different names, and a colour for each. Raises ValueError."""
        class_names, colours = codec.get("class_names"), codec.get("colours")
        if problem := _problem(class_names, colours):
            raise ValueError(problem)
        if class_names is None:
            return cls()
        return cls(list(class_names), None if colours is None else [list(colour) for colour in colours])

    def codec(self) -> dict[str, Any]:
        """Lossless compression of the label's bytes."""
        return {
            "name": f"{self.dtype}-zstd",
            "version": 1,
            "dtype": self.dtype,
            "shape": "H W",
            "step": 0,
            "invalid": self.ignore,
            "resize": "nearest",
            "class_names": self.class_names,
            **({} if self.colours is None else {"colours": self.colours}),
        }

    def encode(self, label: np.ndarray) -> bytes:
        if label.ndim != 2 or label.dtype != self.dtype or not label.size:
            raise ValueError(f"segmentation is {self.dtype} [H, W], got {label.dtype} {list(label.shape)}")
        valid = label[label != self.ignore]
        if not valid.size:
            raise ValueError("every pixel is invalid")
        self._check_classes(valid)
        return pack(label)

    def _check_classes(self, valid: np.ndarray) -> None:
        if valid.max(initial=0) >= self.channels:
            raise ValueError(f"class {valid.max()} is not one of 0..{self.channels - 1}")

    def decode(self, payload: bytes, height: int, width: int) -> np.ndarray:
        return unpack(payload, height, width, self.dtype)

    def scalars(self, label: np.ndarray) -> dict[str, float]:
        """`coverage`: share of valid pixels; `foreground`, if class 0 is background: share of pixels of others."""
        valid = label != self.ignore
        scalars = {"coverage": float(np.mean(valid))}
        if self.class_names[0] == BACKGROUND:
            scalars["foreground"] = float(np.mean((label != 0) & valid))
        return scalars

    def resize(self, label: np.ndarray, height: int, width: int) -> np.ndarray:
        return take_nearest(label, WHOLE, height, width)

    def crop(self, label: np.ndarray, view: View, size: int) -> np.ndarray:
        return take_nearest(label, view, size, size)

    def missing(self, size: int) -> np.ndarray:
        return np.full((size, size), self.ignore, self.dtype)

    def loss(
        self, prediction_BCHW: torch.Tensor, target_B: torch.Tensor, weight_BHW: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Cross-entropy, averaged over the valid pixels of the batch; 0 if there are none. weight_BHW: of each pixel's
        loss, 0..1."""
        from torch.nn import functional

        target_B = target_B.long()
        if weight_BHW is not None:
            loss_BHW = functional.cross_entropy(
                prediction_BCHW.float(), target_B, ignore_index=self.ignore, reduction="none"
            )
            return batch_mean((weight_BHW * loss_BHW).sum(), (target_B != self.ignore).sum())
        total = functional.cross_entropy(prediction_BCHW.float(), target_B, ignore_index=self.ignore, reduction="sum")
        return batch_mean(total, (target_B != self.ignore).sum())

    def agreement(self, target_B: torch.Tensor, other_B: torch.Tensor) -> torch.Tensor:
        """1 for equal classes, else `DISAGREEMENT`."""
        import torch

        a, b = (target if target.ndim == 3 else target[..., 0] for target in (target_B.long(), other_B.long()))
        agree = (a == b) | (a == self.ignore) | (b == self.ignore)
        return torch.where(agree, 1.0, DISAGREEMENT)

    def predicted(self, output_CHW: np.ndarray) -> np.ndarray:
        """The class with the highest score."""
        return output_CHW.argmax(axis=0).astype(self.dtype)

    def quality(self, pairs: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
        """`mIoU` over the classes that occur and `aAcc`, in percent, from one confusion matrix of all pairs. Pixels
        whose truth is `ignore` are left out; elsewhere a prediction of `ignore` counts as wrong."""
        counts = np.zeros((self.channels, self.channels + 1), np.int64)
        for predicted, truth in pairs:
            valid = truth != self.ignore
            self._check_classes(truth[valid])
            columns = np.minimum(predicted[valid].astype(np.int64), self.channels)
            cells = truth[valid].astype(np.int64) * (self.channels + 1) + columns
            counts += np.bincount(cells, minlength=counts.size).reshape(counts.shape)
        hits = np.diag(counts)
        union = counts.sum(axis=1) + counts[:, : self.channels].sum(axis=0) - hits
        if not union.any():
            raise ValueError("no valid pixel to evaluate")
        present = union > 0
        return {
            "mIoU": float(100 * np.mean(hits[present] / union[present])),
            "aAcc": float(100 * hits.sum() / counts.sum()),
        }

    def picture(self, label: np.ndarray) -> np.ndarray:
        colours = palette(max(self.channels, Segmentation.channels))
        if self.colours is not None:
            colours = colours.copy()
            colours[: self.channels] = self.colours
        return colours[label]


def _problem(class_names: Any, colours: Any) -> str | None:
    """What is wrong with the class names and colours of a file or an expert; None if nothing is."""
    if class_names is None:
        return None if colours is None else "colours: there are no class_names"
    if not isinstance(class_names, list | tuple) or not 2 <= len(class_names) <= MAX_CLASSES:
        found = len(class_names) if isinstance(class_names, list | tuple) else type(class_names).__name__
        return f"class_names: must be a list of 2 to {MAX_CLASSES} names, got {found}"
    numbers: dict[str, int] = {}
    for number, name in enumerate(class_names):
        if not isinstance(name, str) or not name.strip() or len(name) > MAX_NAME_CHARACTERS or not name.isprintable():
            return (
                f"class_names: {str(name)[:40]!r} (class {number}) is not a printable name of at most"
                f" {MAX_NAME_CHARACTERS} characters"
            )
        if numbers.setdefault(name, number) != number:
            return f"class_names: {name!r} is the name of class {numbers[name]} and of class {number}"
    if colours is None:
        return None
    if not isinstance(colours, list | tuple) or len(colours) != len(class_names):
        return f"colours: must be a list of one colour for each of the {len(class_names)} classes"
    for number, colour in enumerate(colours):
        whole = isinstance(colour, list | tuple) and all(type(part) is int and 0 <= part <= 255 for part in colour)
        if not whole or len(colour) != 3:
            return f"colours: {str(colour)[:40]} (class {number}) is not [red, green, blue] in 0..255"
    return None


@cache
def palette(classes: int = Segmentation.channels) -> np.ndarray:
    """uint8 [256 or, above 255 classes, 65536, 3]: a fixed colour for each class, and `INVALID_COLOUR` beyond.

    Chosen to be distinct also with red-green colour blindness, and the first ones the same for any number: by
    farthest-point sampling in Oklab (Ottosson 2020); the distance of two colours is the smallest over normal vision and
    the protanopia and deuteranopia of Machado et al. 2009. Eighty colours cannot all be distinguished by eye; those of
    the first, frequent classes can."""
    vision = np.array(
        [
            [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
            [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
            [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        ]
    )

    def perceived(srgb: np.ndarray) -> np.ndarray:
        """Oklab coordinates [3 kinds of vision, N, 3]."""
        linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
        linear = np.clip(np.einsum("kij,nj->kni", vision, linear), 0, 1)
        to_lms = [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566]]
        to_lms.append([0.0883024619, 0.2817188376, 0.6299787005])
        to_lab = [[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099]]
        to_lab.append([0.0259040371, 0.7827717662, -0.8086757660])
        return np.cbrt(linear @ np.transpose(to_lms)) @ np.transpose(to_lab)

    levels = np.linspace(0, 1, 13)
    candidates = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    lab = perceived(candidates)
    candidates, lab = (part[..., (lab[0, :, 0] > 0.35) & (lab[0, :, 0] < 0.92), :] for part in (candidates, lab))
    reserved = np.array([BACKGROUND_COLOUR, INVALID_COLOUR]) / 255
    nearest = np.full(len(candidates), np.inf)
    for colour in perceived(reserved).swapaxes(0, 1):
        nearest = np.minimum(nearest, np.linalg.norm(lab - colour[:, None], axis=-1).min(axis=0))
    colours = np.full((256 if classes <= IGNORE else 65536, 3), INVALID_COLOUR, np.uint8)
    colours[0] = BACKGROUND_COLOUR
    for index in range(1, classes):
        best = int(np.argmax(nearest))
        colours[index] = np.round(candidates[best] * 255)
        nearest = np.minimum(nearest, np.linalg.norm(lab - lab[:, best, None], axis=-1).min(axis=0))
    return colours


PLUGIN = Segmentation
