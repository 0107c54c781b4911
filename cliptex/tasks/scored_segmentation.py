"""Segmentation with the expert's confidence: [H, W, 2] = class as in `segmentation`, and score * 255.

For experts that give the confidence of each pixel (`mask_rcnn` with `network.keep_scores`). The head is the same as for
`segmentation`; a store is larger by the score plane, which is nearly constant over each object.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cliptex.tasks.base import LossOptions
from cliptex.tasks.batch_mean import batch_mean
from cliptex.tasks.grid import pack, unpack
from cliptex.tasks.segmentation import Segmentation

if TYPE_CHECKING:
    import torch

TOP_SCORE = 255


@dataclass(frozen=True, kw_only=True)
class ScoredSegmentationLoss(LossOptions):
    """Options of the loss."""

    confidence: bool = True
    """Whether a pixel's loss is weighted by the expert's score."""


class ScoredSegmentation(Segmentation):
    """Class and score of each pixel, with cross-entropy weighted by the score."""

    options = ScoredSegmentationLoss()

    def codec(self) -> dict[str, Any]:
        """Lossless compression of both planes, one after the other."""
        codec = {"name": f"{self.dtype}-scored-zstd", "shape": "H W 2", "layout": "class plane, then score plane"}
        return super().codec() | codec | {"score": f"second channel, 0..{TOP_SCORE} for 0..1"}

    def encode(self, label: np.ndarray) -> bytes:
        if label.ndim != 3 or label.shape[2] != 2 or label.dtype != self.dtype or not label.size:
            raise ValueError(
                f"segmentation with scores is {self.dtype} [H, W, 2], got {label.dtype} {list(label.shape)}; an expert"
                " gives it with network.keep_scores"
            )
        super().encode(label[..., 0])
        return pack(np.concatenate([label[..., 0], label[..., 1]]))

    def decode(self, payload: bytes, height: int, width: int) -> np.ndarray:
        return np.moveaxis(unpack(payload, 2 * height, width, self.dtype).reshape(2, height, width), 0, -1)

    def scalars(self, label: np.ndarray) -> dict[str, float]:
        """Those of `segmentation`, and `confidence`: mean score over the valid pixels, 0..1."""
        valid = label[..., 0] != self.ignore
        mean = float(label[..., 1][valid].mean(dtype=np.float64)) / TOP_SCORE if valid.any() else 0.0
        return super().scalars(label[..., 0]) | {"confidence": mean}

    def missing(self, size: int) -> np.ndarray:
        return np.stack([super().missing(size), np.zeros((size, size), self.dtype)], axis=-1)

    def loss(
        self, prediction_BCHW: torch.Tensor, target_B: torch.Tensor, weight_BHW: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Mean over the valid pixels of score * cross-entropy, so that uncertain pixels contribute less."""
        from torch.nn import functional

        classes_BHW, score_BHW = target_B[..., 0].long(), target_B[..., 1].float() / TOP_SCORE
        if not self.options.confidence:
            return super().loss(prediction_BCHW, classes_BHW, weight_BHW)
        if weight_BHW is not None:
            score_BHW = score_BHW * weight_BHW
        loss_BHW = functional.cross_entropy(
            prediction_BCHW.float(), classes_BHW, ignore_index=self.ignore, reduction="none"
        )
        return batch_mean((score_BHW * loss_BHW).sum(), (classes_BHW != self.ignore).sum())

    def classes(self, label: np.ndarray) -> np.ndarray:
        return label[..., 0] if label.ndim == 3 else label

    def quality(self, pairs: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
        """Metrics of `segmentation`; either label may lack scores."""
        return super().quality([(self.classes(predicted), self.classes(truth)) for predicted, truth in pairs])

    def picture(self, label: np.ndarray) -> np.ndarray:
        """The classes, without scores."""
        return super().picture(self.classes(label))


PLUGIN = ScoredSegmentation
