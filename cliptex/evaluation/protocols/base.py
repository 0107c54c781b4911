"""Parts that the sections of a protocol share: input, augmentation, features, head training.

The section of a task is in the task's own file, `cliptex/evaluation/probes/{task}.py`. These are the keys of the files in
config/protocols/. Imports nothing heavy: the workflow reads protocols at every start.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from cliptex.config import Positive, Rate, Rates, Section, Share, Shares

Grid = Annotated[tuple[Rate, ...], Field(min_length=1)]
Decays = Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(min_length=1)]


class DenseInput(Section):
    """What of an image the encoder sees, for dense tasks."""

    fit: Literal["squash", "crop", "windows"] = "squash"
    """`squash`: the whole image, its ratio not kept. `crop`: the largest centred box of the input's ratio; truths are
    judged in it alone. `windows`: the shorter side resized to the input's, and squares that cover the image; where they
    overlap, logits are averaged."""
    size_px: Positive | tuple[Positive, Positive] | None = None
    """Side, or height and width, of what the encoder sees, a multiple of its patches; position embeddings are
    interpolated where it is not the encoder's own. null: the encoder's own."""
    stride_px: Positive | None = None
    """Step of `windows`; null: the side, so that they only overlap at the border."""


class MapInput(DenseInput):
    """The input of tasks that predict one map an image."""

    fit: Literal["squash", "crop"] = "squash"
    """`squash`: the whole image, its ratio not kept. `crop`: the largest centred box of the input's ratio, in which
    alone truths are judged."""


class Augmentation(Section):
    """Random views of the training images. A fixed number is drawn once, so that their features can be kept."""

    views: Annotated[int, Field(ge=0)] = 0
    """Views of each training image; 0: one, as in evaluation."""
    scale: Rates = (1.0, 1.0)
    """Range of the factor by which a view enlarges; below 1 it may reach beyond the image, which is ignored there."""
    flip: Share = 0.0
    """Probability that a view is mirrored."""


class DenseFeatures(Section):
    """Which features of the encoder dense heads get: maps of patch tokens."""

    layers: Literal["last", "quarters"] | Annotated[tuple[int, ...], Field(min_length=1)] = "last"
    """Blocks whose tokens are concatenated: `last`, `quarters` (after each quarter of the blocks), or their numbers,
    from 0, or from -1 backwards."""
    norm: bool = True
    """Whether the encoder's final normalisation is applied to each."""
    cls: bool = False
    """Whether the class token is concatenated to every patch token."""
    standardise: bool = True
    """Whether channels get zero mean and unit variance over the training views."""
    precision: Literal["fp32", "fp16", "int8"] = "fp16"
    """How features are kept; docs/probes.md has the error bounds."""


class DenseTask(Section):
    """Input, augmentation and features of tasks on dense features."""

    input: DenseInput = DenseInput()
    """What of an image the encoder sees."""
    augment: Augmentation = Augmentation()
    """Random views of the training images."""
    features: DenseFeatures = DenseFeatures()
    """Which features of the encoder the heads get."""


class Training(Section):
    """How a head is trained: optimizer, a linear warm-up, a decay."""

    steps: Positive
    """Optimizer steps."""
    batch_size: Positive
    """Training views a step."""
    learning_rates: Grid
    """Peak rates; of several the one best on the holdout is taken, then the head is trained on all training images."""
    weight_decays: Decays
    """Weight decays; several as above, every rate with every decay."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """AdamW, or SGD with momentum."""
    momentum: Share = 0.9
    """Of SGD."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the steps in which the rate rises to its peak."""
    decay: Literal["polynomial", "cosine", "steps"] = "polynomial"
    """How the rate falls after that; `steps`: by `gamma` at each of `milestones`."""
    power: Annotated[float, Field(ge=0)] = 0.9
    """Of the polynomial decay; 1 is linear."""
    final: Share = 0.0
    """Where the polynomial and the cosine end, as a share of the peak."""
    milestones: tuple[Share, ...] = ()
    """Shares of the steps at which the rate falls, for the decay `steps`."""
    gamma: Share = 0.1
    """Factor by which it falls there."""
    clip: Rate | None = None
    """Largest gradient norm; null: any."""


class Ridge(Section):
    """Ridge regression of each cell, solved exactly."""

    kind: Literal["ridge"]
    """Which head it is."""
    grid: Positive
    """Side of the grid of points at which the regression is fitted; evaluation uses the original resolution."""
    penalties: Grid
    """Penalties on the squared weights beside the MEAN squared error; chosen on the holdout."""


class DecoderTraining(Training):
    """A head that is trained to predict a map, from features to a finer grid."""

    decoder: Literal["linear", "dpt"]
    """`linear`: features resized to `upsample` times the map, and a 1x1 convolution. `dpt`: the four blocks of
    `features.layers: quarters` fused from last to first by residual 3x3 convolutions, at 2 times the map, then 8 and 16
    times (probe3d's)."""
    upsample: Positive = 4
    """Of `linear`."""
    channels: Positive = 512
    """Of `dpt`."""


class MapTask(DenseTask):
    """What tasks have that predict numbers a pixel."""

    input: MapInput = MapInput()
    """What of an image the encoder sees."""
    truth_px: Positive | tuple[Positive, Positive] | None = None
    """Side, or height and width, of the grid on which truths are kept for heads that are trained; null: as the input.
    Evaluation uses the original resolution."""
    crop: Literal["none", "eigen"]
    """`eigen`: judged in rows 45..470 and columns 41..600 only, of 480 x 640."""
    averaging: Literal["image", "pooled"]
    """Whether metrics are computed an image and averaged, or over the pixels of all images together."""

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
    """What of an image the encoder sees, for classification: the centre, as CLIP's own preprocessing has it."""

    size_px: Positive | None = None
    """Side of what the encoder sees, as for dense tasks."""
    resize_px: Positive | None = None
    """Shorter side to which an image is resized before the centre is cut out; null: as `size_px`."""


class RandomCrops(Section):
    """Random crops of the training images (torchvision's RandomResizedCrop); a fixed number is drawn once."""

    views: Annotated[int, Field(ge=0)] = 0
    """Crops of each training image; 0: one, as in evaluation."""
    area: Shares = (0.08, 1.0)
    """Range of a crop's area as a share of the image; its ratio is between 3:4 and 4:3."""
    flip: Share = 0.5
    """Probability that a crop is mirrored."""


class PooledFeatures(Section):
    """Which feature of an image the classifiers get."""

    point: Literal["pooled", "embedding", "tokens"] = "pooled"
    """`pooled`: before the projection. `embedding`: after it, as compared with text. `tokens`: class tokens of the last
    `blocks`, after the final normalisation, and the mean of the last block's patch tokens."""
    blocks: Positive = 1
    """Of `tokens`."""
    standardise: bool = True
    """Whether channels get zero mean and unit variance over the training views."""
    precision: Literal["fp32", "fp16"] = "fp16"
    """How features are kept; docs/probes.md has the error bounds."""


class PooledTask(Section):
    """The input, augmentation and features of tasks on one feature vector per image."""

    input: ClassificationInput = ClassificationInput()
    """What of an image the encoder sees."""
    augment: RandomCrops = RandomCrops()
    """Random crops of the training images."""
    features: PooledFeatures = PooledFeatures()
    """Which feature of an image the heads get."""


ProbeSection = DenseTask | PooledTask
"""What a probe task's section of a protocol extends."""
WINDOWS = 3
"""Taken for the number of windows of a photograph, which has two or three."""


def views_of_each(task: ProbeSection, part: str) -> int:
    """How many views there are of each image of the part "train" or "eval"; of windows a guess."""
    if part == "train" and task.augment.views:
        return task.augment.views
    return WINDOWS if isinstance(task, DenseTask) and task.input.fit == "windows" else 1


def ridge_grid(task: MapTask) -> int | None:
    """The grid's side that training truths need where all heads are solved in closed form; None where one is not."""
    heads = task.heads.values()
    return max(head.grid for head in heads) if all(head.kind == "ridge" for head in heads) else None
