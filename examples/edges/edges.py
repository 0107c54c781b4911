"""A custom task and a custom expert, defined outside the package: edges, labelled by Canny's detector (no weights).

In the config they are named by import path: `edges:Edges` and `edges:Canny`.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from cliptex.config import Section
from cliptex.experts.base import Expert
from cliptex.experts.options import parse_options
from cliptex.tasks.base import Task, View
from cliptex.tasks.grid import WHOLE, area_mean

if TYPE_CHECKING:
    import torch

INVALID_CODE = 255
TOP_CODE = 254


class Edges(Task):
    """Share of each pixel that is an edge: float32 [H, W] in 0..1, NaN = invalid."""

    name = "edges"
    channels = 1

    def codec(self) -> dict[str, Any]:
        return {
            "name": "uint8-zlib",
            "version": 1,
            "dtype": "float32",
            "shape": "H W",
            "step": f"1/{TOP_CODE}",
            "invalid": f"NaN (code {INVALID_CODE})",
            "resize": "mean over the valid area",
        }

    def encode(self, label: np.ndarray) -> bytes:
        if label.ndim != 2 or label.dtype != np.float32 or not label.size:
            raise ValueError(f"edges are float32 [H, W], got {label.dtype} {list(label.shape)}")
        valid = np.isfinite(label)
        if not valid.any():
            raise ValueError("every pixel is invalid")
        codes = np.full(label.shape, INVALID_CODE, np.uint8)
        codes[valid] = np.rint(np.clip(label[valid], 0, 1) * TOP_CODE)
        return zlib.compress(codes.tobytes())

    def decode(self, payload: bytes, height: int, width: int) -> np.ndarray:
        try:
            codes = np.frombuffer(zlib.decompress(payload), np.uint8).reshape(height, width)
        except zlib.error as error:
            raise ValueError(f"payload is damaged ({error})") from error
        return np.where(codes == INVALID_CODE, np.float32(np.nan), codes.astype(np.float32) / TOP_CODE)

    def scalars(self, label: np.ndarray) -> dict[str, float]:
        """`coverage`: share of valid pixels; `edges`: mean over them."""
        valid = np.isfinite(label)
        return {"coverage": float(valid.mean()), "edges": float(label[valid].mean()) if valid.any() else 0.0}

    def resize(self, label: np.ndarray, height: int, width: int) -> np.ndarray:
        return area_mean(label[..., None], np.isfinite(label), WHOLE, height, width)[..., 0]

    def crop(self, label: np.ndarray, view: View, size: int) -> np.ndarray:
        # edges have no direction, so a flip only moves them; nearest-neighbour sampling would lose thin lines
        return area_mean(label[..., None], np.isfinite(label), view, size, size)[..., 0]

    def missing(self, size: int) -> np.ndarray:
        return np.full((size, size), np.nan, np.float32)

    def loss(self, prediction_BCHW: torch.Tensor, target_B: torch.Tensor) -> torch.Tensor:
        """Class-balanced cross-entropy, since few pixels are edges (equation 2 of Xie and Tu, ICCV 2015)."""
        import torch
        from torch.nn import functional

        target_BHW, logit_BHW = target_B.float(), prediction_BCHW[:, 0].float()
        valid_BHW = target_BHW.isfinite()
        target_BHW = torch.where(valid_BHW, target_BHW, 0.0)
        edge_share = (target_BHW.sum() / valid_BHW.sum().clamp(min=1)).clamp(0.01, 0.99)
        weight_BHW = target_BHW * (1 - edge_share) + (1 - target_BHW) * edge_share
        loss_BHW = functional.binary_cross_entropy_with_logits(logit_BHW, target_BHW, weight_BHW, reduction="none")
        return torch.where(valid_BHW, loss_BHW, 0.0).sum() / torch.where(valid_BHW, weight_BHW, 0.0).sum().clamp(
            min=1e-6
        )

    def quality(self, pairs: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
        """`absolute`: mean absolute difference over the pixels valid in both."""
        differences = [np.abs(a - b)[np.isfinite(a) & np.isfinite(b)] for a, b in pairs]
        return {"absolute": float(np.concatenate(differences).mean())}

    def picture(self, label: np.ndarray) -> np.ndarray:
        grey = np.rint(255 * (1 - np.nan_to_num(label, nan=0.75))).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=-1)


class CannyOptions(Section):
    """Options of the expert, in the config's `network`."""

    blur_px: float = 1.0
    """Standard deviation of the Gaussian blur that is applied first, pixels."""
    low: float = 40.0
    """Lower threshold of the gradient: such pixels are edges if connected to one above `high`."""
    high: float = 90.0
    """Upper threshold of the gradient: such pixels are edges."""


class Canny(Expert):
    """Canny's edge detector (PAMI 1986), by OpenCV."""

    task = "edges"
    trainable = False  # no weights

    def __init__(self, settings: dict[str, Any]):
        super().__init__(settings)
        self.options = parse_options(CannyOptions, settings.get("network", {}), "network")

    def load(self, weights: Path | None) -> None:
        pass

    def predict(self, images: list[np.ndarray], keys: list[str]) -> list[np.ndarray]:
        options, labels = self.options, []
        for image in images:
            grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
            if options.blur_px:
                grey = cv2.GaussianBlur(grey, (0, 0), options.blur_px)
            labels.append((cv2.Canny(grey, options.low, options.high, L2gradient=True) > 0).astype(np.float32))
        return labels
