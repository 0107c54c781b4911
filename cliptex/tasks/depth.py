"""Relative inverse depth: float32 [H, W], larger = nearer, up to scale and shift, NaN = invalid."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field

from cliptex.tasks import grid
from cliptex.tasks.base import LossOptions, Task, View
from cliptex.tasks.batch_mean import batch_mean

if TYPE_CHECKING:
    import torch

LEVELS = 255
AGREEMENT_SCALE = 0.5
"""Of the difference of two maps with mean absolute deviation 1."""
GRADIENT_SCALES = 4
LEAST_SPREAD = 1e-2
LEAST_SCALE = 1e-3


@dataclass(frozen=True, kw_only=True)
class DepthLoss(LossOptions):
    """Options of the loss."""

    alignment: Literal["target", "robust", "least_squares"] = "target"
    """`target`: the head predicts the normalised map. `robust`: the prediction is normalised like the target.
    `least_squares`: the prediction is aligned to the target by scale and shift."""
    gradient_weight: Annotated[float, Field(ge=0)] = 0.5
    """Weight of the gradient term; 0 disables it."""


class Depth(Task):
    """Relative inverse depth, with a scale- and shift-invariant loss."""

    name = "depth"
    channels = 1
    options = DepthLoss()

    def codec(self) -> dict[str, Any]:
        """Linear between the label's minimum and maximum, which are stored in the payload's header."""
        return {
            "name": "linear-uint8-webp",
            "version": 2,
            "dtype": "float32",
            "shape": "H W",
            "levels": LEVELS,
            "step": f"1/{LEVELS - 1} of the label's range",
            "header": "least and greatest value, 2 x float32 little-endian; then a lossless WebP file",
            "invalid": "NaN (code 0)",
            "resize": "mean over the valid area",
            "frame": "relative inverse depth along the optical axis, larger = nearer, up to scale and shift",
        }

    def encode(self, label: np.ndarray) -> bytes:
        if label.ndim != 2 or label.dtype != np.float32 or not label.size:
            raise ValueError(f"depth is float32 [H, W], got {label.dtype} {list(label.shape)}")
        valid = np.isfinite(label)
        if not valid.any():
            raise ValueError("every pixel is invalid")
        values = label[valid].astype(np.float64)
        low, high = values.min(), values.max()
        codes = np.zeros(label.shape, np.uint8)
        scale = (LEVELS - 1) / (high - low) if high > low else 0.0
        codes[valid] = np.rint((values - low) * scale) + 1
        return struct.pack("<ff", low, high) + grid.pack_webp(codes)

    def decode(self, payload: bytes, height: int, width: int) -> np.ndarray:
        low, high = struct.unpack_from("<ff", payload)
        table = np.empty(LEVELS + 1, np.float32)
        table[0] = np.nan
        table[1:] = np.linspace(low, high, LEVELS)
        return table.take(grid.unpack_webp(memoryview(payload)[8:], height, width)[..., 0])

    def scalars(self, label: np.ndarray) -> dict[str, float]:
        """`coverage`: share of valid pixels; `range`: maximum minus minimum."""
        values = label[np.isfinite(label)].astype(np.float64)
        return {
            "coverage": values.size / label.size,
            "range": float(values.max() - values.min()) if values.size else 0.0,
        }

    def resize(self, label: np.ndarray, height: int, width: int) -> np.ndarray:
        return grid.area_mean(label[..., None], np.isfinite(label), grid.WHOLE, height, width)[..., 0]

    def crop(self, label: np.ndarray, view: View, size: int) -> np.ndarray:
        return grid.area_mean(label[..., None], np.isfinite(label), view, size, size)[..., 0]

    def target(self, payload: bytes, height: int, width: int, view: View, size: int) -> np.ndarray:
        """Averages codes instead of values."""
        low, high = struct.unpack_from("<ff", payload)
        codes = grid.unpack_webp_with_torch(memoryview(payload)[8:], height, width)[..., 0]
        (mean,) = grid.area_mean_of_planes(codes[None].astype(np.float32, order="C"), codes != 0, view, size, size)
        position = (mean - 1) / (LEVELS - 1)
        return low * (1 - position) + high * position  # high - low may overflow float32

    def missing(self, size: int) -> np.ndarray:
        return np.full((size, size), np.nan, np.float32)

    def loss(
        self, prediction_BCHW: torch.Tensor, target_B: torch.Tensor, weight_BHW: torch.Tensor | None = None
    ) -> torch.Tensor:
        """L1 loss on the normalised target, plus a multi-scale gradient matching term.

        Equations are those of Ranftl et al. 2020, "Towards robust monocular depth estimation". Each target is
        normalised over its valid pixels to median 0 and mean absolute deviation 1 (eq. 5 and 6), so that the loss is
        the same for a * d + b, a > 0; a constant target becomes 0. By default the head predicts that map. With
        `alignment` the prediction, too, gets a scale and a shift for each image, from the valid pixels. `robust`
        normalises it likewise, with the deviation clamped to at least 0.01, since the gradient diverges as the
        deviation of an untrained head's output goes to 0. `least_squares` minimises the squared error (eq. 2 to 4),
        with the scale clamped to at least 0.001: a negative scale would swap near and far, and at 0 a constant
        prediction would have no gradient. The gradient term is eq. 11, at 4 scales, with weight `gradient_weight`.
        Averages are over the valid pixels of the batch. weight_BHW: of each pixel's error, 0..1, and of each gradient
        the smaller weight of its two pixels.
        """
        import torch

        prediction, target = prediction_BCHW[:, 0].float(), target_B.float()
        valid = torch.isfinite(target)
        target = torch.where(valid, _normalised(target, valid), 0.0)
        if self.options.alignment == "robust":
            deviation, spread, _ = _centred(prediction, valid)
            prediction = (deviation / spread.clamp(min=LEAST_SPREAD)).view_as(prediction)
        elif self.options.alignment == "least_squares":
            prediction = _fitted(prediction, target, valid)
        error = torch.where(valid, prediction - target, 0.0)
        weighted = error if weight_BHW is None else error * weight_BHW
        loss = batch_mean(weighted.abs().sum(), valid.sum())
        for scale in range(GRADIENT_SCALES):
            e, v = error[:, :: 2**scale, :: 2**scale], valid[:, :: 2**scale, :: 2**scale]
            right, down = v[:, :, 1:] & v[:, :, :-1], v[:, 1:] & v[:, :-1]
            if weight_BHW is not None:
                w = weight_BHW[:, :: 2**scale, :: 2**scale]
                right, down = right * w[:, :, 1:].minimum(w[:, :, :-1]), down * w[:, 1:].minimum(w[:, :-1])
            steps = ((e[:, :, 1:] - e[:, :, :-1]).abs() * right).sum() + ((e[:, 1:] - e[:, :-1]).abs() * down).sum()
            loss = loss + self.options.gradient_weight * batch_mean(steps, v.sum())
        return loss

    def agreement(self, target_B: torch.Tensor, other_B: torch.Tensor) -> torch.Tensor:
        """exp(-|a - b| / `AGREEMENT_SCALE`), with both normalised, as in `loss`, over the pixels that both have."""
        import torch

        a, b = target_B.float(), other_B.float()
        valid = torch.isfinite(a) & torch.isfinite(b)
        distance = (_normalised(a, valid) - _normalised(b, valid)).abs()
        return torch.where(valid, torch.exp(-distance / AGREEMENT_SCALE), 1.0)

    def predicted(self, output_CHW: np.ndarray) -> np.ndarray:
        """Relative inverse depth, up to scale and shift."""
        return np.ascontiguousarray(output_CHW[0], np.float32)

    def quality(self, pairs: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
        """`delta1` (percent of pixels with ratio below 1.25) and `absrel`, pooled over the pixels of all pairs. Each
        prediction is aligned to its truth by scale and shift, with least squares in inverse depth (Ranftl et al. 2020,
        section 5), and clamped to the truth's farthest pixel. Both maps are inverse depth. Pixels where the truth is
        invalid or 0 (sky) or the prediction is invalid are ignored."""
        close, error, count = 0, 0.0, 0
        for predicted, truth in pairs:
            valid = np.isfinite(predicted) & np.isfinite(truth) & (truth > 0)
            if not valid.any():
                continue
            p, t = predicted[valid].astype(np.float64), truth[valid].astype(np.float64)
            design = np.stack([p, np.ones_like(p)], axis=1)
            p = np.maximum(design @ np.linalg.lstsq(design, t, rcond=None)[0], t.min())
            ratio = t / p  # predicted depth over true depth
            close += int(np.sum(np.maximum(ratio, 1 / ratio) < 1.25))
            error += float(np.abs(ratio - 1).sum())
            count += p.size
        if not count:
            raise ValueError("no valid pixel to evaluate")
        return {"delta1": 100 * close / count, "absrel": error / count}

    def picture(self, label: np.ndarray) -> np.ndarray:
        """Viridis, near = bright, between the 1st and the 99th percentile of the valid pixels."""
        from matplotlib import colormaps

        valid = np.isfinite(label)
        out = np.full((*label.shape, 3), grid.INVALID_COLOUR, np.uint8)
        if valid.any():
            values = label[valid].astype(np.float64)
            low, high = np.percentile(values, [1, 99])
            shares = np.clip((values - low) / (high - low), 0, 1) if high > low else np.full_like(values, 0.5)
            out[valid] = colormaps["viridis"](shares, bytes=True)[:, :3]
        return out


def _normalised(target_BHW: torch.Tensor, valid_BHW: torch.Tensor) -> torch.Tensor:
    """Maps with median 0 and mean absolute deviation 1 over each image's valid pixels; 0 for a constant map."""
    import torch

    deviation, spread, median = _centred(target_BHW, valid_BHW)
    # a smaller deviation is rounding noise of a constant map
    flat = spread <= 1e-6 * median.abs()
    return torch.where(flat, 0.0, deviation / torch.where(flat, 1.0, spread)).view_as(target_BHW)


def _centred(values_BHW: torch.Tensor, valid_BHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Over each image's valid pixels: values minus median [B, HW] (0 elsewhere), mean absolute deviation and median."""
    import torch

    values, valid = values_BHW.flatten(1), valid_BHW.flatten(1)
    median = torch.where(valid, values, torch.nan).nanmedian(dim=1, keepdim=True).values.nan_to_num()
    deviation = torch.where(valid, values - median, 0.0)
    spread = deviation.abs().sum(dim=1, keepdim=True) / valid.sum(dim=1, keepdim=True).clamp(min=1)
    return deviation, spread, median


def _fitted(prediction_BHW: torch.Tensor, target_BHW: torch.Tensor, valid_BHW: torch.Tensor) -> torch.Tensor:
    """scale * prediction + shift for each image, the least-squares fit to its target over the valid pixels."""
    valid = valid_BHW.flatten(1).float()
    count = valid.sum(dim=1, keepdim=True).clamp(min=1)
    p, t = prediction_BHW.flatten(1), target_BHW.flatten(1)
    p_mean, t_mean = ((values * valid).sum(dim=1, keepdim=True) / count for values in (p, t))
    p = (p - p_mean) * valid
    scale = (p * (t - t_mean)).sum(dim=1, keepdim=True) / (p.square().sum(dim=1, keepdim=True) + 1e-6 * count)
    return (scale.clamp(min=LEAST_SCALE) * p + t_mean).view_as(prediction_BHW)


PLUGIN = Depth
