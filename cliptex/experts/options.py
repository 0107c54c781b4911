"""Options of the experts in `network` and `training`. Imports nothing heavy, so that the workflow can check them before
its first job (`cliptex.experts.option_checks`)."""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import Field, ValidationError

from cliptex.config import Positive, Rate, Section, Share, Shares
from cliptex.config.explain import explain
from cliptex.core.errors import CliptexError

Options = TypeVar("Options", bound=Section)
Problem = tuple[tuple[str, ...], str]
"""The path of a key, and what is wrong with it."""


def parse_options(model: type[Options], values: dict[str, Any], where: str, section: str = "experts.*") -> Options:
    """`values` as `model`. where: "network" or "training" of `section`. Raises CliptexError that names the key."""
    if wrong := list(wrong_values(model, values, (section, where))):
        raise CliptexError("; ".join(f"{'.'.join(path)}: {sentence}" for path, sentence in wrong))
    return model.model_validate(values)


def wrong_values(model: type[Section], values: dict[str, Any], where: tuple[str, ...]) -> Iterator[Problem]:
    """The path of each wrong value under `where`, and what is wrong with it."""
    try:
        model.model_validate(values)
    except ValidationError as error:
        for path, sentence in explain(error, model, values):
            yield (*where, *map(str, path)), sentence


class TrainingOptions(Section):
    """Options in an expert's `training`."""

    steps: Positive = 300
    """Optimizer steps."""
    batch_size: Positive = 16
    """Renders per step."""
    learning_rate: Rate = 2e-3
    """Peak learning rate of AdamW."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.02
    """AdamW weight decay; not applied to vectors (norms, biases)."""
    warmup: Annotated[float, Field(gt=0, lt=1)] = 0.15
    """Share of the steps in which the rate rises; a cosine to zero follows."""
    grad_clip: Rate = 5.0
    """Largest gradient norm."""
    crop_scale: Shares = (0.5, 1.0)
    """Area of the random crop as a share of the render."""
    flip: Share = 0.5
    """Probability of a horizontal flip."""
    colour: Annotated[float, Field(ge=0)] = 1.0
    """Strength of colour jitter, blur and noise; 0 turns them off."""


class SmallMaskRCNNOptions(Section):
    """Options of a small Mask R-CNN, for `architecture: small`."""

    encoder: str = "resnet18"
    """timm architecture with features at 1/4, 1/8, 1/16 and 1/32."""
    encoder_options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments for timm."""
    fpn_channels: Positive = 64
    """Channels of the feature pyramid."""
    anchors_px: tuple[Positive, Positive, Positive, Positive] = (12, 24, 44, 72)
    """Side of the anchors of each level, pixels."""
    box_grid: Positive = 5
    """Side of a region in the box head, cells."""
    mask_grid: Positive = 7
    """Side of a region in the mask head, cells; its masks have twice as many."""
    box_features: Positive = 128
    """Width of the box head."""
    mask_layers: Positive = 2
    """Convolutions in the mask head."""
    canonical_px: Positive = 96
    """Side of the regions that are read from the level 1/16; half the side from 1/8, and so on."""
    proposals_train: Positive = 150
    """Proposals kept per image in training."""
    proposals: Positive = 60
    """Proposals kept per image in prediction."""
    regions: Positive = 32
    """Regions per image used to train the heads."""
    rpn_regions: Positive = 64
    """Anchors per image used to train the proposals."""


class MaskRCNNOptions(Section):
    """Options of the expert `mask_rcnn`."""

    size_options: ClassVar = ("architecture",)
    architecture: Literal["small", "maskrcnn_resnet50_fpn_v2"] = "maskrcnn_resnet50_fpn_v2"
    """torchvision's network, or a small Mask R-CNN."""
    small: SmallMaskRCNNOptions = SmallMaskRCNNOptions()
    """Options of the small network."""
    min_side_px: Positive = 800
    """Images are resized so that the short side has this many pixels ..."""
    max_side_px: Positive = 1333
    """... but the long side at most this many."""
    proposals: Positive = 1000
    """Proposals kept per image in prediction by torchvision's network; with fewer, its box head costs less."""
    score_threshold: Share = 0.5
    """Smallest score of the instances that are painted."""
    ignore_below: Share | None = None
    """Pixels of instances with at least this score, but below the threshold, are 255; null: background."""
    mask_threshold: Share = 0.5
    """Smallest probability of the pixels in a mask."""
    nms_threshold: Share = 0.5
    """IoU of two boxes above which the one with the lower score is dropped."""
    detections: Positive = 100
    """Largest number of instances per image."""
    keep_scores: bool = False
    """Add each pixel's score to its class, for a label store of the task `scored_segmentation`."""
    keep_instances: bool = False
    """Also store the instances, in the column `instances` of the label store."""
    background_share: Annotated[float, Field(gt=0, lt=1)] = 0.75
    """Share of background among the regions used to train the heads."""


class DPTOptions(Section):
    """Options of the expert `dpt`."""

    size_options: ClassVar = ("config",)
    config: dict[str, Any] = Field(default_factory=dict)
    """Arguments of transformers' DPTConfig; `image_size` is the side of the square input. Leave it out if the weights
    are a folder or a hub repository, which have a config.json."""


Sign = Literal[-1, 1]


Side = Annotated[int, Field(gt=0, multiple_of=32)]


class NLLAngMFOptions(Section):
    """Options of the expert `nll_angmf`."""

    size_options: ClassVar = ("encoder",)
    encoder: str = "tf_efficientnet_b5"
    """timm architecture."""
    encoder_options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments for timm."""
    widths: tuple[Positive, Positive, Positive, Positive, Positive] = (2048, 1024, 512, 256, 128)
    """Decoder channels at 1/32, 1/16, 1/8, 1/4 and 1/2."""
    hidden: Positive = 128
    """Width of the pixel-wise MLPs."""
    architecture: Literal["BN", "GN"] = "BN"
    """Norm of the decoder: "BN" as in `scannet.pt`; "GN", with standardised weights, as in `nyu.pt`."""
    signs: tuple[Sign, Sign, Sign] = (1, 1, 1)
    """Factors of the network's x, y and z that make them right, down and forward; (1, 1, 1) for published weights."""
    input_size_px: tuple[Side, Side] | None = None
    """Height and width of the input, multiples of 32; null keeps the image's size, rounded to multiples of 32."""
    sampling_ratio: Share = 0.4
    """Share of a level's pixels used in training."""
    sampling_uncertain: Share = 0.7
    """Share of the sampled pixels that are the most uncertain ones; the rest is random."""


class PyramidOptions(Section):
    """Options of the expert `pyramid`."""

    size_options: ClassVar = ("encoder",)
    task: Literal["segmentation", "depth", "normals"]
    """Task of the labels."""
    encoder: str = "cliptex_resnet"
    """timm architecture with features at 1/4, 1/8, 1/16 and 1/32."""
    encoder_options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments for timm."""
    channels: Positive = 64
    """Channels of the pyramid."""
    input_size_px: Positive = 96
    """Side of the square input."""
    classes: list[str] | None = None
    """Segmentation: COCO classes to learn, the others become background. null: all."""


class DegradedOptions(Section):
    """Options of the expert `degraded`."""

    task: str
    """Task of the labels, as in `label_stores`."""
    strength: Share
    """Share of the blocks that come from another image."""
    blocks: Positive = 8
    """Blocks along each side of the image."""
    seed: int = 0
    """Seed that blocks and other images are drawn from."""


class TruthOptions(Section):
    """Options of the expert `truth`."""

    task: Literal["segmentation", "depth", "normals"]
    """Task of the labels."""


class TransformersOptions(Section):
    """Options of the expert `transformers`."""

    task: Literal["segmentation", "depth", "normals"] | None = None
    """Task of the labels; null: that of the class in the model's config.json."""
    predicts: Literal["inverse_depth", "metres"] | None = None
    """Depth: what the network predicts; null: as its config.json or its family says."""
    classes: list[str] | None = None
    """Segmentation: names of the network's classes in the order of its outputs; null: `id2label` in its config.json."""
    segments: Literal["semantic", "instance", "panoptic"] | None = None
    """Segmentation by masks: how they become one class per pixel; null: instances if the classes are COCO's 80 things,
    else semantic."""
    score_threshold: Share = 0.5
    """Segmentation by masks: smallest score of instances and panoptic segments."""
    signs: tuple[Sign, Sign, Sign] = (1, 1, 1)
    """Normals: factors of the network's x, y and z that make them right, down and forward."""


Cells = Annotated[int, Field(gt=0, le=256)]


class FeaturesOptions(Section):
    """Options of the expert `features`."""

    size_options: ClassVar = ()
    library: Literal["transformers", "timm", "open_clip", "backbone"]
    """Library of the teacher. `backbone`: the four stages of the workflow's own backbone, for `weights: trained`."""
    model: str | None = None
    """Architecture by the library's name. May be left out for a folder or repository of transformers or timm, which
    names it; for `backbone`, a timm architecture, by default "cliptex_resnet"."""
    config: dict[str, Any] = Field(default_factory=dict)
    """Values of transformers' config.json with `model_type`, for weights that are not a folder or repository."""
    dims: Annotated[int, Field(gt=0, le=4096)] | None = 64
    """Principal components that are kept; null: all."""
    grid: Cells | tuple[Cells, Cells] = 14
    """Cells of a label: rows and columns, or one number for both."""
    input_size_px: Annotated[int, Field(gt=0, le=4096)] | None = None
    """Side of the square input; null: the teacher's own."""
    mean: tuple[float, float, float] | None = None
    """Subtracted from pixels in 0..1; null: the teacher's own."""
    std: tuple[Rate, Rate, Rate] | None = None
    """Divides pixels after `mean`; null: the teacher's own."""
    sample: Annotated[int, Field(gt=1)] = 2000
    """Images to which the principal components are fitted, spread over all shards."""
    seed: int = 0
    """Seed that draws them."""

    @property
    def cells(self) -> tuple[int, int]:
        """Rows and columns of a label."""
        return (self.grid, self.grid) if isinstance(self.grid, int) else tuple(self.grid)


BUILT_IN: dict[str, type[Section]] = {
    "mask_rcnn": MaskRCNNOptions,
    "dpt": DPTOptions,
    "nll_angmf": NLLAngMFOptions,
    "transformers": TransformersOptions,
    "pyramid": PyramidOptions,
    "truth": TruthOptions,
    "degraded": DegradedOptions,
    "features": FeaturesOptions,
}
"""Class of the options in `network` by expert. The options of other experts are checked by their jobs."""

UNSET = (
    "set it for a network that is trained here (config/config.yaml has small ones), or use published weights with"
    " `weights: url`, `hub` or `local`"
)
"""What is wrong if one of `size_options` is missing."""
