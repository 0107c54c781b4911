"""Monocular depth in metres: ridge regression or bins.

Predictions kept:  `depth_truth_{i}`, `depth_prediction_{i}`: float32 [H, W] metres, NaN = invalid
Per-image parts:   the six metrics of each image, float64 [N], NaN for an image without valid pixels; with pooled
                   averaging also the weights `pixels` int64 [N], the number of valid pixels
Thumbnails:        metres as bytes of each image's range, at most 48 pixels a side
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from cliptex.config import Name, Positive, Rate
from cliptex.evaluation.probes.base import MapProbe, Measure, Run, imported, lazy
from cliptex.evaluation.protocols.base import DecoderTraining, MapTask, Ridge

if TYPE_CHECKING:
    from cliptex.evaluation.probes.parts import TruthOf
    from cliptex.models.encoders import Encoder


class DepthRidge(Ridge):
    """Ridge regression of depth."""

    targets: Annotated[tuple[Literal["metric", "log"], ...], Field(min_length=1)]
    """Target of the regression: metres or their logarithm; chosen on the holdout."""


class DepthBins(DecoderTraining):
    """Depth as the weighted mean of bins; the weights are the decoder's max(0, x) + 0.1, normalised (AdaBins)."""

    kind: Literal["bins"]
    """Type of the head."""
    bins: Positive = 256
    """Number of bins, of equal width between the smallest and the largest depth."""
    scale_invariant: Annotated[float, Field(ge=0)] = 10.0
    """Weight of the scale-invariant loss of log depth, the root of mean(g^2) - 0.85 mean(g)^2."""
    gradient: Annotated[float, Field(ge=0)] = 0.5
    """Weight of the loss of the gradients of log depth at four scales."""


DepthHead = Annotated[DepthRidge | DepthBins, Field(discriminator="kind")]


class DepthProtocol(MapTask):
    """Monocular depth in metres."""

    min_depth_m: Rate
    """Smallest depth: ground truth below it is ignored, predictions are clipped to it."""
    max_depth_m: Rate
    """Largest depth: ground truth above it is ignored, predictions are clipped to it."""
    alignment: Literal["none", "affine"]
    """`affine`: also evaluated after fitting scale and shift of each prediction to its ground truth (`affine_*`)."""
    heads: dict[Name, DepthHead]
    """The heads by name."""


class DepthProbe(MapProbe):
    """One distance per pixel, in metres."""

    name = "depth"
    section = DepthProtocol
    measures = (
        Measure(
            name, "Depth", "rmse", lazy("metrics.depth:weighted_rmse"), quantity="depth", hub_task="depth-estimation"
        ),
    )
    tunable = ("ridge",)
    channels = 1
    tuner = staticmethod(lazy("probes.heads.depth:DepthTuner"))
    probe = staticmethod(lazy("probes.heads.depth:probe_depth"))

    def truth(self, run: Run, encoder: Encoder) -> TruthOf:
        import numpy as np

        from cliptex.evaluation.probes.views import crop_truth

        grid = self.truth_grid(run, encoder)
        return lambda sample, view: sample["depth"] if view is None else crop_truth(sample["depth"], view, grid, np.nan)

    drawing = staticmethod(partial(imported, "drawing:DepthDrawing"))
    thumbnail = staticmethod(lazy("thumbnails:unpacked_depth"))


PLUGIN = DepthProbe
