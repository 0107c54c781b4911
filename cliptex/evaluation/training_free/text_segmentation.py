"""Semantic segmentation by text alone: each patch token gets the class whose name has the nearest text embedding.

Predictions kept:  `truth_{i}` and, for each row, `prediction_{i}`: uint8 [H, W], 255 = ignored
Per-image parts:   `hit`, `truth`, `predicted` int32 [N, K] for each row: correct, ground-truth and predicted pixels of
                   each class of the benchmark, without ignored pixels
Thumbnails:        masks of the first seed, at most 96 pixels a side
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from cliptex.config import Name, Rate, Section, Share
from cliptex.config.base import EncoderPrecision
from cliptex.evaluation.probes.base import Measure, imported, lazy
from cliptex.evaluation.probes.segmentation import SegmentationProbe
from cliptex.evaluation.protocols.base import WindowInput
from cliptex.evaluation.training_free.base import Evaluated, TrainingFreeRun, TrainingFreeTask

if TYPE_CHECKING:
    import torch


class TextTask(Section):
    """Options of all tasks in which patch tokens are compared with texts."""

    precision: EncoderPrecision = "fp32"
    """Precision of the frozen towers. `auto`: bf16 on GPUs that support it and on processors with AMX, else fp32."""
    templates: Literal["openai", "simple"] = "simple"
    """Prompt templates of open_clip: `openai` has 80, `simple` has 7. The embedding of a text is the mean over them."""
    names: dict[str, Annotated[tuple[str, ...], Field(min_length=1)]] = Field({})
    """Class -> the names that stand for it in prompts, of which the nearest counts; by default its own name."""


class TextSegmentationVariant(Section):
    """A way of comparing patch tokens with class names."""

    tokens: Literal["last", "value"] = "last"
    """`last`: patch tokens of the last block after the final normalisation, each projected as the pooled token is.
    `value`: the same without the last block's attention, by its value path (MaskCLIP)."""
    background: Literal["none", "threshold", "prompts"] = "none"
    """For benchmarks with the class `background`. `none`: it is left out, and its pixels are ignored. `threshold`:
    pixels whose most probable class has less than `threshold`. `prompts`: `background_names` stand for it."""
    threshold: Share | None = None
    """Least probability of a class, for `threshold`."""
    background_names: tuple[str, ...] = ("background",)
    """Names of what is background, for `prompts`; the nearest counts."""
    scale: Rate | None = None
    """Factor of the cosines in the softmax, for `threshold`; null: the model's own logit scale."""

    @model_validator(mode="after")
    def _has_threshold(self) -> Self:
        if (self.background == "threshold") != (self.threshold is not None):
            raise ValueError("threshold: is for background: threshold, which needs it")
        if self.background == "prompts" and not self.background_names:
            raise ValueError("background_names: is empty; name at least one")
        return self


class TextSegmentationProtocol(TextTask):
    """Semantic segmentation by text: mIoU over the whole split."""

    input: WindowInput = WindowInput()
    """The encoder's input."""
    variants: dict[Name, TextSegmentationVariant]
    """The variants by name."""


class TextSegmentation(TrainingFreeTask):
    """One class per pixel, by the names of the classes."""

    name = "text_segmentation"
    section = TextSegmentationProtocol
    needs = SegmentationProbe.name
    measures = (
        Measure(
            name,
            "Segmentation by text",
            "mIoU",
            lazy("metrics.segmentation:mean_iou"),
            per_class=lazy("metrics.segmentation:class_ious"),
            hub_task="image-segmentation",
            family="text",
        ),
    )
    reads_text = True

    def evaluate(self, run: TrainingFreeRun) -> Evaluated:
        from cliptex.evaluation.training_free.text_masks import segment_by_text

        return segment_by_text(run)

    def tower_problem(self, section: Any, visual: torch.nn.Module) -> str | None:
        from cliptex.models.dense_features import text_problem

        return text_problem(visual)

    drawing = staticmethod(partial(imported, "drawing:MaskDrawing"))
    thumbnail = staticmethod(lazy("thumbnails:unpacked_mask"))


PLUGIN = TextSegmentation
