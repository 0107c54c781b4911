"""Configuration of the evaluation: probes, fine-tuning, zero-shot, without training, and the report."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from cliptex.config.base import EncoderPrecision, FilePath, Name, Pattern, Positive, Rate, Section, Unique, without

PUBLISHED_TOLERANCE = 0.2
"""Allowed difference of measured and published top-1, percentage points; covers half precision and JPEG decoding."""


class Probes(Section):
    """Probes: heads that are trained on the features of frozen encoders."""

    models: Annotated[list[Name], Unique] = []
    """Models to probe; empty: all of `models`."""
    baselines: Annotated[list[Literal["random", "position"]], Unique] = ["random", "position"]
    """Baselines to probe. `random`: an untrained encoder. `position`: only the position of each patch, whatever the
    image."""
    benchmarks: dict[Name, dict[str, Any]] = {}
    """Benchmarks to probe, each with its `protocol` (a file in config/protocols/) and values that override the
    protocol's (docs/probes.md)."""
    models_per_job: Positive = 5
    """Models per probing job; they share the start-up and the decoded images."""
    one_model_per_job: Annotated[list[Name], Unique] = []
    """Benchmarks on which each model has a job of its own, because several would exceed a job's time limit."""
    holdout: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the training split that is held out to select the hyper-parameters of the heads."""
    save_predictions: Annotated[int, Field(ge=0)] = 4
    """Number of evaluation samples, the first ones, whose predictions are stored next to the result."""
    cache_gb: Annotated[float, Field(ge=0)] = 20.0
    """Maximum size of results/features/, the cache of the frozen encoders' features, GB; the least recently used ones
    are deleted first. You may delete the folder at any time."""
    memory_gb: Annotated[float, Field(gt=0)] = 4.0
    """Memory for the features on which a head is trained, GB; larger features are read from disk batch by batch."""

    @model_serializer(mode="wrap")
    def _without_default(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without(handler(self), "one_model_per_job", [])


class FineTuning(Section):
    """How an encoder is fine-tuned together with the heads of a benchmark's protocol."""

    frozen: Literal[False] = False
    """Must be false; frozen encoders are evaluated by `probes`."""
    heads: Annotated[list[Name], Unique] = []
    """Heads of the protocol in `probes.benchmarks` to train; empty: all that can be trained together with an encoder.
"""
    encoder_rates: Annotated[tuple[Rate, ...], Field(min_length=1)] = (1e-4,)
    """Peak learning rates of the encoder to try; the best one on the holdout is used."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    """AdamW weight decay of the encoder's matrices."""
    grad_clip: Rate = 1.0
    """Maximum norm of the encoder's gradient; a larger gradient is scaled down to it."""
    steps: Positive = 200
    """Optimizer steps for heads that probes solve in closed form; heads that probes train use the protocol's steps."""
    batch_size: Positive = 32
    """Images per step for heads that probes solve in closed form; heads that probes train use the protocol's batch
    size."""
    head_rate: Rate = 1e-3
    """Peak learning rate of heads that probes solve in closed form; heads that probes train use the protocol's rate."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the steps with linear warm-up, for heads that probes solve in closed form, and their encoder."""


class Finetune(Section):
    """End-to-end fine-tuning on benchmarks: do the gains of frozen encoders persist? The results are in
    results/finetuned/."""

    benchmarks: dict[Name, FineTuning] = {}
    """Benchmarks to fine-tune on; protocol and number of images are those in `probes.benchmarks`."""
    baselines: Annotated[list[Literal["random"]], Unique] = ["random"]
    """Baselines to fine-tune. `random`: an untrained encoder, trained in the same way."""


class CaptionSet(Section):
    """Images with captions for retrieval. Exactly one of `rendered`, `shards` and `benchmark` is set."""

    rendered: Positive | None = None
    """Number of pairs to render in addition to the training pairs; no two have the same caption."""
    shards: list[Pattern] = []
    """WebDataset tars: paths, also with brace patterns. Each sample has an image and a .txt member with one caption per
    line."""
    benchmark: Name | None = None
    """Benchmark whose evaluation images have captions: coco, from annotations/captions_val2017.json."""
    images: Positive | None = None
    """Number of images to use, the first ones; null: all."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if sum((self.rendered is not None, bool(self.shards), self.benchmark is not None)) != 1:
            raise ValueError("needs exactly one of rendered, shards and benchmark")
        return self


class Zeroshot(Section):
    """Zero-shot classification and image-text retrieval."""

    benchmarks: Annotated[list[Name], Unique] = []
    """Classification benchmarks to evaluate on."""
    templates: Literal["openai", "simple"] = "simple"
    """Prompt templates of open_clip, by which each class name becomes several prompts: `openai` has 80, `simple` has 7.
"""
    published: dict[Name, dict[Name, Annotated[float, Field(ge=0, le=100)]]] = {}
    """Published top-1 (percent) by model and benchmark; a measured value off by more than 0.2 points is an error."""
    retrieval: dict[Name, CaptionSet | None] = {}
    """Caption sets for image-text retrieval, by name; null removes one."""

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
    """Benchmarks to evaluate on, each with its `protocol` (a file in config/protocols/) and values that override the
    protocol's (docs/training-free.md)."""


class ClipBenchmark(Section):
    """Evaluation by the command clip_benchmark on its own data sets: the optional target
    results/clip_benchmark/table.json."""

    datasets: dict[str, Literal["auto", "zeroshot_classification", "zeroshot_retrieval"]] = {}
    """Data sets by clip_benchmark's names, such as wds/vtab/cifar10, each with its task; `auto`: clip_benchmark
    chooses."""
    suite: Literal["datacomp"] | None = None
    """`datacomp`: also those of DataComp's 38 evaluation sets that clip_benchmark can evaluate; the result names the
    others. If `root` is not set, those that are not in the default folder come from the Hugging Face hub. null: none.
"""
    published: FilePath | None = None
    """open_clip's table of results (docs/openclip_results.csv), with which released models are compared if `suite` is
    set; null: the copy in the package."""
    shots: Annotated[list[Positive], Unique] = []
    """Numbers of training images per class for few-shot linear probes, such as [1, 2, 4, 8, 16]. They need the training
    splits of the suite's sets and of the classification sets in `datasets`. Empty: no few-shot probes."""
    root: FilePath = "resources/clip_benchmark/{dataset_cleaned}"
    """Location of a data set. {dataset} stands for its name without wds/, {dataset_cleaned} for the same with - in
    place of /. Either a folder written by `cliptex export-benchmark`, or
    https://huggingface.co/datasets/clip-benchmark/wds_{dataset_cleaned}/tree/main."""
    split: str = "test"
    """Name of the evaluation split."""
    batch_size: Positive = 64
    """Images per forward pass."""
    workers: Annotated[int, Field(ge=0)] = 1
    """Processes that decode images; at most as many as a data set has tars."""

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
    """The page of the report, results/report.html."""

    title: str = "Did pseudo-supervision make CLIP better?"
    """Title of the page."""
    gallery: Positive = 6
    """Number of images shown per benchmark, and of labelled pairs."""
    extremes: Positive = 3
    """Number of evaluation images shown per task on which CLIPTeX improves most, and as many on which it degrades most.
"""
    resamples: Annotated[int, Field(ge=100)] = 1000
    """Number of bootstrap resamples, over evaluation images and seeds, for the intervals of differences between models.
"""
    yardstick: Annotated[list[Name], Field(min_length=2, max_length=2), Unique] | None = None
    """Two models that differ by an ordinary change of the training recipe. The report shows the difference between them
    next to each gain, as a scale. Other models than `clip`, `clip_ft` and `cliptex` have no columns of their own. null:
    none."""

    @model_serializer(mode="wrap")
    def _without_default(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without(handler(self), "yardstick", None)


class Corruptions(Section):
    """How a study's evaluation images are corrupted. The probes' heads are trained on clean images."""

    kinds: Annotated[list[Literal["noise", "blur", "jpeg", "contrast", "fog"]], Unique] = [
        "noise",
        "blur",
        "jpeg",
        "contrast",
        "fog",
    ]
    """Kinds of corruption (docs/studies.md)."""
    severities: Annotated[list[Annotated[int, Field(ge=1, le=5)]], Unique] = [1, 3, 5]
    """Severities of each kind, from 1 to 5, the strongest."""
    looks: list[Literal["dusk"]] = []
    """Other lighting in which the miniature's evaluation scenes are rendered: `dusk`. Not for official data."""
    images: Positive | None = None
    """Number of evaluation images to use, the first ones; null: all."""
