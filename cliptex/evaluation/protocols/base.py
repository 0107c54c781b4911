"""What a protocol can say: of the input, the features, the heads and how they are judged, by task.

These are the keys of the files in config/protocols/. Imports nothing heavy: the workflow reads protocols at every
start.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from cliptex.config import Name, Positive, Rate, Rates, Section, Share, Shares

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


class WholeInput(DenseInput):
    """The input of tasks whose truth may not be cut."""

    fit: Literal["squash"] = "squash"
    """The whole image, its ratio not kept."""


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
    """What all dense tasks have."""

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


class SegmentationTraining(Training):
    """What the segmentation heads share."""

    batch_size: Annotated[int, Field(ge=2)]
    """Images a step; batch norm needs two."""
    loss_points: Positive | None = None
    """Points a side at which the loss is taken each step, a regular sub-grid of the mask at a random offset; null: all
    of the mask."""
    balance: Share = 0.0
    """Classes are weighted in the loss by their share of the pixels to the power of minus this; 0 is plain."""


class LinearSegmentation(SegmentationTraining):
    """A 1x1 convolution."""

    kind: Literal["linear"]
    """Which head it is."""
    batch_norm: bool = False
    """Whether the features go through batch norm first, as DINOv2's head has it."""


class DeepLabV3(SegmentationTraining):
    """Dilated convolutions side by side (mmsegmentation's ASPPHead)."""

    kind: Literal["deeplabv3"]
    """Which head it is."""
    channels: Positive
    """Channels of its layers."""
    dilations: Annotated[tuple[Positive, ...], Field(min_length=1)]
    """Dilations in cells of the feature map; of 1 is a 1x1 convolution."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Dropout before the classifier."""


class PSPNet(SegmentationTraining):
    """Pyramid pooling (mmsegmentation's PSPHead)."""

    kind: Literal["pspnet"]
    """Which head it is."""
    channels: Positive
    """Channels of its layers."""
    pool_scales: Annotated[tuple[Positive, ...], Field(min_length=1)] = (1, 2, 3, 6)
    """Sides of the pooled grids."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Dropout before the classifier."""


SegmentationHead = Annotated[LinearSegmentation | DeepLabV3 | PSPNet, Field(discriminator="kind")]


class SemanticSegmentation(DenseTask):
    """Semantic segmentation: mIoU over the whole split."""

    mask_size_px: Positive
    """Training masks are kept as squares of this side (nearest); evaluation uses the original resolution."""
    heads: dict[Name, SegmentationHead]
    """The heads by name."""


class Detector(Training):
    """What detectors share: a simple feature pyramid, made from the one map of the encoder (as in ViTDet).

    Boxes live in a frame in which a cell of the encoder's map is 16 pixels wide.
    """

    channels: Positive
    """Channels of the pyramid and of the convolutions on it."""
    strides: Annotated[tuple[Literal[4, 8, 16, 32, 64], ...], Field(min_length=1)]
    """Strides of the pyramid's maps in that frame, from fine to coarse; 16 is the encoder's own."""
    detections: Positive
    """Detections an image that are kept; COCO counts up to 100."""
    score_threshold: Annotated[float, Field(ge=0, lt=1)]
    """Detections below this score are dropped."""


class MaskRCNN(Detector):
    """Mask R-CNN (torchvision's): boxes and masks."""

    kind: Literal["mask_rcnn"]
    """Which head it is."""
    box_units: Positive
    """Units of the two layers of the box head."""
    box_grid: Positive
    """Cells of a region's side for the box head."""
    mask_grid: Positive
    """Cells of a region's side for the mask head, whose masks have twice as many."""
    mask_layers: Positive
    """3x3 convolutions of the mask head."""
    canonical_px: Positive
    """Regions of this side, in the frame, are read from stride 16; of half the side from stride 8, and so on."""
    class_agnostic: bool
    """One box and one mask a region, whatever its class, as small training sets need; false is one a class."""
    anchor_scale: Rate
    """Anchor side in strides of its level."""
    proposals: Positive
    """Proposals an image after suppression; four times as many before."""
    anchors: Positive
    """Anchors an image on which the proposals are trained."""
    rois: Positive
    """Regions an image on which box and mask heads are trained."""


class SSD(Detector):
    """SSD (torchvision's): boxes of fixed default shapes at each cell, no masks."""

    kind: Literal["ssd"]
    """Which head it is."""
    aspect_ratios: Annotated[tuple[Annotated[float, Field(gt=1)], ...], Field(min_length=1)]
    """Ratios of the default boxes beside 1, each also upright."""
    scales: tuple[Rate, Rate]
    """Sides of the default boxes on the finest and on the coarsest map, as shares of the frame."""
    iou: Share = 0.5
    """Overlap from which a default box is taken for an object."""
    negatives: Rate = 3.0
    """Hard negatives for each box that is taken for an object."""
    suppression: Share = 0.45
    """Overlap of two detections of a class above which the weaker is dropped."""


DetectionHead = Annotated[MaskRCNN | SSD, Field(discriminator="kind")]


class Detection(DenseTask):
    """Detection, and instance segmentation by the heads that have masks: COCO's average precision."""

    input: WholeInput = WholeInput()
    """What of an image the encoder sees: all of it."""
    heads: dict[Name, DetectionHead]
    """The heads by name."""


class Ridge(Section):
    """Ridge regression of each cell, solved exactly."""

    kind: Literal["ridge"]
    """Which head it is."""
    grid: Positive
    """Side of the grid of points at which the regression is fitted; evaluation uses the original resolution."""
    penalties: Grid
    """Penalties on the squared weights beside the MEAN squared error; chosen on the holdout."""


class DepthRidge(Ridge):
    """Ridge regression of depth."""

    targets: Annotated[tuple[Literal["metric", "log"], ...], Field(min_length=1)]
    """What is regressed: metres or their logarithm; chosen on the holdout."""


class Decoder(Training):
    """A head that is trained to predict a map, from features to a finer grid."""

    decoder: Literal["linear", "dpt"]
    """`linear`: features resized to `upsample` times the map, and a 1x1 convolution. `dpt`: the four blocks of
    `features.layers: quarters` fused from last to first by residual 3x3 convolutions, at 2 times the map, then 8 and 16
    times (probe3d's)."""
    upsample: Positive = 4
    """Of `linear`."""
    channels: Positive = 512
    """Of `dpt`."""


class DepthBins(Decoder):
    """Depth as the mean of bins, weighted by what the decoder says of each, max(0, x) + 0.1 normalised (AdaBins)."""

    kind: Literal["bins"]
    """Which head it is."""
    bins: Positive = 256
    """Bins, of equal width between the least and the greatest depth."""
    scale_invariant: Annotated[float, Field(ge=0)] = 10.0
    """Weight of the scale-invariant loss of log depth, the root of mean(g^2) - 0.85 mean(g)^2."""
    gradient: Annotated[float, Field(ge=0)] = 0.5
    """Weight of the loss of the gradients of log depth at four scales."""


class AngularNormals(Decoder):
    """Normals by their angle to the truth."""

    kind: Literal["angular"]
    """Which head it is."""
    uncertainty: bool
    """Whether a fourth channel says how sure it is, and the loss is the likelihood of the angular von Mises-Fisher
    density (Bae et al.); else the angle itself."""


DepthHead = Annotated[DepthRidge | DepthBins, Field(discriminator="kind")]
NormalsHead = Annotated[Ridge | AngularNormals, Field(discriminator="kind")]


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


class Depth(MapTask):
    """Monocular depth in metres."""

    min_depth_m: Rate
    """Truths below are left out, predictions are clipped."""
    max_depth_m: Rate
    """Truths above are left out, predictions are clipped."""
    alignment: Literal["none", "affine"]
    """`affine`: also judged after scale and shift of each prediction are fitted to its truth (`affine_*`)."""
    heads: dict[Name, DepthHead]
    """The heads by name."""


class Normals(MapTask):
    """Surface normals."""

    heads: dict[Name, NormalsHead]
    """The heads by name."""


class Logistic(Section):
    """Multinomial logistic regression, fitted to convergence with L-BFGS."""

    kind: Literal["logistic"]
    """Which head it is."""
    penalties: Grid
    """Half of it times the squared weights is added to the MEAN cross-entropy (scikit-learn's C is
    1 / (penalty * samples)); chosen on the holdout."""
    iterations: Positive
    """Most L-BFGS iterations a fit."""


class LinearSgd(Training):
    """Linear classifiers trained by gradient descent, all of a grid in one pass as one product of matrices (DINOv2).

    The grid is over learning rates, weight decays and, where features are `tokens`, which of them are read.
    """

    kind: Literal["sgd"]
    """Which head it is."""
    optimizer: Literal["sgd"] = "sgd"
    """SGD with momentum."""
    clip: None = None
    """Gradients are not clipped."""
    blocks: Annotated[tuple[Positive, ...], Field(min_length=1)] = (1,)
    """Class tokens of how many last blocks are read, of those that `features.blocks` keeps."""
    mean_patch: Annotated[tuple[bool, ...], Field(min_length=1)] = (False,)
    """Whether the mean of the last block's patch tokens is read too."""


ClassificationHead = Annotated[Logistic | LinearSgd, Field(discriminator="kind")]


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


class Classification(Section):
    """Classification from one feature an image."""

    input: ClassificationInput = ClassificationInput()
    """What of an image the encoder sees."""
    augment: RandomCrops = RandomCrops()
    """Random crops of the training images."""
    features: PooledFeatures = PooledFeatures()
    """Which feature of an image the heads get."""
    heads: dict[Name, ClassificationHead]
    """The heads by name."""

    @model_validator(mode="after")
    def _blocks_kept(self) -> Self:
        """A classifier reads no more class tokens than are kept."""
        for name, head in self.heads.items():
            if head.kind == "sgd" and self.features.point == "tokens" and max(head.blocks) > self.features.blocks:
                raise ValueError(f"heads.{name}.blocks: features.blocks keeps {self.features.blocks}")
        return self


WINDOWS = 3
"""Taken for the number of windows of a photograph, which has two or three."""


def views_of_each(task: DenseTask | Classification, part: str) -> int:
    """How many views there are of each image of the part "train" or "eval"; of windows a guess."""
    if part == "train" and task.augment.views:
        return task.augment.views
    return WINDOWS if isinstance(task, DenseTask) and task.input.fit == "windows" else 1


def ridge_grid(task: MapTask) -> int | None:
    """The grid's side that training truths need where all heads are solved in closed form; None where one is not."""
    heads = task.heads.values()
    return max(head.grid for head in heads) if all(head.kind == "ridge" for head in heads) else None
