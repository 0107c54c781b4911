"""Semantic segmentation: mmsegmentation's heads, or nearest patches, on dense features; mIoU over the whole split.

Predictions kept:  `truth_{i}`, `prediction_{i}`: uint8 [H, W], 255 = ignored
Per-image parts:   `hit`, `truth`, `predicted` int32 [N, K]: correct, ground-truth and predicted pixels of each class,
                   without ignored pixels
Thumbnails:        masks, at most 96 pixels a side
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from cliptex.config import Name, Positive, Share
from cliptex.core.seeds import seed_of
from cliptex.evaluation.probes.base import Data, Measure, Outcome, ProbeTask, Run, imported, lazy
from cliptex.evaluation.protocols.base import DenseTask, Neighbours, Training

if TYPE_CHECKING:
    import numpy as np

    from cliptex.evaluation.probes.parts import TruthOf
    from cliptex.evaluation.probes.views import ImageView
    from cliptex.models.encoders import Encoder


class SegmentationTraining(Training):
    """Options of all segmentation heads that are trained."""

    batch_size: Annotated[int, Field(ge=2)]
    """Views per step; batch norm needs at least two."""
    loss_points: Positive | None = None
    """Points per side at which the loss is computed in each step, on a regular sub-grid of the mask at a random offset;
    null: every pixel of the mask."""
    balance: Share = 0.0
    """Exponent b of the class weights in the loss, (share of the pixels) ^ -b; 0: no weights."""


class LinearSegmentation(SegmentationTraining):
    """A 1x1 convolution."""

    kind: Literal["linear"]
    """Type of the head."""
    batch_norm: bool = False
    """Whether batch norm is applied to the features first, as in DINOv2's head."""


class DeepLabV3(SegmentationTraining):
    """Parallel dilated convolutions (mmsegmentation's ASPPHead)."""

    kind: Literal["deeplabv3"]
    """Type of the head."""
    channels: Positive
    """Channels of its layers."""
    dilations: Annotated[tuple[Positive, ...], Field(min_length=1)]
    """Dilations in cells of the feature map; 1 is a 1x1 convolution."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Dropout before the classifier."""


class PSPNet(SegmentationTraining):
    """Pyramid pooling (mmsegmentation's PSPHead)."""

    kind: Literal["pspnet"]
    """Type of the head."""
    channels: Positive
    """Channels of its layers."""
    pool_scales: Annotated[tuple[Positive, ...], Field(min_length=1)] = (1, 2, 3, 6)
    """Sides of the pooled grids."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Dropout before the classifier."""


class InContext(Neighbours):
    """Labels of the nearest patches of the training views, which is not trained (Hummingbird, Balazevic et al. 2023).

    A memory holds patch features of the training views with the share of each class among the patch's labelled pixels.
    A patch of an evaluation image gets the mean of these shares over its neighbours, weighted by the softmax of
    cosine similarity / temperature.
    """

    kind: Literal["in_context"]
    """Type of the head."""
    memory: Positive
    """Most patches in the memory, equally many of each view; of a view, patches of classes that cover few of its
    patches are preferred."""


SegmentationHead = Annotated[LinearSegmentation | DeepLabV3 | PSPNet | InContext, Field(discriminator="kind")]


class SegmentationProtocol(DenseTask):
    """Semantic segmentation: mIoU over the whole split."""

    mask_size_px: Positive
    """Side of the training masks, squares (nearest); evaluation uses the original resolution."""
    heads: dict[Name, SegmentationHead]
    """The heads by name."""


class SegmentationProbe(ProbeTask):
    """One class per pixel."""

    name = "semantic_segmentation"
    section = SegmentationProtocol
    measures = (
        Measure(
            name,
            "Semantic segmentation",
            "mIoU",
            lazy("metrics.segmentation:mean_iou"),
            per_class=lazy("metrics.segmentation:class_ious"),
            hub_task="image-segmentation",
        ),
    )
    tunable = ("linear", "deeplabv3", "pspnet")

    def truth(self, run: Run, encoder: Encoder) -> TruthOf:
        from cliptex.evaluation.metrics.segmentation import IGNORE
        from cliptex.evaluation.probes.views import crop_truth

        side = run.protocol.section(self.name).mask_size_px

        def mask(sample: dict[str, Any], view: ImageView | None) -> np.ndarray:
            return sample["mask"] if view is None else crop_truth(sample["mask"], view, (side, side), IGNORE)

        return mask

    def outcomes(self, run: Run, head: str, data: Data) -> list[Outcome]:
        from cliptex.evaluation.probes.heads.in_context import probe_in_context
        from cliptex.evaluation.probes.heads.segmentation import SegmentationData, probe_segmentation

        seed = seed_of(head, run.seed)
        truths, features = SegmentationData.of(run, data.train, data.eval, data.size), data.features
        options = run.protocol.section(self.name).heads[head]
        if options.kind == "in_context":
            return [probe_in_context(*data.unstandardised, truths, options, seed, len(run.kept))]
        split = data.train.split(run.holdout, seed)
        return [probe_segmentation(*features, truths, options, split, seed, len(run.kept))]

    tuner = staticmethod(lazy("probes.heads.segmentation:SegmentationTuner"))

    def truth_bytes(self, section: SegmentationProtocol, image_size: int) -> int:
        return section.mask_size_px**2

    drawing = staticmethod(partial(imported, "drawing:MaskDrawing"))
    thumbnail = staticmethod(lazy("thumbnails:unpacked_mask"))


PLUGIN = SegmentationProbe
