"""Options shared by the sections of a protocol: input, augmentation, features, training of heads.

These are keys of the files in config/protocols/; the other keys of a section are in its task's file,
`cliptex/evaluation/probes/{task}.py`. Imports nothing heavy: the workflow reads protocols on every start.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from cliptex.config import Positive, Rate, Rates, Section, Share, Shares
from cliptex.config.base import EncoderPrecision, without

Grid = Annotated[tuple[Rate, ...], Field(min_length=1)]
Decays = Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(min_length=1)]


class DenseInput(Section):
    """The encoder's input for dense tasks."""

    fit: Literal["squash", "crop", "windows"] = "squash"
    """`squash`: the whole image, without keeping its aspect ratio. `crop`: the largest centred box with the input's
    aspect ratio; only this box is evaluated. `windows`: the shorter side resized to the input size, and squares that
    cover the image; logits are averaged where windows overlap."""
    size_px: Positive | tuple[Positive, Positive] | None = None
    """Side, or height and width, of the encoder's input, a multiple of its patch size; position embeddings are
    interpolated if needed. null: the encoder's own input size."""
    stride_px: Positive | None = None
    """Stride of `windows`; null: their side, so that they overlap only at the border."""

    @property
    def shorter_px(self) -> int | None:
        """Length of the shorter side of the image that `windows` slide over; None: their side."""
        return None


class WindowInput(DenseInput):
    """The encoder's input for dense tasks without training."""

    fit: Literal["squash", "windows"] = "squash"
    """`squash`: the whole image, without keeping its aspect ratio. `windows`: the image resized so that its shorter
    side is `resize_px`, and squares that cover it; scores are averaged where windows overlap."""
    resize_px: Positive | None = None
    """Length of the image's shorter side for `windows`, at least their side; null: their side."""

    @model_validator(mode="after")
    def _windows_fit(self) -> Self:
        if self.resize_px is not None and isinstance(self.size_px, int) and self.resize_px < self.size_px:
            raise ValueError(f"resize_px: {self.resize_px} is less than size_px, the side of the windows")
        return self

    @property
    def shorter_px(self) -> int | None:
        return self.resize_px


class MapInput(DenseInput):
    """The encoder's input for tasks that predict one map per image."""

    fit: Literal["squash", "crop"] = "squash"
    """`squash`: the whole image, without keeping its aspect ratio. `crop`: the largest centred box with the input's
    aspect ratio; only this box is evaluated."""


class Augmentation(Section):
    """Random views of the training images. A fixed number is drawn once, so that their features can be stored."""

    views: Annotated[int, Field(ge=0)] = 0
    """Views per training image; 0: the view that evaluation uses."""
    scale: Rates = (1.0, 1.0)
    """Range of the magnification of a view; below 1 it may extend beyond the image, where ground truth is ignored."""
    flip: Share = 0.0
    """Probability of a horizontal flip."""


class DenseFeatures(Section):
    """The features of dense heads: maps of patch tokens."""

    layers: Literal["last", "quarters"] | Annotated[tuple[int, ...], Field(min_length=1)] = "last"
    """Blocks whose tokens are concatenated: `last`, `quarters` (after each quarter of the blocks), or their indices,
    from 0, or negative from the end."""
    norm: bool = True
    """Whether the encoder's final normalisation is applied to each."""
    cls: bool = False
    """Whether the class token is concatenated to every patch token."""
    standardise: bool = True
    """Whether channels are standardised to zero mean and unit variance over the training views."""
    precision: Literal["fp32", "fp16", "int8"] = "fp16"
    """Precision in which features are stored; error bounds: `cliptex/evaluation/probes/feature_cache.py`."""
    encoder_precision: EncoderPrecision = "fp32"
    """Precision in which the encoder computes them. `auto`: bf16 on GPUs that support it and on processors with AMX."""

    @model_serializer(mode="wrap")
    def _without_default(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without(handler(self), "encoder_precision", "fp32")


class DenseTask(Section):
    """Input, augmentation and features of tasks on dense features."""

    input: DenseInput = DenseInput()
    """The encoder's input."""
    augment: Augmentation = Augmentation()
    """Random views of the training images."""
    features: DenseFeatures = DenseFeatures()
    """The features of the heads."""


class Training(Section):
    """Training of a head: optimizer, and a learning rate with linear warm-up and decay."""

    steps: Positive
    """Optimizer steps."""
    batch_size: Positive
    """Training views per step."""
    learning_rates: Grid
    """Peak learning rates. If there are several, the best one on the holdout is used to train on all images."""
    weight_decays: Decays
    """Weight decays; all combinations with the learning rates are compared."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """AdamW, or SGD with momentum."""
    momentum: Share = 0.9
    """Momentum of SGD."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Fraction of the steps in which the learning rate rises to its peak."""
    decay: Literal["polynomial", "cosine", "steps"] = "polynomial"
    """Decay of the learning rate after the warm-up; `steps`: by `gamma` at each of `milestones`."""
    power: Annotated[float, Field(ge=0)] = 0.9
    """Power of the polynomial decay; 1 is linear."""
    final: Share = 0.0
    """Final learning rate of the polynomial and the cosine decay, as a fraction of the peak."""
    milestones: tuple[Share, ...] = ()
    """Fractions of the steps at which the learning rate falls, for the decay `steps`."""
    gamma: Share = 0.1
    """Factor of the decay `steps`."""
    clip: Rate | None = None
    """Largest gradient norm; null: no clipping."""


class Ridge(Section):
    """Ridge regression of each cell, in closed form."""

    kind: Literal["ridge"]
    """Type of the head."""
    grid: Positive
    """Side of the grid of points at which the regression is fitted; evaluation uses the original resolution."""
    penalties: Grid
    """L2 penalties, relative to the MEAN squared error; chosen on the holdout."""


class Neighbours(Section):
    """A head that is not trained: it reads the labels of the nearest training features by cosine similarity.

    It reads features as the encoder computes them, whatever `features.standardise` says, and nothing is chosen on the
    holdout. Rows of its results have the family `no_head`.
    """

    neighbours: Positive
    """Nearest features that are used."""
    temperature: Rate
    """T of a neighbour's weight, exp(cosine similarity / T)."""


class DecoderTraining(Training):
    """A head that is trained to predict a map on a finer grid than the features."""

    decoder: Literal["linear", "dpt"]
    """`linear`: features resized to `upsample` times the size of the map, and a 1x1 convolution. `dpt`: the four blocks
    of `features.layers: quarters` fused from last to first by residual 3x3 convolutions, at 2 times the size of the
    map, then 8 and 16 times (probe3d's)."""
    upsample: Positive = 4
    """Upsampling of `linear`."""
    channels: Positive = 512
    """Channels of `dpt`."""


class MapTask(DenseTask):
    """Options of tasks that predict numbers per pixel."""

    input: MapInput = MapInput()
    """The encoder's input."""
    truth_px: Positive | tuple[Positive, Positive] | None = None
    """Side, or height and width, of the grid of the ground truth for heads that are trained; null: the input size.
    Evaluation uses the original resolution."""
    crop: Literal["none", "eigen", "garg", "kitti"]
    """`eigen`: only rows 45..470 and columns 41..600 of 480 x 640 are evaluated (NYUv2). `garg`, `kitti`: only the
    shares of rows and columns that Garg et al. 2016 and Eigen et al. 2014 evaluate on KITTI."""
    averaging: Literal["image", "pooled"]
    """`image`: metrics per image, averaged over images. `pooled`: metrics over the pixels of all images."""

    @property
    def ridge_grid(self) -> int | None:
        """Side of the grid of the training ground truth if all heads are ridge regressions; else None."""
        heads = self.heads.values()
        return max(head.grid for head in heads) if all(head.kind == "ridge" for head in heads) else None

    @model_validator(mode="after")
    def _four_blocks(self) -> Self:
        """The DPT decoder needs the maps of four blocks."""
        layers = self.features.layers
        four = layers == "quarters" or (not isinstance(layers, str) and len(layers) == 4)
        for name, head in self.heads.items():
            if getattr(head, "decoder", None) == "dpt" and (not four or self.features.cls):
                raise ValueError(
                    f"heads.{name}.decoder: dpt needs features.layers of four blocks and features.cls false"
                )
        return self


class ClassificationInput(Section):
    """The encoder's input for classification: the centre of the image, as in CLIP's preprocessing."""

    size_px: Positive | None = None
    """Side of the encoder's input, as for dense tasks."""
    resize_px: Positive | None = None
    """Length of the image's shorter side before the centre is cropped; null: `size_px`."""


class RandomCrops(Section):
    """Random crops of the training images (torchvision's RandomResizedCrop); a fixed number is drawn once."""

    views: Annotated[int, Field(ge=0)] = 0
    """Crops per training image; 0: the view that evaluation uses."""
    area: Shares = (0.08, 1.0)
    """Range of a crop's area as a fraction of the image; its aspect ratio is between 3:4 and 4:3."""
    flip: Share = 0.5
    """Probability of a horizontal flip."""


class PooledFeatures(Section):
    """The feature vector of an image."""

    point: Literal["pooled", "embedding", "tokens"] = "pooled"
    """`pooled`: before the projection. `embedding`: after it, as compared with text. `tokens`: class tokens of the last
    `blocks` blocks, after the final normalisation, and the mean of the last block's patch tokens."""
    blocks: Positive = 1
    """Number of blocks of `tokens`."""
    standardise: bool = True
    """Whether channels are standardised to zero mean and unit variance over the training views."""
    precision: Literal["fp32", "fp16"] = "fp16"
    """Precision in which features are stored; error bounds: `cliptex/evaluation/probes/feature_cache.py`."""
    encoder_precision: EncoderPrecision = "fp32"
    """Precision in which the encoder computes them. `auto`: bf16 on GPUs that support it and on processors with AMX."""

    @model_serializer(mode="wrap")
    def _without_default(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without(handler(self), "encoder_precision", "fp32")


class PooledTask(Section):
    """Input, augmentation and features of tasks on one feature vector per image."""

    input: ClassificationInput = ClassificationInput()
    """The encoder's input."""
    augment: RandomCrops = RandomCrops()
    """Random crops of the training images."""
    features: PooledFeatures = PooledFeatures()
    """The features of the heads."""


ProbeSection = DenseTask | PooledTask
"""Base classes of a probe task's section of a protocol."""
WINDOWS = 3
"""Assumed number of windows per image; photographs have two or three."""


def views_of_each(section: ProbeSection, part: str) -> int:
    """Views per image of the part "train" or "eval"; an estimate for windows."""
    if part == "train" and section.augment.views:
        return section.augment.views
    return WINDOWS if isinstance(section, DenseTask) and section.input.fit == "windows" else 1
