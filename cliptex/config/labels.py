"""Configuration of the pseudo-labels: the experts, the backbone they share, the label stores."""

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from cliptex.config.base import FilePath, Name, Positive, Section, without


class ExpertConfig(Section):
    """An expert, a vision model that makes pseudo-labels: the source of its weights, and how it is run."""

    plugin: str | None = None
    """Class of the expert: a module in cliptex/experts/, or "package.module:Class"; null: the module with the expert's
    name."""
    weights: Literal["trained", "url", "hub", "local", "random"] = "trained"
    """`trained`: by this workflow on rendered images. `url`: downloaded from `url`. `hub`: from the Hugging Face
    repository `repo`. `local`: from the file or folder `path`. `random`: untrained, only for tests and benchmarks."""
    url: str | None = None
    """URL (http or https) of the weight file; only for `url`."""
    repo: str | None = None
    """Hugging Face repository, e.g. "Intel/dpt-large"; only for `hub`."""
    revision: str | None = None
    """Commit, tag or branch of `repo`; null: the default branch. The resolved commit is recorded."""
    file: str | None = None
    """Weight file in `repo`; null: config.json, preprocessor_config.json and the model's weights."""
    path: FilePath | None = None
    """Weight file (safetensors, or PyTorch with tensors only), or folder of a saved model; only for `local`."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{8,64}$")] | None = None
    """Expected SHA-256 of the weight file, or at least its first 8 digits; other weights are an error. null: not
    checked."""
    licence: str | None = None
    """Licence of the weights, recorded in the label store; null: "Apache-2.0" for `trained` and `random`, else
    "unknown"."""
    trained_on: list[Annotated[str, Field(min_length=1)]] | None = None
    """Data sets that the weights were trained on, e.g. [coco/train2017, imagenet/train]: a benchmark's name and, if
    known, the split. The report marks results on these. []: on none of them; null: as in the table of published weights
    (docs/experts.md)."""
    batch_size: Positive = 32
    """Images per forward pass."""
    batch_window: Positive | None = None
    """Number of consecutive images of a shard, of which those with the same network input size share forward passes;
    null: `batch_size`. For networks whose input size depends on the image's shape. Labels may differ by rounding."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Number format of the network; `auto`: bf16 if the GPU supports it natively or the CPU has AMX, else fp32."""
    network: dict[str, Any] = {}
    """Options of the architecture and of inference, which the expert defines (docs/experts.md)."""
    training: dict[str, Any] = {}
    """Options of training (steps, batch_size, learning_rate, ...), which the expert defines (docs/experts.md)."""

    @model_serializer(mode="wrap")
    def _without_default(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without(without(handler(self), "batch_window", None), "trained_on", None)

    @property
    def licence_name(self) -> str:
        """`licence`, or its default."""
        return self.licence or ("Apache-2.0" if self.weights in ("trained", "random") else "unknown")


class Backbone(Section):
    """An encoder pre-trained on rendered images with labels of all tasks; experts trained here start from it."""

    encoder: str = "cliptex_resnet"
    """Name of a timm architecture with feature maps at 1/4, 1/8, 1/16 and 1/32 of the input size."""
    encoder_options: dict[str, Any] = {}
    """Keyword arguments of that architecture."""
    channels: Positive = 64
    """Channels of the feature pyramid, which is only used during pre-training."""
    input_size_px: Positive = 64
    """Side of the encoder's square input, pixels."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Number format of the network; `auto`: bf16 if the GPU supports it natively or the CPU has AMX, else fp32."""
    training: dict[str, Any] = {}
    """Options of training, the same as an expert's (docs/experts.md)."""


class LabelStore(Section):
    """A label store: the pseudo-labels of one task, made by one expert or taken from a published label set."""

    task: str
    """What its labels are, such as depth: a module in cliptex/tasks/, or "package.module:Class"."""
    expert: Name | None = None
    """Expert that makes the labels, an entry of `experts`; null if `from` is set."""
    of: Name | None = None
    """Label store of the same task whose labels the expert changes; only for experts that read labels (`degraded`)."""
    from_: FilePath | None = Field(None, alias="from")
    """Published label set to take the labels from, instead of an expert: `hf://owner/name` or
    `hf://owner/name@revision` (a data set on the Hugging Face hub), a folder, or its URL (http or https)."""
    join: Literal["digest", "key"] | None = None
    """How images are matched with that set: by the SHA-256 of their bytes, or by key; null: as the set's metadata
    states."""

    @model_serializer(mode="wrap")
    def _without_default(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values = handler(self)
        for key in ("from", "from_", "join"):
            values = without(values, key, None) if key in values else values
        return values

    @property
    def origin(self) -> str:
        """Where the labels come from: the expert's name, or the published set."""
        return self.expert or str(self.from_)


class Labels(Section):
    """How shards are labelled."""

    shards_per_job: Positive = 10
    """Shards per labelling job. A later change keeps the labels, but retrains the models that use them."""
    max_side_px: Positive = 256
    """Longest side of a stored label, pixels. Larger images are labelled at full size, and the label is resized."""
    max_image_side_px: Positive = 2048
    """Longest side of an image when it is labelled, pixels; larger images are resized first, which limits the memory.
    Experts with published weights see at most 1333 pixels per side."""
