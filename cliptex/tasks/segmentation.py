"""Semantic segmentation: uint8 [H, W], 0 = background, 1..80 = the COCO classes in official order, 255 = ignore."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from cliptex.benchmarks.coco_names import coco_categories
from cliptex.tasks.base import Task, View
from cliptex.tasks.batch_mean import batch_mean
from cliptex.tasks.grid import INVALID_COLOUR, WHOLE, pack, take_nearest, unpack

if TYPE_CHECKING:
    import torch

IGNORE = 255
BACKGROUND_COLOUR = (232, 232, 232)


class Segmentation(Task):
    """Class of each pixel, with cross-entropy."""

    name = "segmentation"
    channels = 81

    def __init__(self) -> None:
        self.class_names = ["background", *(name for _, name, _ in coco_categories())]

    def codec(self) -> dict[str, Any]:
        """Lossless compression of the label's bytes."""
        return {
            "name": "uint8-zstd",
            "version": 1,
            "dtype": "uint8",
            "shape": "H W",
            "step": 0,
            "invalid": IGNORE,
            "resize": "nearest",
            "class_names": self.class_names,
        }

    def encode(self, label: np.ndarray) -> bytes:
        if label.ndim != 2 or label.dtype != np.uint8 or not label.size:
            raise ValueError(f"segmentation is uint8 [H, W], got {label.dtype} {list(label.shape)}")
        valid = label[label != IGNORE]
        if not valid.size:
            raise ValueError("every pixel is invalid")
        if valid.max() >= self.channels:
            raise ValueError(f"class {valid.max()} is not one of 0..{self.channels - 1}")
        return pack(label)

    def decode(self, payload: bytes, height: int, width: int) -> np.ndarray:
        return unpack(payload, height, width)

    def scalars(self, label: np.ndarray) -> dict[str, float]:
        """`coverage`: share of valid pixels; `foreground`: share of pixels of a class other than background."""
        return {
            "coverage": float(np.mean(label != IGNORE)),
            "foreground": float(np.mean((label != 0) & (label != IGNORE))),
        }

    def resize(self, label: np.ndarray, height: int, width: int) -> np.ndarray:
        return take_nearest(label, WHOLE, height, width)

    def crop(self, label: np.ndarray, view: View, size: int) -> np.ndarray:
        return take_nearest(label, view, size, size)

    def missing(self, size: int) -> np.ndarray:
        return np.full((size, size), IGNORE, np.uint8)

    def loss(self, prediction_BCHW: torch.Tensor, target_B: torch.Tensor) -> torch.Tensor:
        """Cross-entropy, averaged over the valid pixels of the batch; 0 if there are none."""
        from torch.nn import functional

        total = functional.cross_entropy(prediction_BCHW.float(), target_B.long(), ignore_index=IGNORE, reduction="sum")
        return batch_mean(total, (target_B != IGNORE).sum())

    def predicted(self, output_CHW: np.ndarray) -> np.ndarray:
        """The class with the highest score."""
        return output_CHW.argmax(axis=0).astype(np.uint8)

    def quality(self, pairs: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
        """`mIoU` over the classes that occur and `aAcc`, in percent, from one confusion matrix of all pairs. Pixels
        whose truth is 255 are ignored; elsewhere a prediction of 255 counts as wrong."""
        counts = np.zeros((self.channels, self.channels + 1), np.int64)
        for predicted, truth in pairs:
            valid = truth != IGNORE
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
        return palette()[label]


@cache
def palette() -> np.ndarray:
    """uint8 [256, 3], a fixed colour for each class, chosen to be distinct also with red-green colour blindness.
    Farthest-point sampling in Oklab (Ottosson 2020); the distance of two colours is the smallest over normal vision and
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
    colours = np.full((256, 3), INVALID_COLOUR, np.uint8)
    colours[0] = BACKGROUND_COLOUR
    for index in range(1, Segmentation.channels):
        best = int(np.argmax(nearest))
        colours[index] = np.round(candidates[best] * 255)
        nearest = np.minimum(nearest, np.linalg.norm(lab - lab[:, best, None], axis=-1).min(axis=0))
    return colours


PLUGIN = Segmentation
