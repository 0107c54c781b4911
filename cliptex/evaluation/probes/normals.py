"""Surface normals: ridge regression, or a decoder trained on the angle.

Predictions kept:  `normals_truth_{i}`, `normals_prediction_{i}`: float32 [H, W, 3], NaN = invalid
Per-image parts:   with pooled averaging `pixels` int64 [N], `angle_sum` (degrees), `square_sum` float64 [N], and the
                   numbers of pixels `within_5` to `within_30` int64 [N]; otherwise the metrics of each image, float64
                   [N], NaN for an image without valid pixels
Thumbnails:        x, y, z as signed bytes, at most 48 pixels a side
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from cliptex.config import Name
from cliptex.evaluation.metrics.display import Metric
from cliptex.evaluation.probes.base import MapProbe, Measure, Run, imported, lazy
from cliptex.evaluation.protocols.base import DecoderTraining, MapTask, Ridge

if TYPE_CHECKING:
    import numpy as np

    from cliptex.evaluation.probes.parts import TruthOf
    from cliptex.evaluation.probes.views import ImageView
    from cliptex.models.encoders import Encoder


class AngularNormals(DecoderTraining):
    """Normals trained on the angle to the ground truth."""

    kind: Literal["angular"]
    """Type of the head."""
    uncertainty: bool
    """Whether a fourth channel predicts the confidence, trained with the negative log-likelihood of the angular von
    Mises-Fisher distribution (Bae et al.); false: the loss is the angle."""


NormalsHead = Annotated[Ridge | AngularNormals, Field(discriminator="kind")]


class NormalsProtocol(MapTask):
    """Surface normals."""

    heads: dict[Name, NormalsHead]
    """The heads by name."""


class NormalsProbe(MapProbe):
    """One unit vector per pixel."""

    name = "normals"
    section = NormalsProtocol
    measures = (
        Measure(
            name,
            "Surface normals",
            "mean",
            lazy("metrics.normals:mean_angle"),
            quantity="normals",
            metrics={"rmse": Metric("RMSE", -1, "°")},
        ),
    )
    tunable = ("ridge",)
    channels = 3
    tuner = staticmethod(lazy("probes.heads.normals:NormalsTuner"))
    probe = staticmethod(lazy("probes.heads.normals:probe_normals"))

    def truth(self, run: Run, encoder: Encoder) -> TruthOf:
        import numpy as np

        from cliptex.evaluation.probes.views import crop_truth

        grid = self.truth_grid(run, encoder)

        def normals(sample: dict[str, Any], view: ImageView | None) -> np.ndarray:
            if view is None:
                return sample["normals"]
            cut = crop_truth(sample["normals"], view, grid, np.nan)
            return cut * np.array([-1, 1, 1], np.float32) if view.flip else cut

        return normals

    drawing = staticmethod(partial(imported, "drawing:NormalsDrawing"))
    thumbnail = staticmethod(lazy("thumbnails:unpacked_normals"))


PLUGIN = NormalsProbe
