"""Surface normals: float32 [H, W, 4] = unit x, y, z in the camera frame and concentration kappa, NaN = invalid.

Camera axes: x right, y down, z forward. The normal has a non-negative dot product with the viewing ray: a wall that
faces the camera is (0, 0, 1), a floor (0, 1, 0). kappa > 0 is the concentration of the angular von Mises-Fisher
distribution (AngMF) of Bae et al. 2021, "Estimating and exploiting the aleatoric uncertainty in surface normal
estimation": density proportional to exp(-kappa * angle); larger kappa = more certain.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from cliptex.tasks import grid
from cliptex.tasks.base import LossOptions, Task, View
from cliptex.tasks.batch_mean import batch_mean

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
    """`cosine`: 1 - cos. `angmf`: the negative log-likelihood of the label under the angular von Mises-Fisher
    distribution that the head predicts, with kappa as fourth channel."""
    confidence: bool = True
    """Whether a pixel's loss is weighted by the expert's certainty, a function of the label's kappa."""


class Normals(Task):
    """Surface normals, with a cosine loss weighted by the expert's certainty."""

    name = "normals"
    options = NormalsLoss()

    @property
    def channels(self) -> int:
        """3 for the direction; with `angmf` a fourth for kappa."""
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
        """Normals are normalised to unit length; zero vectors and those with NaN are invalid."""
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
        return grid.pack_webp(codes)

    def decode(self, payload: bytes, height: int, width: int) -> np.ndarray:
        directions, kappas = _tables()
        codes = grid.unpack_webp(payload, height, width)
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
        return _resample(label, grid.WHOLE, height, width)

    def crop(self, label: np.ndarray, view: View, size: int) -> np.ndarray:
        return _resample(label, view, size, size)

    def target(self, payload: bytes, height: int, width: int, view: View, size: int) -> np.ndarray:
        """Decodes to planes, without assembling the label."""
        *axes, kappas = _plane_tables()
        codes = grid.unpack_webp_with_torch(payload, height, width)
        planes = np.empty((4, height, width), np.float32)
        both = (codes[..., 0].astype(np.intp) << 7) | codes[..., 1]
        for axis, plane in zip(axes, planes[:3], strict=True):
            axis.take(both, out=plane, mode="clip")
        kappas.take(codes[..., 2], out=planes[3], mode="clip")
        return _resampled(planes, codes[..., 2] != 0, view, size, size)

    def missing(self, size: int) -> np.ndarray:
        return np.full((size, size, 4), np.nan, np.float32)

    def loss(
        self, prediction_BCHW: torch.Tensor, target_B: torch.Tensor, weight_BHW: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Mean over the valid pixels of R(kappa) times the loss of a pixel.

        The loss of a pixel is 1 - cos(prediction, label), or with `kind: angmf` the negative log-likelihood of the
        label under the predicted distribution (`cliptex.tasks.angular_mf`), which may be negative.

        R(kappa) = (kappa^2 + 1) / (kappa^2 + 4) * tanh(pi * kappa / 2) is the mean cosine between the label and a
        direction drawn from the expert's AngMF (integral of the density of Bae et al. 2021 over the sphere). The
        gradient is hence that of the expected 1 - cos to the unknown true normal, under the expert's distribution:
        uncertain pixels contribute less, without a threshold. With `confidence: false` every valid pixel has weight 1.
        weight_BHW: a further factor of each pixel's loss, 0..1.
        """
        import torch
        from torch.nn import functional

        from cliptex.tasks.angular_mf import MIN_KAPPA, negative_log_likelihood

        normal, kappa = target_B[..., :3].float(), target_B[..., 3].float().clamp(max=KAPPA_MAX)
        valid = torch.isfinite(target_B).all(dim=-1) & (normal.square().sum(dim=-1) > 0)
        normal = functional.normalize(torch.where(valid[..., None], normal, 0.0), dim=-1)
        kappa = torch.where(valid, kappa, 1.0)
        weight = (kappa**2 + 1) / (kappa**2 + 4) * torch.tanh(kappa * (torch.pi / 2)) * valid
        if not self.options.confidence:
            weight = valid.float()
        if weight_BHW is not None:
            weight = weight * weight_BHW
        predicted = functional.normalize(prediction_BCHW[:, :3].float().movedim(1, -1), dim=-1, eps=1e-4)
        cosine = (predicted * normal).sum(dim=-1)
        if self.options.kind == "angmf":
            own_kappa = functional.elu(prediction_BCHW[:, 3].float()) + 1 + MIN_KAPPA
            nll = torch.where(valid, negative_log_likelihood(cosine, own_kappa), 0.0)
            return batch_mean((weight * nll).sum(), valid.sum())
        return batch_mean((weight * (1 - cosine)).sum(), valid.sum())

    def agreement(self, target_B: torch.Tensor, other_B: torch.Tensor) -> torch.Tensor:
        """Cosine of the angle between the normals, at least 0."""
        import torch
        from torch.nn import functional

        a, b = target_B[..., :3].float(), other_B[..., :3].float()
        cosine = (functional.normalize(a, dim=-1) * functional.normalize(b, dim=-1)).sum(dim=-1)
        lengths = a.square().sum(dim=-1) * b.square().sum(dim=-1)
        return torch.where(torch.isfinite(cosine) & (lengths > 0), cosine.clamp(0, 1), 1.0)

    def predicted(self, output_CHW: np.ndarray) -> np.ndarray:
        """Unit normals and the predicted kappa, or kappa = 1 if the head does not predict it; NaN for zero vectors."""
        import torch

        from cliptex.tasks.angular_mf import norm_normalize

        output = np.asarray(output_CHW, np.float32)
        without_kappa = len(output) == 3
        if without_kappa:
            output = np.concatenate([output, np.zeros_like(output[:1])])
        label = norm_normalize(torch.from_numpy(output), 0).movedim(0, -1).numpy()
        if without_kappa:
            label[..., 3] = 1
        label[~np.any(label[..., :3], axis=-1)] = np.nan
        return np.ascontiguousarray(label)

    def differs(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Directions more than 5 degrees apart (two steps of the codec), kappa by a factor of more than 2, or only one
        valid."""
        cosine = np.einsum("hwc,hwc->hw", a[..., :3], b[..., :3])
        with np.errstate(invalid="ignore"):
            close = (cosine >= np.cos(np.radians(5))) & (np.abs(np.log2(a[..., 3] / b[..., 3])) <= 1)
        return np.where(_valid(a) & _valid(b), ~close, _valid(a) != _valid(b))

    def quality(self, pairs: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
        """Angular error `mean`, `median` (degrees) and `within_*` (percent) over the pixels of all pairs. The truth may
        be [H, W, 3] or [H, W, 4]. If predictions have kappa, also the mean error of each quartile of the pixels by
        kappa, `error_kappa_q1` (least certain) to `error_kappa_q4`."""
        errors, kappas = [], []
        for predicted, truth in pairs:
            valid = _valid(predicted) & _valid(truth)
            p, t = predicted[valid].astype(np.float64), truth[valid].astype(np.float64)
            lengths = np.linalg.norm(p[:, :3], axis=1) * np.linalg.norm(t[:, :3], axis=1)
            cosine = np.sum(p[:, :3] * t[:, :3], axis=1) / lengths
            errors.append(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
            kappas.append(p[:, 3:])
        error = np.concatenate(errors) if errors else np.empty(0)
        if not error.size:
            raise ValueError("no valid pixel to evaluate")
        metrics = {"mean": float(error.mean()), "median": float(np.median(error))}
        metrics |= {name: float(100 * np.mean(error < limit)) for name, limit in WITHIN_DEGREES.items()}
        if all(kappa.shape[1] for kappa in kappas) and error.size >= 4:
            order = np.argsort(np.concatenate(kappas)[:, 0], kind="stable")
            quarters = np.array_split(error[order], 4)
            metrics |= {f"error_kappa_q{i}": float(quarter.mean()) for i, quarter in enumerate(quarters, start=1)}
        return metrics

    def picture(self, label: np.ndarray) -> np.ndarray:
        """The usual colours: red, green, blue = right, up, towards the viewer for the outward normal."""
        valid = _valid(label)
        out = np.full((*valid.shape, 3), grid.INVALID_COLOUR, np.uint8)
        out[valid] = np.rint((np.clip(label[valid][:, :3], -1, 1) * (-1, 1, 1) + 1) * 127.5)
        return out


def _valid(label_HWC: np.ndarray) -> np.ndarray:
    """bool [H, W]: whether the normal is finite and not zero and, if there is a fourth channel, kappa is finite."""
    with np.errstate(invalid="ignore"):  # an infinite kappa times 0 is NaN, and so invalid
        length = np.abs(label_HWC) @ np.array([1, 1, 1, 0], np.float32)[: label_HWC.shape[-1]]
    return (length > 0) & (length < np.inf)


def _resample(label: np.ndarray, view: View, height: int, width: int) -> np.ndarray:
    valid = _valid(label)
    planes = np.where(valid, np.moveaxis(label, -1, 0), np.float32(0))
    return _resampled(planes, valid, view, height, width)


def _resampled(planes_CHW: np.ndarray, valid_HW: np.ndarray, view: View, height: int, width: int) -> np.ndarray:
    """Mean direction and mean kappa over the valid area; NaN where directions cancel."""
    out = grid.area_mean_of_planes(planes_CHW, valid_HW, view, height, width)
    length = np.sqrt(np.einsum("chw,chw->hw", out[:3], out[:3]))
    cancelled = length < 1e-3
    if cancelled.any():
        out[:, cancelled], length[cancelled] = np.nan, np.nan
    out[:3] /= length
    if view.flip:
        out[0] *= -1
    return np.ascontiguousarray(np.moveaxis(out, 0, -1))


@cache
def _tables() -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors float32 [128 * 128, 4] by code x * 128 + y (4 columns copy faster than 3), and kappa by code."""
    axis = np.clip((np.arange(2 * AXIS_CODES + 2) - AXIS_CODES - 1) / AXIS_CODES, -1, 1)
    x, y = np.meshgrid(axis, axis, indexing="ij")
    z = 1 - np.abs(x) - np.abs(y)
    fold = np.maximum(-z, 0)
    directions = np.stack([x - np.copysign(fold, x), y - np.copysign(fold, y), z], axis=-1)
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    directions = np.pad(directions.reshape(-1, 3), ((0, 0), (0, 1)))
    positions = np.concatenate([[0], np.linspace(0, 1, KAPPA_CODES)])
    kappas = KAPPA_MIN * (KAPPA_MAX / KAPPA_MIN) ** positions
    return directions.astype(np.float32), kappas.astype(np.float32)


@cache
def _plane_tables() -> tuple[np.ndarray, ...]:
    """Columns of `_tables`: x, y, z and kappa, with 0 at code 0, which only invalid pixels have."""
    directions, kappas = _tables()
    tables = [*directions.T[:3].copy(), kappas.copy()]
    for table in tables:
        table[0] = 0
    return tuple(tables)


PLUGIN = Normals
