"""Dense features of a frozen teacher: float32 [h, w, dims] on a coarse grid over the image, NaN = invalid.

Channels are the teacher's principal components after its mean, divided by one number, so that their mean variance is 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Annotated, Any, Self

import numpy as np
from pydantic import Field

from cliptex.tasks import grid
from cliptex.tasks.base import LossOptions, Task, View
from cliptex.tasks.batch_mean import batch_mean

if TYPE_CHECKING:
    import torch

DIMS, GRID = 64, (14, 14)
LIMIT, INVALID = 127, -128
SIGMAS = 5.0
"""Standard deviations of a channel at which its codes end."""
SHOWN_SIGMAS = 2.5
LEAST_LENGTH = 0.1
"""Of features in the cosine, relative to the average one's: heads start at 0, where the cosine has no gradient."""
MAX_DIMS = 1 << 14


@dataclass(frozen=True, kw_only=True)
class FeaturesLoss(LossOptions):
    """Options of the loss."""

    cosine_weight: Annotated[float, Field(ge=0)] = 0.5
    """Weight of 1 minus the cosine similarity."""
    l1_weight: Annotated[float, Field(ge=0)] = 0.5
    """Weight of the smooth L1 distance, which also compares lengths."""


class TeacherFeatures(Task):
    """The channels are not whitened: a cosine over them is close to the one over all of the teacher's channels."""

    name = "features"
    aligned = False
    options = FeaturesLoss()

    def __init__(self, parameters: Mapping[str, Any] | None = None):
        given = dict(parameters or {})
        self.channels: int = given.get("dims", DIMS)
        self.grid: list[int] = given.get("grid", list(GRID))
        self.scales: list[float] = given.get("scales", [SIGMAS / LIMIT] * self.channels)
        self.teacher: dict[str, Any] = given.get("teacher", {})
        self._scales = np.array(self.scales, np.float32)

    @classmethod
    def from_codec(cls, codec: Mapping[str, Any]) -> Self:
        """With the codec's `dims`, `grid`, `scales` and `teacher`; the defaults if any of them is not what it should
        be, so that comparing codecs finds the difference."""
        given = {key: codec[key] for key in ("dims", "grid", "scales", "teacher") if key in codec}
        dims, scales = given.get("dims"), given.get("scales")
        right = (
            type(dims) is int
            and 0 < dims <= MAX_DIMS
            and isinstance(scales, list)
            and len(scales) == dims
            and all(isinstance(scale, float) and isfinite(scale) and scale > 0 for scale in scales)
            and _is_grid(given.get("grid"))
            and isinstance(given.get("teacher"), dict)
        )
        return cls(given if right else None)

    def codec(self) -> dict[str, Any]:
        """Linear for each channel, clipped at 5 standard deviations. `teacher` has `name`, `width` (its channels),
        `variance_kept` and `pca_sha256`."""
        return {
            "name": "linear-int8-zstd",
            "version": 1,
            "dtype": "float32",
            "shape": "H W D",
            "dims": self.channels,
            "grid": self.grid,
            "scales": self.scales,
            "step": "scale of the channel",
            "invalid": f"NaN (code {INVALID} in every channel)",
            "resize": "bilinear with antialiasing over the valid area",
            "frame": "a grid over the whole image; principal components of the teacher's patch tokens less their mean",
            "teacher": self.teacher,
        }

    def encode(self, label: np.ndarray) -> bytes:
        if label.ndim != 3 or label.dtype != np.float32 or label.shape[2] != self.channels or not label.size:
            raise ValueError(f"features are float32 [h, w, {self.channels}], got {label.dtype} {list(label.shape)}")
        valid = np.isfinite(label).all(axis=-1)
        if not valid.any():
            raise ValueError("every cell is invalid")
        codes = np.full(label.shape, INVALID, np.int8)
        codes[valid] = np.clip(np.rint(label[valid] / self._scales), -LIMIT, LIMIT)
        return grid.pack(codes.view(np.uint8))

    def decode(self, payload: bytes, height: int, width: int) -> np.ndarray:
        codes = grid.unpack(payload, height, width * self.channels).view(np.int8).reshape(height, width, self.channels)
        label = codes * self._scales
        label[codes[..., 0] == INVALID] = np.nan
        return label

    def scalars(self, label: np.ndarray) -> dict[str, float]:
        """`coverage`: share of valid cells; `clipped`: share of their values that are beyond the codes."""
        valid = np.isfinite(label).all(axis=-1)
        beyond = np.abs(label[valid]) > (LIMIT + 0.5) * self._scales
        return {"coverage": float(valid.mean()), "clipped": float(beyond.mean()) if valid.any() else 0.0}

    def resize(self, label: np.ndarray, height: int, width: int) -> np.ndarray:
        return _resampled(label, grid.WHOLE, height, width)

    def crop(self, label: np.ndarray, view: View, size: int) -> np.ndarray:
        """At most as many cells a side as the stored grid has: more would have the same content."""
        return _resampled(label, view, self._side(size), self._side(size))

    def missing(self, size: int) -> np.ndarray:
        return np.full((self._side(size), self._side(size), self.channels), np.nan, np.float32)

    def _side(self, size: int) -> int:
        return min(size, max(self.grid))

    def loss(self, prediction_BCHW: torch.Tensor, target_B: torch.Tensor) -> torch.Tensor:
        """`cosine_weight` times 1 minus the cosine similarity plus `l1_weight` times the smooth L1 distance (mean over
        channels), averaged over the valid cells of the batch: the feature loss of Ranzinger et al. 2024, "AM-RADIO".

        They use 0.9 and 0.1. With so little weight on lengths, a position prior becomes several times as long as the
        mean map that it should be. The head's last layer, a 1x1 convolution, is the linear map from the student's
        features. Lengths in the cosine are at least a tenth of an average feature's.
        """
        import torch
        from torch.nn import functional

        prediction, target = prediction_BCHW.permute(0, 2, 3, 1).float(), target_B.float()
        valid = torch.isfinite(target).all(dim=-1)
        target = torch.where(valid[..., None], target, 0.0)
        least = LEAST_LENGTH * self.channels**0.5
        lengths = prediction.norm(dim=-1).clamp(min=least) * target.norm(dim=-1).clamp(min=least)
        distance = 1 - (prediction * target).sum(-1) / lengths
        smooth = functional.smooth_l1_loss(prediction, target, reduction="none").mean(-1)
        total = self.options.cosine_weight * distance + self.options.l1_weight * smooth
        return batch_mean(torch.where(valid, total, 0.0).sum(), valid.sum())

    def predicted(self, output_CHW: np.ndarray) -> np.ndarray:
        """Features float32 [H, W, dims], as the store has them."""
        return np.ascontiguousarray(np.moveaxis(output_CHW, 0, -1), np.float32)

    def quality(self, pairs: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
        """`cosine`: mean cosine similarity of the cells. `explained_variance`: 1 minus the squared error over the
        squared distance from the truths' mean, over all cells and channels. Cells invalid in either are ignored."""
        predicted, truth = (
            np.concatenate([np.asarray(pair[part], np.float64).reshape(-1, self.channels) for pair in pairs])
            for part in (0, 1)
        )
        valid = np.isfinite(predicted).all(axis=1) & np.isfinite(truth).all(axis=1)
        if not valid.any():
            raise ValueError("no valid cell to evaluate")
        predicted, truth = predicted[valid], truth[valid]
        lengths = np.linalg.norm(predicted, axis=1) * np.linalg.norm(truth, axis=1)
        cosine = np.divide((predicted * truth).sum(axis=1), lengths, out=np.zeros_like(lengths), where=lengths > 0)
        spread = np.square(truth - truth.mean(axis=0)).sum()
        explained = 1 - np.square(predicted - truth).sum() / spread if spread > 0 else 0.0
        return {"cosine": float(cosine.mean()), "explained_variance": float(explained)}

    def picture(self, label: np.ndarray) -> np.ndarray:
        """The first three channels as red, green and blue, 2.5 standard deviations around the mean."""
        shown = np.zeros((*label.shape[:2], 3), np.float32)
        count = min(3, self.channels)
        shown[..., :count] = label[..., :count] / (self._scales[:count] * (LIMIT * SHOWN_SIGMAS / SIGMAS))
        valid = np.isfinite(shown).all(axis=-1)
        colours = np.clip(127.5 + 127.5 * np.where(valid[..., None], shown, 0), 0, 255).astype(np.uint8)
        colours[~valid] = grid.INVALID_COLOUR
        return colours


def _is_grid(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(side) is int and side > 0 for side in value)


def _resampled(label_HWC: np.ndarray, view: View, height: int, width: int) -> np.ndarray:
    """The view of a label, float32 [height, width, C]. A cell of which less than half is valid becomes NaN."""
    valid = np.isfinite(label_HWC).all(axis=-1)
    rows = _bilinear(label_HWC.shape[0], view.top, view.height, height)
    columns = _bilinear(label_HWC.shape[1], view.left, view.width, width)
    if view.flip:
        columns = columns[::-1]
    values = np.where(valid[..., None], label_HWC, np.float32(0))
    out = np.einsum("yh,hwc,xw->yxc", rows, values, columns, optimize=True)
    if not valid.all():
        share = rows @ valid.astype(np.float32) @ columns.T
        out = np.where(share[..., None] >= 0.5, out / np.maximum(share, 0.5)[..., None], np.float32(np.nan))
    return np.ascontiguousarray(out, np.float32)


def _bilinear(cells: int, start: float, length: float, size: int) -> np.ndarray:
    """float32 [size, cells]: weights of bilinear resampling with antialiasing; rows sum to 1."""
    step = length * cells / size
    centres = (np.arange(size) + 0.5) * step + start * cells - 0.5
    weights = 1 - np.abs(np.clip(centres, 0, cells - 1)[:, None] - np.arange(cells)) / max(step, 1.0)
    weights = np.maximum(weights, 0)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


PLUGIN = TeacherFeatures
