"""Configuration of the evaluation: probes, fine-tuning, zero-shot, without training, and the report."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from cliptex.config.base import EncoderPrecision, FilePath, Name, Pattern, Positive, Rate, Section, Unique, without

PUBLISHED_TOLERANCE = 0.2
"""Allowed difference of measured and published top-1, percentage points; covers half precision and JPEG decoding."""


class Probes(Section):
    """How frozen encoders are evaluated."""

    models: Annotated[list[Name], Unique] = []
    """Models to probe; empty: all of `models`."""
    baselines: Annotated[list[Literal["random", "position"]], Unique] = ["random", "position"]
    """Baselines to probe: `random` is an untrained encoder, `position` only the position embedding."""
    benchmarks: dict[Name, dict[str, Any]] = {}
    """Benchmarks to run, each with its `protocol` and the protocol's values to override (docs/probes.md)."""
    models_per_job: Positive = 5
    """Models per probing job, which share start-up and decoded images."""
    one_model_per_job: Annotated[list[Name], Unique] = []
    """Benchmarks of which each model has a job of its own, since several would take longer than a job may."""
    holdout: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the training split used to select a probe's hyper-parameters."""
    save_predictions: Annotated[int, Field(ge=0)] = 4
    """Number of evaluation samples whose predictions are stored with the result."""
    cache_gb: Annotated[float, Field(ge=0)] = 20.0
    """Maximum size of results/features, the cache of the frozen encoders' features; the least recently used ones are
    deleted first. The folder may be deleted at any time."""
    memory_gb: Annotated[float, Field(gt=0)] = 4.0
    """Memory for the features on which a head is trained; larger features are read from disk batch by batch."""

    @model_serializer(mode="wrap")
    def _without_default(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without(handler(self), "one_model_per_job", [])


class FineTuning(Section):
    """How an encoder is trained together with the heads of a benchmark's protocol."""

    frozen: Literal[False] = False
    """Must be false; frozen encoders are evaluated by `probes`."""
    heads: Annotated[list[Name], Unique] = []
    """Heads of the protocol in `probes.benchmarks`; empty: all that can be trained together with an encoder."""
    encoder_rates: Annotated[tuple[Rate, ...], Field(min_length=1)] = (1e-4,)
    """Peak learning rates of the encoder; of several, the best on the holdout is used."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    """AdamW weight decay of the encoder's matrices."""
    grad_clip: Rate = 1.0
    """Maximum norm of the encoder's gradient."""
    steps: Positive = 200
    """Optimizer steps for heads with a closed-form solution; trained heads use their own number."""
    batch_size: Positive = 32
    """Images per step for heads with a closed-form solution; trained heads use their own number."""
    head_rate: Rate = 1e-3
    """Peak learning rate of heads that start from a closed-form solution; trained heads use their own rate."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the steps with linear warm-up, for heads with a closed-form solution and their encoder."""


class Finetune(Section):
    """End-to-end fine-tuning on benchmarks: do the gains of frozen encoders persist? Results are stored separately."""

    benchmarks: dict[Name, FineTuning] = {}
    """Benchmarks to fine-tune on; protocol and number of images are those in `probes.benchmarks`."""
    baselines: Annotated[list[Literal["random"]], Unique] = ["random"]
    """Baselines: `random` is an untrained encoder, trained from scratch in the same way."""


class CaptionSet(Section):
    """Images with captions for retrieval; exactly one of `rendered`, `shards` and `benchmark`."""

    rendered: Positive | None = None
    """Number of pairs to render in addition to the training pairs, all with different captions."""
    shards: list[Pattern] = []
    """WebDataset tars, paths with brace patterns: an image and a .txt member with one caption per line."""
    benchmark: Name | None = None
    """Benchmark whose evaluation images have captions: coco, with annotations/captions_val2017.json."""
    images: Positive | None = None
    """Use only the first so many images; null: all."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if sum((self.rendered is not None, bool(self.shards), self.benchmark is not None)) != 1:
            raise ValueError("needs exactly one of rendered, shards and benchmark")
        return self


class Zeroshot(Section):
    """Zero-shot classification and retrieval."""

    benchmarks: Annotated[list[Name], Unique] = []
    """Classification benchmarks to run."""
    templates: Literal["openai", "simple"] = "simple"
    """Prompt templates of open_clip: `openai` has 80, `simple` has 7."""
    published: dict[Name, dict[Name, Annotated[float, Field(ge=0, le=100)]]] = {}
    """Published top-1 (percent) by model and benchmark; a measured value off by more than 0.2 points is an error."""
    retrieval: dict[Name, CaptionSet | None] = {}
    """Caption sets for image-text retrieval, by name; null: skip."""

    precision: EncoderPrecision = "fp32"
    """Precision of the frozen towers. `auto`: bf16 on GPUs that support it and on processors with AMX, else fp32."""

    @model_serializer(mode="wrap")
    def _without_default(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without(handler(self), "precision", "fp32")

    @property
    def caption_sets(self) -> list[str]:
        """Names of the caption sets that are not null."""
        return [name for name, caption_set in self.retrieval.items() if caption_set is not None]


class TrainingFree(Section):
    """Evaluation of frozen encoders without training anything: by text, or by comparing patch tokens."""

    benchmarks: dict[Name, dict[str, Any]] = {}
    """Benchmarks to run, each with its `protocol` and the protocol's values to override (docs/training-free.md)."""


class ClipBenchmark(Section):
    """The clip_benchmark command on its own data sets, an optional target: results/clip_benchmark/table.json."""

    datasets: dict[str, Literal["auto", "zeroshot_classification", "zeroshot_retrieval"]] = {}
    """Names of clip_benchmark's data sets, such as wds/vtab/cifar10, with the task; `auto`: clip_benchmark chooses."""
    suite: Literal["datacomp"] | None = None
    """`datacomp`: also those of DataComp's 38 evaluation sets that clip_benchmark can evaluate; the others are named in
    the result. Without `root` they come from the hub, but for those in the default folder. null: none."""
    published: FilePath | None = None
    """open_clip's table of results (docs/openclip_results.csv), to which released models are compared if there is a
    `suite`; null: the copy in the package."""
    shots: Annotated[list[Positive], Unique] = []
    """Few-shot linear probes: numbers of training images per class, such as [1, 2, 4, 8, 16]. They need the training
    splits of the suite's sets and of the classification sets in `datasets`; empty: none."""
    root: FilePath = "resources/clip_benchmark/{dataset_cleaned}"
    """Location of a data set: {dataset} is its name without wds/, {dataset_cleaned} has - in place of /. Either a
    folder written by `cliptex export-benchmark`, or
    https://huggingface.co/datasets/clip-benchmark/wds_{dataset_cleaned}/tree/main."""
    split: str = "test"
    """Evaluation split."""
    batch_size: Positive = 64
    """Images per forward pass."""
    workers: Annotated[int, Field(ge=0)] = 1
    """Processes that decode images; at most the number of tars of a data set."""

    @model_serializer(mode="wrap")
    def _without_unset(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values = handler(self)
        for key, default in (("suite", None), ("published", None), ("shots", [])):
            values = without(values, key, default)
        return values

    @field_validator("datasets")
    @classmethod
    def _slugs_differ(cls, datasets: dict[str, str]) -> dict[str, str]:
        slugs: dict[str, str] = {}
        for name in datasets:
            if not dataset_slug(name).strip("."):
                raise ValueError(f"{name!r} is not the name of a data set")
            if (other := slugs.setdefault(dataset_slug(name), name)) != name:
                raise ValueError(f"{name!r} and {other!r} would write the same files")
        return datasets


def dataset_slug(name: str) -> str:
    """A data set's name as part of a path: `wds/vtab/cifar10` -> `wds-vtab-cifar10`."""
    return re.sub(r"[^A-Za-z0-9_.]+", "-", name)


class Report(Section):
    """The report page."""

    title: str = "Did pseudo-supervision make CLIP better?"
    """Headline of the page."""
    gallery: Positive = 6
    """Images shown per benchmark, and of the labelled pairs."""
    extremes: Positive = 3
    """Evaluation images shown per task where CLIPTeX improves most, and as many where it degrades most."""
    resamples: Annotated[int, Field(ge=100)] = 1000
    """Bootstrap resamples of the evaluation images and seeds for the intervals of differences between models."""
    yardstick: Annotated[list[Name], Field(min_length=2, max_length=2), Unique] | None = None
    """Two models that differ by an ordinary recipe. The report shows the gap between them next to each gain; other than
    `clip`, `clip_ft` and `cliptex` they have no columns of their own. null: none."""

    @model_serializer(mode="wrap")
    def _without_default(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without(handler(self), "yardstick", None)


class Corruptions(Section):
    """How a study's evaluation images are corrupted; the probes' heads are trained on clean images."""

    kinds: Annotated[list[Literal["noise", "blur", "jpeg", "contrast", "fog"]], Unique] = [
        "noise",
        "blur",
        "jpeg",
        "contrast",
        "fog",
    ]
    """Corruptions (docs/studies.md)."""
    severities: Annotated[list[Annotated[int, Field(ge=1, le=5)]], Unique] = [1, 3, 5]
    """Severities, 1 to 5."""
    looks: list[Literal["dusk"]] = []
    """Other looks in which the miniature's evaluation scenes are rendered; not for official data."""
    images: Positive | None = None
    """Number of evaluation images to use, from the first; null: all."""
