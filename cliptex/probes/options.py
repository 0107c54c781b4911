"""The options of the probes: what `probes.benchmarks.<name>` may hold. Defaults fit the miniature.

A benchmark takes the options of all its tasks; an unknown key is an error that names it.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from cliptex.config import Positive, Rate, Section
from cliptex.errors import CliptexError
from cliptex.plugins import find

Grid = Annotated[tuple[Rate, ...], Field(min_length=1)]


class Common(Section):
    """Options of every benchmark."""

    max_train: Positive | None = None
    """Only this many training images, drawn once from the seed; all when null."""
    max_eval: Positive | None = None
    """Only the first images of the evaluation split; all when null. For trying things out."""


class SegmentationOptions(Common):
    """Heads on frozen dense features, trained with AdamW and a polynomial rate (power 0.9)."""

    steps: Positive = 120
    """Optimizer steps of the deeplabv3 and pspnet heads."""
    linear_steps: Positive = 200
    """Optimizer steps of the linear head, which needs more to converge and costs less."""
    batch_size: Annotated[int, Field(ge=2)] = 32
    """Images a step."""
    learning_rates: Grid = (2e-2,)
    """Peak rates of the deeplabv3 and pspnet heads; of several the one best on the holdout is taken, then the head is
    trained on all training images."""
    linear_learning_rates: Grid = (5e-2,)
    """Peak rates of the linear head; several as above."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    """AdamW weight decay."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the steps in which the rate rises to its peak."""
    mask_size_px: Positive = 96
    """Training masks are kept as squares of this side (nearest); evaluation uses the original resolution."""
    loss_points: Positive = 8
    """Points a side at which the loss is taken each step: a regular sub-grid of the mask at a random offset."""
    balance: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Classes are weighted in the loss by their share of the pixels to the power of minus this; 0 is plain."""
    channels: Positive = 16
    """Channels of the deeplabv3 and pspnet heads."""
    dilations: Annotated[tuple[Positive, ...], Field(min_length=1)] = (1, 2, 3)
    """Dilations of the deeplabv3 head."""
    pool_scales: Annotated[tuple[Positive, ...], Field(min_length=1)] = (1, 2, 3, 6)
    """Grids of the pspnet head."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Dropout before the classifier of the deeplabv3 and pspnet heads; the linear head has none."""


class DetectionOptions(Common):
    """Mask R-CNN with a simple feature pyramid on frozen dense features, trained with AdamW and a polynomial rate."""

    steps: Positive = 600
    """Optimizer steps."""
    batch_size: Positive = 4
    """Images a step."""
    learning_rate: Rate = 4e-3
    """Peak rate."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """AdamW weight decay."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the steps in which the rate rises to its peak."""
    channels: Positive = 32
    """Channels of the pyramid and of the mask head."""
    box_units: Positive = 256
    """Units of the two layers of the box head."""
    mask_layers: Positive = 1
    """3x3 convolutions of the mask head."""
    class_agnostic: bool = True
    """One box and one mask a region, whatever its class, as small training sets need; false is one a class."""
    anchor_scale: Rate = 2.5
    """Anchor side in strides of its level."""
    proposals: Positive = 30
    """Proposals an image after suppression; four times as many before."""
    rois: Positive = 16
    """Regions an image on which box and mask heads are trained."""
    detections: Positive = 15
    """Detections an image that are kept; COCO counts up to 100."""
    score_threshold: Annotated[float, Field(ge=0, lt=1)] = 0.02
    """Detections below this score are dropped."""


class GeometryOptions(Common):
    """Ridge regression of depth and normals on frozen dense features, solved exactly."""

    grid: Positive = 24
    """Side of the grid of points at which the regression is fitted; evaluation uses the original resolution."""
    penalties: Grid = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    """Ridge penalties on the squared weights beside the MEAN squared error; chosen on the holdout."""
    depth_targets: Annotated[tuple[Literal["metric", "log"], ...], Field(min_length=1)] = ("metric", "log")
    """What is regressed for depth: metres or their logarithm; chosen on the holdout."""
    min_depth_m: Rate = 1e-3
    """Truths below are left out, predictions are clipped."""
    max_depth_m: Rate = 10.0
    """Truths above are left out, predictions are clipped."""
    eigen_crop: bool = False
    """Depth is judged in rows 45..470 and columns 41..600 only (480 x 640 images)."""


class ClassificationOptions(Common):
    """Multinomial logistic regression on the pooled feature, fitted to convergence with L-BFGS."""

    penalties: Grid = (1e-1, 1e-2, 1e-3, 1e-4)
    """Half of it times the squared weights is added to the MEAN cross-entropy (scikit-learn's C is
    1 / (penalty * samples)); chosen on the holdout."""
    iterations: Positive = 100
    """Most L-BFGS iterations a fit."""


OPTIONS = {
    "semantic_segmentation": SegmentationOptions,
    "detection": DetectionOptions,
    "depth": GeometryOptions,
    "normals": GeometryOptions,
    "classification": ClassificationOptions,
}


def probe_options(benchmark: str, values: dict[str, Any]) -> Any:
    """The checked options of a benchmark, defaults filled in.

    Raises CliptexError naming the key for one that is unknown or of a wrong type.
    """
    families = tuple(dict.fromkeys(OPTIONS[task] for task in find("benchmarks", benchmark).tasks))
    model = families[0] if len(families) == 1 else type("Options", families, {})
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems = []
        for item in error.errors():
            key = ".".join(["probes.benchmarks", benchmark, *map(str, item["loc"])])
            if item["type"] == "extra_forbidden":
                problems.append(f"{key}: unknown key; known are {', '.join(sorted(model.model_fields))}")
            else:
                problems.append(f"{key}: {item['msg']}, got {item['input']!r}")
        raise CliptexError("; ".join(problems)) from error
