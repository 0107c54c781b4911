"""Surface normals: float32 [H, W, 4] = unit x, y, z in the camera frame and concentration kappa, NaN = invalid.

Camera axes: x right, y down, z forward. The normal has a non-negative dot product with the viewing ray: a wall that
faces the camera is (0, 0, 1), a floor (0, 1, 0). kappa > 0 is the concentration of the angular von Mises-Fisher
distribution (AngMF) of Bae et al. 2021, "Estimating and exploiting the aleatoric uncertainty in surface normal
estimation": density proportional to exp(-kappa * angle); greater is surer.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from cliptex.tasks.base import LossOptions, Task, View
from cliptex.tasks.batch_mean import batch_mean
from cliptex.tasks.grid import INVALID_COLOUR, WHOLE, area_mean, pack_picture, unpack_picture

if TYPE_CHECKING:
    import torch

KAPPA_MIN, KAPPA_MAX = 0.01, 10_000.0
AXIS_CODES = 63
KAPPA_CODES = 48
WITHIN_DEGREES = {"within_11_25": 11.25, "within_22_5": 22.5, "within_30": 30.0}


@dataclass(frozen=True, kw_only=True)
class NormalsLoss(LossOptions):
    """Options of the loss."""

    kind: Literal["cosine", "angmf"] = "cosine"
    """`cosine`: 1 - cos. `angmf`: the negative log-likelihood of the label under the head's own angular von
    Mises-Fisher distribution, whose kappa is a fourth channel."""
    confidence: bool = True
    """Whether a pixel's loss is weighted by how sure the expert is of it, after the label's kappa."""


class Normals(Task):
    """Surface normals, learned by cosine under the expert's own uncertainty."""

    name = "normals"
    options = NormalsLoss()

    @property
    def channels(self) -> int:
        """A direction and, for `angmf`, kappa."""
        return 4 if self.options.kind == "angmf" else 3

    def codec(self) -> dict[str, Any]:
        """Octahedral coordinates (Cigolle et al. 2014) of 7 bits each, and kappa in 48 logarithmic levels."""
        return {
            "name": "octahedral-2x7-kappa-log48-webp",
            "version": 2,
            "dtype": "float32",
            "shape": "H W 4",
            "step": "2 degrees; kappa by a factor of 1.34",
            "layout": "lossless WebP file; red, green: octahedral x, y as 64 + 63 v; blue: kappa code",
            "kappa_range": [KAPPA_MIN, KAPPA_MAX],
            "invalid": "NaN (kappa code 0)",
            "resize": "mean over the valid area, renormalised",
            "frame": "x right, y down, z forward; non-negative dot product with the viewing ray",
        }

    def encode(self, label: np.ndarray) -> bytes:
        """Values that are not of unit length are normalised; zero vectors and those with NaN are invalid."""
        if label.ndim != 3 or label.shape[2] != 4 or label.dtype != np.float32 or not label.size:
            raise ValueError(f"normals are float32 [H, W, 4], got {label.dtype} {list(label.shape)}")
        valid = _valid(label)
        if not valid.any():
            raise ValueError("every pixel is invalid")
        x, y, z, kappa = label[valid].astype(np.float64).T
        length = np.abs(x) + np.abs(y) + np.abs(z)
        x, y = x / length, y / length
        folded_x, folded_y = (1 - np.abs(y)) * np.copysign(1, x), (1 - np.abs(x)) * np.copysign(1, y)
        x, y = np.where(z < 0, folded_x, x), np.where(z < 0, folded_y, y)
        position = np.log(np.clip(kappa, KAPPA_MIN, KAPPA_MAX) / KAPPA_MIN) / np.log(KAPPA_MAX / KAPPA_MIN)
        codes = np.zeros((*valid.shape, 3), np.uint8)
        codes[valid, 0] = np.rint(x * AXIS_CODES) + AXIS_CODES + 1
        codes[valid, 1] = np.rint(y * AXIS_CODES) + AXIS_CODES + 1
        codes[valid, 2] = np.rint(position * (KAPPA_CODES - 1)) + 1
        return pack_picture(codes)

    def decode(self, payload: bytes, height: int, width: int) -> np.ndarray:
        directions, kappas = _tables()
        codes = unpack_picture(payload, height, width)
        label = directions.take((codes[..., 0].astype(np.uint16) << 7) | codes[..., 1], axis=0, mode="clip")
        label[..., 3] = kappas.take(codes[..., 2], mode="clip")
        invalid = codes[..., 2] == 0
        if invalid.any():
            label[invalid] = np.nan
        return label

    def scalars(self, label: np.ndarray) -> dict[str, float]:
        """`coverage`: share of valid pixels; `kappa`: mean concentration over them."""
        valid = _valid(label)
        kappa = np.clip(label[..., 3][valid], KAPPA_MIN, KAPPA_MAX)
        return {"coverage": float(np.mean(valid)), "kappa": float(kappa.mean(dtype=np.float64)) if valid.any() else 0.0}

    def resize(self, label: np.ndarray, height: int, width: int) -> np.ndarray:
        return _resample(label, WHOLE, height, width)

    def crop(self, label: np.ndarray, view: View, size: int) -> np.ndarray:
        return _resample(label, view, size, size)

    def missing(self, size: int) -> np.ndarray:
        return np.full((size, size, 4), np.nan, np.float32)

    def loss(self, prediction_BCHW: torch.Tensor, target_B: torch.Tensor) -> torch.Tensor:
        """Mean over the valid pixels of R(kappa) times the loss of a pixel.

        A pixel's loss is 1 - cos(prediction, label), or with `kind: angmf` the negative log-likelihood of the label
        under the four channels predicted (`cliptex.angular_mf`), which may be negative.

        R(kappa) = (kappa^2 + 1) / (kappa^2 + 4) * tanh(pi * kappa / 2) is the mean cosine between the label and a
        direction drawn from the expert's AngMF (integral of the density of Bae et al. 2021 over the sphere). The
        gradient is hence that of the expected 1 - cos to the unknown true normal, given how sure the expert is: unsure
        pixels pull less, and no threshold is needed. With `confidence: false` every valid pixel has weight 1.
        """
        import torch
        from torch.nn import functional

        from cliptex.angular_mf import MIN_KAPPA, negative_log_likelihood

        normal, kappa = target_B[..., :3].float(), target_B[..., 3].float().clamp(max=KAPPA_MAX)
        valid = torch.isfinite(target_B).all(dim=-1) & (normal.square().sum(dim=-1) > 0)
        normal = functional.normalize(torch.where(valid[..., None], normal, 0.0), dim=-1)
        kappa = torch.where(valid, kappa, 1.0)
        weight = (kappa**2 + 1) / (kappa**2 + 4) * torch.tanh(kappa * (torch.pi / 2)) * valid
        if not self.options.confidence:
            weight = valid.float()
        predicted = functional.normalize(prediction_BCHW[:, :3].float().movedim(1, -1), dim=-1, eps=1e-4)
        cosine = (predicted * normal).sum(dim=-1)
        if self.options.kind == "angmf":
