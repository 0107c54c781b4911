"""Configuration of the models: the CLIP to train, how all models are trained, and each model's own values."""

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from cliptex.config.base import FilePath, Name, Positive, Rate, Section, Share, Shares, without

HeadKind = Literal["light", "heavy", "heavier"]
MultiScale = Literal["ppm", "ppm_factored", "aspp", "none"]


class Student(Section):
    """The CLIP model to train: its architecture and initial weights."""

    architecture: str | dict[str, Any] = "ViT-B-16"
    """Name of an open_clip architecture, or an open_clip `model_cfg` (embed_dim, vision_cfg, text_cfg)."""
    pretrained: FilePath | None = None
    """Initial weights: open_clip's pretrained tag, or the path of a checkpoint or of an exported folder; null: random
    weights."""


class Watch(Section):
    """Validation during training. It does not change the weights."""

    zero_shot: Name | None = None
    """Benchmark on which zero-shot accuracy is measured before the first step, every `every_epochs` epochs and at the
    end; null: none."""
    zero_shot_images: Positive = 1000
    """Number of images of its evaluation split to use, evenly spaced."""
    max_drop: Annotated[float, Field(ge=0)] | None = None
    """Largest drop of zero-shot top-1 since the start, percentage points; `on_drop` applies to larger ones. The default
    is 5 if `zero_shot` is set. null: no limit."""
    on_drop: Literal["warn", "stop"] = "warn"
    """What follows a larger drop. `warn`: a warning in the log and in train.json. `stop`: an error, which ends the run.
"""
    every_epochs: Positive = 1
    """Epochs between validations (zero-shot, and on the pairs of `held_out`)."""

    @model_validator(mode="before")
    @classmethod
    def _default_max_drop(cls, values: Any) -> Any:
        """Not the field's default, which would also change the recorded values of trainings without `zero_shot`."""
        if isinstance(values, dict) and values.get("zero_shot") and "max_drop" not in values:
            return values | {"max_drop": 5.0}
        return values


class Train(Section):
    """Options of training that all models share."""

    batch_size: Positive = 128
    """Image-caption pairs per step, over all processes and micro-batches; for each, the others are the negatives of the
    contrastive loss."""
    accumulate: Positive = 1
    """Number of micro-batches per process and step (GradCache). More of them need less memory; more than one costs a
    second forward pass."""
    crop_sizes_px: tuple[Positive, ...] = ()
    """Sides of the training crops, pixels. One is drawn at each step, and the number of images changes so that the
    number of patches does not. Empty: the encoder's image size."""
    held_out: Annotated[int, Field(ge=0)] = 0
    """Number of pairs that are excluded from training and on which the heads' predictions are compared with the
    pseudo-labels."""
    warmup_steps: Annotated[int, Field(ge=0)] = 20
    """Steps of linear warm-up of the learning rate, at most half of a model's steps; cosine decay to zero follows."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """AdamW weight decay; norms, biases, embeddings and the logit scale have none."""
    beta2: Share = 0.98
    """AdamW's beta2; beta1 is 0.9."""
    grad_clip: Rate = 1.0
    """Maximum norm of the gradient; a larger gradient is scaled down to it."""
    crop_scale: Shares = (0.5, 1.0)
    """Area of the random crop as a share of the image's: smallest and largest value."""
    flip: Share = 0.5
    """Probability that a training image is flipped horizontally."""
    decoder: Literal["pillow", "torchvision"] = "pillow"
    """Library that decodes and resizes the images. `torchvision` takes about half of the time; pixels differ slightly,
    see docs/training.md."""
    target_size_px: Positive = 32
    """Side of the square grid on which the losses of dense tasks are computed, pixels."""
    multi_scale: MultiScale = "ppm"
    """Shared module between the encoder and the task heads: `ppm` (pyramid pooling, PSPNet), `ppm_factored` (the
    same module, computed in 0.6 of the time on grids such as 14 x 14; losses differ by rounding), `aspp` (dilated
    convolutions, DeepLabV3), or `none`."""
    multi_scale_channels: Positive = 128
    """Output channels of the multi-scale module and of the hidden layers of heavy heads."""
    multi_scale_rates: Annotated[tuple[Positive, ...], Field(min_length=1)] = (6, 12, 18)
    """Dilation rates of `aspp`, in patches. A rate as large as the side of the patch grid only sees the centre."""
    heads: HeadKind = "light"
    """Kind of the task heads. `light`: a 1x1 convolution; `heavy`: two 3x3 convolutions before it; `heavier`: four."""
    label_prior_cells: Annotated[int, Field(ge=0)] = 8
    """Side of the grid of position biases in the heads, cells. They are fitted before the first step to the mean label
    at each position, so that the encoder need not learn it. 0: none, as in the paper."""
    head_rate_factor: Rate = 4.0
    """Learning rate of the multi-scale module and the heads, as a multiple of the encoder's."""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay per step of an exponential moving average of all weights, which is exported in their place; null: no
    average."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Precision of training. `auto`: bf16 on GPUs and CPUs with instructions for it, else fp32. `fp16`, with loss
    scaling, is for GPUs without bf16."""
    checkpoint_activations: bool = False
    """Whether the towers' activations are recomputed in the backward pass: less memory, a third more time."""
    compile: bool = False
    """Whether the towers are compiled with torch.compile."""
    log_every: Positive = 10
    """Steps between the lines of metrics.jsonl."""
    trackers: tuple[Literal["tensorboard", "wandb", "wandb_offline"], ...] = ("tensorboard",)
    """Loggers that also receive these lines during training (docs/training.md)."""
    checkpoint_every: Positive = 100
    """Steps between checkpoints, from which a stopped training resumes."""
    shuffle_shards: Positive = 16
    """Number of shards whose samples are shuffled together."""
    watch: Watch = Watch()
    """Validation during training."""

    @model_serializer(mode="wrap")
    def _without_default(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without(handler(self), "decoder", "pillow")


class Interpolation(Section):
    """Weights interpolated between two models (WiSE-FT, Wortsman et al. 2022, "Robust fine-tuning of zero-shot
    models")."""

    of: Name
    """The model at alpha = 1, usually the fine-tuned one."""
    with_: Name = Field(alias="with")
    """The model at alpha = 0, usually the one from which fine-tuning started. It has the same architecture."""
    alpha: Share = 0.5
    """Each weight is alpha times that of `of` plus 1 - alpha times that of `with`, seed by seed."""


class Model(Section):
    """A model: trained, released, or an interpolation of two others."""

    interpolate: Interpolation | None = None
    """Interpolate two other models instead of training; excludes all other keys. null: no interpolation."""
    init: Name | None = None
    """Model from whose final weights (of the same seed) this one starts; null: the weights of `student`."""
    pretrained: FilePath | None = None
    """A released model to compare with: open_clip's pretrained tag or a path, in place of `student.pretrained`. Only
    for a model that is not trained and from which no other starts."""
    steps: Annotated[int, Field(ge=0)] = 0
    """Number of optimizer steps. 0: the initial weights are exported, for which no pairs are needed. null: not set, if
    `epochs` is."""
    epochs: Annotated[float, Field(gt=0)] | None = None
    """Training length in place of `steps`: passes over the usable pairs without `train.held_out`, in steps of full
    batches. May be a fraction; see docs/training.md."""
    learning_rate: Rate = 1e-3
    """Peak learning rate of the encoder and the text tower."""
    patch_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of patches dropped from each training image (FLIP, Li et al. 2023); only for models without tasks."""
    tasks: dict[Name, Annotated[float, Field(gt=0)]] = {}
    """Label stores to learn from, each with the weight of its loss; empty: the contrastive loss only."""
    losses: dict[Name, dict[str, Any]] = {}
    """Options of the losses, by label store, in place of the tasks' defaults (docs/models.md)."""
    weight_by_agreement: bool = False
    """Whether, with several label stores of one task, the loss of each pixel is weighted by how far their labels agree.
"""
    contrastive_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the contrastive loss."""
    shuffle_labels: bool = False
    """Control experiment: each image gets the pseudo-labels of another image."""
    heads: HeadKind | None = None
    """In place of `train.heads`; null: the same."""
    multi_scale: MultiScale | None = None
    """In place of `train.multi_scale`; null: the same."""

    @model_validator(mode="before")
    @classmethod
    def _without_unset(cls, values: Any) -> Any:
        """`steps: null` in an overlay removes the steps of the file below."""
        if isinstance(values, dict):
            return {key: value for key, value in values.items() if key != "steps" or value is not None}
        return values

    @model_serializer(mode="wrap")
    def _only_length_set(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Either `steps` or `epochs`: what does not count is not recorded, so that jobs do not depend on it."""
        values = handler(self)
        values.pop("epochs" if self.epochs is None else "steps", None)
        return without(without(values, "weight_by_agreement", False), "pretrained", None)

    @property
    def is_trained(self) -> bool:
        """Whether it is trained on pairs, for at least a step."""
        return self.interpolate is None and (self.epochs is not None or self.steps > 0)

    def num_steps(self, pairs: int, batch_size: int) -> int:
        """Optimizer steps on `pairs` pairs. An epoch has the full batches among them; the product is rounded to the
        nearest step, and is at least one."""
        if self.epochs is None:
            return self.steps
        return max(1, round(self.epochs * (pairs // batch_size)))

    def sources(self) -> list[str]:
        """Models that this one is made from: `init`, or the two that are interpolated."""
        if self.interpolate is not None:
            return [self.interpolate.of, self.interpolate.with_]
        return [] if self.init is None else [self.init]
