"""Another custom task, salient regions, labelled by a filter without weights: `saliency:Saliency` and
`saliency:SpectralResidual`.

Saliency is encoded, cropped and learned in the same way as edges, so the task derives from `Edges`.
"""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from edges import Edges

from cliptex.config import Section
from cliptex.experts.base import Expert
from cliptex.experts.options import parse_options


class Saliency(Edges):
    """How much each pixel stands out: float32 [H, W] in 0..1, NaN = invalid."""

    name = "saliency"

    def scalars(self, label: np.ndarray) -> dict[str, float]:
        """`coverage`: share of valid pixels; `saliency`: mean over them."""
        scalars = super().scalars(label)
        return {"coverage": scalars["coverage"], "saliency": scalars["edges"]}


class SpectralResidualOptions(Section):
    """Options of the expert, in the config's `network`."""

    side_px: int = 64
    """Side of the square on which the spectrum is computed."""
    mean_px: int = 3
    """Side of the box over which the log spectrum is averaged."""
    blur_px: float = 2.5
    """Standard deviation of the Gaussian blur of the map, pixels of that square."""


class SpectralResidual(Expert):
    """The spectral residual (Hou and Zhang, CVPR 2007): the log spectrum minus its local mean."""

    task = "saliency"
    trainable = False  # no weights

    def __init__(self, settings: dict[str, Any]):
        super().__init__(settings)
        self.options = parse_options(SpectralResidualOptions, settings.get("network", {}), "network")

    def load(self, weights: Path | None) -> None:
        pass

    def predict(self, images: list[np.ndarray], keys: list[str]) -> list[np.ndarray]:
        return [self._label(image) for image in images]

    def _label(self, image: np.ndarray) -> np.ndarray:
        options, (height, width) = self.options, image.shape[:2]
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255
        spectrum = np.fft.fft2(cv2.resize(grey, (options.side_px,) * 2, interpolation=cv2.INTER_AREA))
        log = np.log(np.abs(spectrum) + 1e-8)
        residual = log - cv2.blur(log, (options.mean_px,) * 2)
        saliency = np.abs(np.fft.ifft2(np.exp(residual + 1j * np.angle(spectrum)))) ** 2
        saliency = cv2.GaussianBlur(saliency.astype(np.float32), (0, 0), options.blur_px)
        saliency = cv2.resize(saliency, (width, height), interpolation=cv2.INTER_LINEAR)
        low, high = np.percentile(saliency, [1, 99])
        return np.clip((saliency - low) / max(high - low, 1e-12), 0, 1).astype(np.float32)
