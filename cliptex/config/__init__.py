"""The configuration: every key, its type, default, unit and meaning. Unknown keys are errors.

One model serves the YAML files, the JSON schema (`cliptex config-schema`), the workflow and the command line.
"""

import json
import re
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from cliptex.core.errors import CliptexError

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
Positive = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


def _in_order(ends: tuple[float, float]) -> tuple[float, float]:
    if ends[0] > ends[1]:
        raise PydanticCustomError("order", "The smaller end comes first")
    return ends


Shares = Annotated[tuple[Share, Share], AfterValidator(_in_order)]
Rates = Annotated[tuple[Rate, Rate], AfterValidator(_in_order)]
HeadKind = Literal["light", "heavy", "heavier"]
MultiScale = Literal["ppm", "aspp", "none"]
AS_PUBLISHED = 0.2
"""Points by which a released model's top-1 may differ from the published: half precision, decoding of JPEGs."""


class Section(BaseModel):
    """Base of all sections: frozen, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Split(Section):
    """Number of images of a rendered benchmark."""

    train: Positive
    val: Positive


class Miniature(Section):
    """The rendered stand-ins for the real data sets."""

    seed: int = 0
    """Seed of every scene; another seed gives other data sets."""
    image_size_px: Annotated[int, Field(ge=32)] = 96
    """Side of the square renders, pixels."""
    pairs: Positive = 6000
    """Image-caption pairs, the stand-in for CC3M."""
    pairs_per_shard: Positive = 500
    """Pairs in one WebDataset shard."""
    noisy_captions: Share = 0.2
    """Share of captions that are uninformative or belong to another picture."""
    expert_train: Positive = 4000
    """Labelled renders on which the experts are trained."""
    expert_val: Positive = 300
    """Labelled renders on which the experts' held-out quality is measured."""
    benchmarks: dict[Name, Split] = {}
    """Number of images per benchmark and split."""


class Urls(Section):
    """A list of image urls and captions, and what is made of it (source `urls`). A change here downloads anew."""

    files: Annotated[list[str], Field(min_length=1)]
    """Files with a row an image: .tsv, .csv (also .gz) or .parquet."""
    rows: Positive
    """Rows to use, from the first; 3318333 for all of CC3M. A list that has fewer is an error that says how many."""
    columns: list[str] = []
    """Names of the columns of a list without a header; [caption, url] for the official CC3M files."""
    url_column: str = "url"
    """Column with the url."""
    caption_column: str = "caption"
    """Column with the caption."""
    sha256_column: str | None = None
    """Column with the SHA-256 that the downloaded bytes must have; none by default."""
    rows_per_shard: Annotated[int, Field(gt=0, le=10_000)] = 10_000
    """Rows of the list in one shard, before any is dropped."""
    size_px: Positive = 256
    """Shorter side of a stored image: bigger ones are shrunk with their aspect kept, smaller ones stay as they are."""
    jpeg_quality: Annotated[int, Field(ge=1, le=100)] = 95
    """JPEG quality of images that had to be encoded anew."""
    min_side_px: Positive = 64
    """Images with a shorter side below this are dropped."""
    max_aspect_ratio: Annotated[float, Field(ge=1)] = 10.0
    """Images whose longer side is more than this times the shorter are dropped."""
    max_bytes: Positive = 20_000_000
    """Bodies above this many bytes are refused."""
    allow_private: list[str] = []
    """Hosts whose address need not be public, for instance a mirror in the own network. All others must be public."""
    user_agent: str = "cliptex"
    """Name in the user agent, to which a site's X-Robots-Tag may refer."""
    refused_directives: list[str] = ["noai", "noimageai", "noindex", "noimageindex", "noml"]
    """X-Robots-Tag directives by which an image is left alone."""


class Dataset(Section):
    """Where the image-caption pairs come from."""

    source: Literal["miniature", "webdataset", "urls"] = "miniature"
    """`miniature`: rendered here. `webdataset`: tars that already exist. `urls`: downloaded with img2dataset."""
    shards: list[str] = []
    """The tars of source `webdataset`, in order: paths, http(s) urls or hf://datasets/owner/name/file.tar, with
    brace patterns such as {00000..00331}."""
    sha256: dict[str, str] = {}
    """SHA-256 of tars that are downloaded, by url; others are checked for completeness only."""
    urls: Urls | None = None
    """The list of source `urls`."""
    max_repeats: Positive = 10
    """Images that occur, byte for byte, more often than this are taken for a placeholder and dropped."""
    min_yield: Share = 0.9
    """Below this share of usable samples the shard index refuses the data set. Old lists of urls give 0.4 to 0.7."""


class Download(Section):
    """How pairs are downloaded; no change here downloads anything anew."""

    python: str = "python"
    """Python of the environment that has img2dataset, by name or path."""
    shards_per_job: Positive = 10
    """Shards downloaded, or checked, in one job."""
    threads: Positive = 64
    """Simultaneous downloads of one process; the number of processes is the job's threads."""
    timeout_s: Annotated[float, Field(gt=0)] = 10.0
    """Longest silence of a server, seconds."""
    max_seconds: Annotated[float, Field(gt=0)] = 60.0
    """Longest time for one image's headers and body, seconds."""
    retries: Annotated[int, Field(ge=0)] = 1
    """Immediate tries again of a failed url."""
    second_try: bool = True
    """Try once more, at the end of the job, what may have failed for a while (no answer, busy, no name)."""


class Expert(Section):
    """An expert: where its weights come from and how it is run."""

    plugin: str | None = None
    """Module in cliptex/experts/ or "package.module:Class"; the expert's own name when absent."""
    weights: Literal["trained", "url", "hub", "local", "random"] = "trained"
    """`trained`: by this workflow on labelled renders. `url`: downloaded from `url`. `hub`: from the Hugging Face
    repository `repo`. `local`: the file or folder `path`. `random`: untrained, for tests and benchmarks only."""
    url: str | None = None
    """Address (http or https) of the weight file for `url`."""
    repo: str | None = None
    """Repository for `hub`, e.g. "Intel/dpt-large"."""
    revision: str | None = None
    """Commit, tag or branch of `repo`; the default branch when absent. The commit found is recorded."""
    file: str | None = None
    """File in `repo` to use; when absent config.json, preprocessor_config.json and the model's weights."""
    path: str | None = None
    """Weight file (safetensors, or PyTorch's, of tensors alone), or folder of a saved model, for `local`."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{8,64}$")] | None = None
    """SHA-256 of the weight file, or at least its first 8 digits; other weights are refused."""
    licence: str | None = None
    """Licence of the weights, recorded in the label store; "Apache-2.0" when absent for weights made here, else
    "unknown"."""
    batch_size: Positive = 32
    """Images a forward pass."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Number format of the network, in training and in labelling; `auto`: bf16 where the GPU computes it natively or
    the processor has AMX."""
    network: dict[str, Any] = {}
    """Architecture and inference options, read by the expert."""
    training: dict[str, Any] = {}
    """Training options (steps, batch_size, learning_rate, ...), read by the expert."""

    @property
    def licence_name(self) -> str:
        """`licence`, or what stands for it."""
        return self.licence or ("Apache-2.0" if self.weights in ("trained", "random") else "unknown")


class Backbone(Section):
    """An encoder that is pre-trained on labelled renders of all tasks; the experts trained here start from it."""

    encoder: str = "cliptex_resnet"
    """timm architecture with features at 1/4, 1/8, 1/16 and 1/32."""
    encoder_options: dict[str, Any] = {}
    """Keyword arguments for timm."""
    channels: Positive = 64
    """Channels of the feature pyramid that is thrown away afterwards."""
    input_size_px: Positive = 64
    """Side of the square that the encoder sees."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Number format; `auto`: bf16 where the GPU computes it natively or the processor has AMX."""
    training: dict[str, Any] = {}
    """Optimizer steps and rates, as an expert's."""


class LabelStore(Section):
    """A label store: a task's pseudo-labels made by one expert."""

    task: str
    """Module in cliptex/tasks/ or "package.module:Class"."""
    expert: Name
    """Name of an entry in `experts`."""
    of: Name | None = None
    """Store of the same task whose labels the expert changes, for an expert that does (`degraded`)."""


class Labels(Section):
    """How shards are labelled."""

    shards_per_job: Positive = 10
    """Shards that one labelling job does. Choose it before labelling: a change keeps the labels, but trains the models
    that learn from them again."""
    max_side_px: Positive = 256
    """Label grids are no larger than this; larger images are labelled at full size and the label is resized."""
    max_image_side_px: Positive = 2048
    """Larger images are shrunk to this longer side before an expert sees them, so that memory is bounded. Those that
    are published see no more than 1333 pixels of a side."""


class Student(Section):
    """The CLIP that is trained."""

    architecture: str | dict[str, Any] = "ViT-B-16"
    """Name of an open_clip architecture, or an open_clip `model_cfg`."""
    pretrained: str | None = None
    """open_clip pretrained tag, or path of a checkpoint or of an exported folder; null starts from random weights."""


class Watch(Section):
    """What is looked at while a model trains. Nothing here changes its weights."""

    zero_shot: Name | None = None
    """Classification benchmark on which zero-shot accuracy is measured before step 1, after every `every_epochs` and at
    the end; null: not at all."""
    zero_shot_images: Positive = 1000
    """Images of the benchmark's evaluation split that are used, evenly spread over it."""
    max_drop: Annotated[float, Field(ge=0)] | None = None
    """Points of top-1 accuracy that may be lost against the start before `on_drop` happens; 5 where `zero_shot` is set
    and this is left out, null: any."""
    on_drop: Literal["warn", "stop"] = "warn"
    """`warn`: a line in the log and in train.json. `stop`: the run ends with an error."""
    every_epochs: Positive = 1
    """Epochs between measurements, of zero-shot and on held-out pairs."""

    @model_validator(mode="before")
    @classmethod
    def _with_an_alarm(cls, given: Any) -> Any:
        """In place of another default, which would be a changed parameter of trainings without `zero_shot`, too."""
        if isinstance(given, dict) and given.get("zero_shot") and "max_drop" not in given:
            return given | {"max_drop": 5.0}
        return given


class Train(Section):
    """Training settings that all models share."""

    batch_size: Positive = 128
    """Image-caption pairs a step, over all processes and micro batches; each is a negative of all others."""
    accumulate: Positive = 1
    """Micro batches into which a process divides its part of a batch; needs less memory, and a second forward pass."""
    crop_sizes_px: tuple[Positive, ...] = ()
    """Crop sizes of which each step draws one, with a batch that keeps the number of patches; empty: the encoder's."""
    held_out: Annotated[int, Field(ge=0)] = 0
    """Pairs kept out of training, on which each head is compared with the pseudo-labels."""
    warmup_steps: Annotated[int, Field(ge=0)] = 20
    """Steps of linear warm-up, before a cosine to zero."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """AdamW weight decay; norms, biases, embeddings and the logit scale have none."""
    beta2: Share = 0.98
    """AdamW second-moment decay."""
    grad_clip: Rate = 1.0
    """Largest gradient norm."""
    crop_scale: Shares = (0.5, 1.0)
    """Area of the random crop as a share of the image."""
    flip: Share = 0.5
    """Probability of a horizontal flip."""
    target_size_px: Positive = 32
    """Side of the grid on which dense losses are computed, pixels."""
    multi_scale: MultiScale = "ppm"
    """Shared module between encoder and task heads: pyramid pooling (PSPNet), dilated convolutions (DeepLabV3), or
    none."""
    multi_scale_channels: Positive = 128
    """Output channels of the multi-scale module, and of the inner layers of heavy heads."""
    multi_scale_rates: Annotated[tuple[Positive, ...], Field(min_length=1)] = (6, 12, 18)
    """Dilations of `aspp`, in patches. One that is not below the side of the patch grid sees nothing but the centre."""
    heads: HeadKind = "light"
    """A task's head: one 1x1 convolution; `heavy`: two 3x3 ones before it; `heavier`: four."""
    label_prior_cells: Annotated[int, Field(ge=0)] = 8
    """Side of the grid on which the heads hold what labels have in common at each place, so that the encoder need not
    learn where a patch lies; fitted before the first step. 0: none, as in the paper."""
    head_rate_factor: Rate = 4.0
    """Learning rate of module and heads, relative to the encoder's."""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay a step of an exponential moving average of all weights, which then is what is exported; null: none."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """`auto`: bf16 where the GPU computes it natively or the processor has AMX, else fp32; recorded in train.json.
    `fp16`, for GPUs without bf16, scales the loss."""
    checkpoint_activations: bool = False
    """Compute the towers' activations again in the backward pass; needs less memory, and a third more time."""
    compile: bool = False
    """Compile the towers with torch.compile."""
    log_every: Positive = 10
    """Steps between lines of metrics.jsonl."""
    trackers: tuple[Literal["tensorboard", "wandb", "wandb_offline"], ...] = ("tensorboard",)
    """Where those lines go besides, while the run goes on; see docs/training.md."""
    checkpoint_every: Positive = 100
    """Steps between rolling checkpoints."""
    shuffle_shards: Positive = 16
    """Shards shuffled together; of their labels, those of a process' own rows are held in memory."""
    watch: Watch = Watch()
    """What is looked at on the way."""


class Interpolation(Section):
    """Weights between those of two models (WiSE-FT, Wortsman et al. 2022, "Robust fine-tuning of zero-shot models")."""

    of: Name
    """The model at alpha = 1, usually the fine-tuned one."""
    with_: Name = Field(alias="with")
    """The model at alpha = 0, usually the one that it started from. Same architecture, same seed."""
    alpha: Share = 0.5
    """Each weight is alpha times that of `of` plus 1 - alpha times that of `with`."""


class Model(Section):
    """A named training run, or an interpolation of two."""

    interpolate: Interpolation | None = None
    """Make it from two other models, without any training; no other key may then be given."""
    init: Name | None = None
    """Model whose final weights it starts from (same seed); null starts from `student`."""
    steps: Annotated[int, Field(ge=0)] = 0
    """Optimizer steps; 0 exports the starting weights."""
    learning_rate: Rate = 1e-3
    """Peak learning rate."""
    patch_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of patches left out of each training image (FLIP, Li et al. 2023); contrastive models only."""
    tasks: dict[Name, Annotated[float, Field(gt=0)]] = {}
    """Label stores to learn from, and the weight of each task's loss; empty is contrastive only."""
    losses: dict[Name, dict[str, Any]] = {}
    """Options of the tasks' losses, by label store, where they are not to be the defaults; docs/models.md has them."""
    contrastive_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the contrastive loss."""
    shuffle_labels: bool = False
    """Control: every image gets the pseudo-labels of another one."""
    heads: HeadKind | None = None
    """In place of `train.heads`."""
    multi_scale: MultiScale | None = None
    """In place of `train.multi_scale`."""

    def sources(self) -> list[str]:
        """The models that it is made from: `init`, or the two that are interpolated."""
        if self.interpolate is not None:
            return [self.interpolate.of, self.interpolate.with_]
        return [] if self.init is None else [self.init]


class Probes(Section):
    """How frozen encoders are judged."""

    models: list[Name] = []
    """Models to probe; all of `models` when empty."""
    baselines: list[Literal["random", "position"]] = ["random", "position"]
    """Untrained encoder, and position embedding alone, beside the models."""
    benchmarks: dict[Name, dict[str, Any]] = {}
    """Benchmarks to run; per benchmark its `protocol`, and what of the protocol's values is to be different
    (docs/probes.md)."""
    models_per_job: Positive = 5
    """Models that one probing job does, sharing start-up and decoded images."""
    holdout: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the training split on which a probe's hyper-parameters are chosen."""
    save_predictions: Annotated[int, Field(ge=0)] = 4
    """Evaluation samples whose predictions are kept beside the result."""
    cache_gb: Annotated[float, Field(ge=0)] = 20.0
    """Disk for the features of frozen encoders, results/features, in all; the least recently used are deleted for new
    ones. The folder may be deleted at any time."""
    memory_gb: Annotated[float, Field(gt=0)] = 4.0
    """Memory for the features with which a head is trained; larger ones are read from disk batch by batch."""


class FineTuning(Section):
    """How an encoder is trained together with the heads of a benchmark's protocol."""

    frozen: Literal[False] = False
    """The encoder learns. One that does not is judged by `probes`."""
    heads: list[Name] = []
    """Heads of the protocol in `probes.benchmarks`; all that can be trained with an encoder when empty."""
    encoder_rates: Annotated[tuple[Rate, ...], Field(min_length=1)] = (1e-4,)
    """Peak learning rates of the encoder; of several the one best on the holdout is taken."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    """AdamW weight decay of the encoder's matrices."""
    grad_clip: Rate = 1.0
    """Largest norm of the encoder's gradient."""
    steps: Positive = 200
    """Optimizer steps of heads that the protocol solves in closed form; trained heads keep their own number."""
    batch_size: Positive = 32
    """Images a step of these heads; trained heads keep their own."""
    head_rate: Rate = 1e-3
    """Peak learning rate of these heads, which start from their solution; trained heads keep their own."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the steps in which the rates of these heads, and their encoder's, rise to their peaks."""


class Finetune(Section):
    """End-to-end fine-tuning on benchmarks: do the gains of frozen encoders survive it? Results lie apart."""

    benchmarks: dict[Name, FineTuning] = {}
    """Benchmarks to fine-tune on; protocol and number of images are those in `probes.benchmarks`."""
    baselines: list[Literal["random"]] = ["random"]
    """Untrained encoder, trained from scratch in the same way, beside the models."""


class CaptionSet(Section):
    """Images with captions, on which retrieval is judged; exactly one of `rendered`, `shards` and `benchmark`."""

    rendered: Positive | None = None
    """The miniature's: so many pairs rendered beside those of training, no two with the same caption."""
    shards: list[str] = []
    """WebDataset tars, paths with brace patterns: an image and a .txt member with a caption a line."""
    benchmark: Name | None = None
    """A benchmark whose evaluation images have captions: coco, with annotations/captions_val2017.json."""
    images: Positive | None = None
    """Only the first images; all when null."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if sum((self.rendered is not None, bool(self.shards), self.benchmark is not None)) != 1:
            raise ValueError("zeroshot.retrieval: a set of captions needs one of rendered, shards and benchmark")
        return self


class Zeroshot(Section):
    """Zero-shot classification and retrieval."""

    benchmarks: list[Name] = []
    """Classification benchmarks to run."""
    templates: Literal["openai", "simple"] = "simple"
    """Prompt templates of open_clip: OpenAI's 80, or the 7 of the simple list."""
    published: dict[Name, dict[Name, Annotated[float, Field(ge=0, le=100)]]] = {}
    """Top-1 accuracy in percent that its publication says of a released model, by model and benchmark; another by more
    than 0.2 points is an error."""
    retrieval: dict[Name, CaptionSet | None] = {}
    """Sets of captioned images on which image-text retrieval is judged, by name; null leaves one out."""

    @property
    def caption_sets(self) -> list[str]:
        """Names of the sets that are not left out."""
        return [name for name, given in self.retrieval.items() if given is not None]


class ClipBenchmark(Section):
    """The clip_benchmark command on data sets of its own, an optional target: results/clip_benchmark/table.json."""

    datasets: dict[str, Literal["auto", "zeroshot_classification", "zeroshot_retrieval"]] = {}
    """Data sets as clip_benchmark names them, such as wds/vtab/cifar10, and the task; `auto`: by clip_benchmark."""
    root: str = "resources/clip_benchmark/{dataset_cleaned}"
    """Where a data set lies: {dataset} is its name without wds/, {dataset_cleaned} that with - for /. A folder as
    `cliptex export-benchmark` writes it, or https://huggingface.co/datasets/clip-benchmark/wds_{dataset_cleaned}/tree/main."""
    split: str = "test"
    """Split that is judged."""
    batch_size: Positive = 64
    """Images in one forward pass."""
    workers: Annotated[int, Field(ge=0)] = 1
    """Processes that decode; no more than a data set has tars."""

    @model_validator(mode="after")
    def _slugs_differ(self) -> Self:
        slugs: dict[str, str] = {}
        for name in self.datasets:
            if not dataset_slug(name).strip("."):
                raise ValueError(f"clip_benchmark.datasets: {name!r} names no data set")
            if (other := slugs.setdefault(dataset_slug(name), name)) != name:
                raise ValueError(f"clip_benchmark.datasets: {name!r} and {other!r} would write the same files")
        return self


def dataset_slug(name: str) -> str:
    """A data set's name as part of a path: `wds/vtab/cifar10` -> `wds-vtab-cifar10`."""
    return re.sub(r"[^A-Za-z0-9_.]+", "-", name)


class Report(Section):
    """The report page."""

    title: str = "Did pseudo-supervision make CLIP better?"
    """Headline of the page."""
    gallery: Positive = 6
    """Pictures a benchmark and of the labelled pairs."""
    extremes: Positive = 3
    """Evaluation images shown of those where CLIPTeX helps most, and of those where it hurts most, a task."""
    resamples: Annotated[int, Field(ge=100)] = 1000
    """Draws of the evaluation images and seeds from which the intervals of differences between models are computed."""


class BenchmarkSource(Section):
    """Where the data of one benchmark come from."""

    source: Literal["miniature", "official"] | None = None
    """In place of `benchmark_data.source`."""
    variant: str | None = None
    """Which of the official data. voc: `train`, or `trainaug` with SBD's masks. nyuv2: whose normals, `bae`, `dsine` or
    `ladicky`. places365: `easyformat`, or `small` with lists of files. The first when null."""
    path: str | None = None
    """Folder that holds official archives, or what they unpack to. Nothing in it is changed. What it lacks is
    downloaded, where that is allowed."""


class BenchmarkData(Section):
    """Where the data of the benchmarks come from (docs/data.md). No other place of the same data redoes anything."""

    source: Literal["miniature", "official"] | None = None
    """`miniature`: rendered here. `official`: downloaded, or given by `path`. When null, official but for the
    miniature's own pairs."""
    archives: str | None = None
    """Table (TSV) of mirrors and further archives; its rows replace those of cliptex/benchmarks/archives.tsv."""
    keep_archives: bool = False
    """Keep downloaded archives in resources/archives after they have been unpacked."""
    benchmarks: dict[Name, BenchmarkSource] = {}
    """What is special, by benchmark."""


class Corruptions(Section):
    """How the evaluation images of a study are made worse; the probes' heads are trained on clean ones."""

    kinds: list[Literal["noise", "blur", "jpeg", "contrast", "fog"]] = ["noise", "blur", "jpeg", "contrast", "fog"]
    """Which corruptions (docs/studies.md)."""
    severities: list[Annotated[int, Field(ge=1, le=5)]] = [1, 3, 5]
    """How strong, from 1 to 5."""
    looks: list[Literal["dusk"]] = []
    """Other looks in which the miniature's evaluation scenes are rendered; none for official data."""
    images: Positive | None = None
    """Evaluation images that are used, from the first; all when null."""


class Study(Section):
    """A question, the runs that answer it, and how they are judged. Its models start from, and share the shards and
    label stores of, the configuration that it is laid over."""

    name: Name
    """Its folder in results/studies/."""
    title: str
    """Headline of its page."""
    question: str
    """What it asks, a sentence."""
    limits: str
    """What it cannot show even where it shows something, the end of a sentence: "nor does it tell ..."."""
    form: Literal["differences", "tradeoff", "cost", "finetuning", "robustness"] = "differences"
    """What its plot shows: differences to the reference; dense metrics against zero-shot; against cost; of frozen and
    of tuned encoders; under corruptions."""
    reference: Name = "clip_ft"
    """The model that the others are compared with."""
    shown: list[Name] = ["cliptex"]
    """Models of the main run that stand beside its own."""
    experts: dict[Name, Expert] = {}
    """Its own experts."""
    label_stores: dict[Name, LabelStore] = {}
    """Its own label stores."""
    models: dict[Name, Model] = {}
    """Its own models."""
    rows: list[tuple[Name, str]] = []
    """All models that it compares, in the order of the page, and how they are called there; as they come when empty."""
    probes: dict[Name, list[Name]] = {}
    """Benchmarks among `probes.benchmarks`, and which of their heads are trained."""
    zeroshot: list[Name] = []
    """Benchmarks among `zeroshot.benchmarks`."""
    corruptions: Corruptions | None = None
    """What the evaluation images go through, for `robustness`."""

    @property
    def judged(self) -> list[str]:
        """All models that it compares, in the order of the page."""
        named = [model for model, _ in self.rows]
        return list(dict.fromkeys([*named, self.reference, *self.shown, *self.models]))


class Config(Section):
    """The whole configuration."""

    dataset: Dataset = Dataset()
    download: Download = Download()
    benchmark_data: BenchmarkData = BenchmarkData()
    miniature: Miniature = Miniature()
    backbone: Backbone | None = None
    """What the experts trained here start from; null: random weights."""
    experts: dict[Name, Expert] = {}
    """The experts, by name."""
    label_stores: dict[Name, LabelStore] = {}
    """The label stores, by name (the task's name by default)."""
    labels: Labels = Labels()
    student: Student = Student()
    train: Train = Train()
    models: dict[Name, Model] = {}
    """The models, by name."""
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] = [0]
    """Seeds of training and probing; each gives one column of runs."""
    probes: Probes = Probes()
    finetune: Finetune = Finetune()
    zeroshot: Zeroshot = Zeroshot()
    clip_benchmark: ClipBenchmark = ClipBenchmark()
    report: Report = Report()
    plugins: list[str] = []
    """Folders with modules of your own, put on Python's path for every job; relative to the working directory, or else
    to the folder of the Snakefile."""
    study: Study | None = None
    """A study, made by the target `study` (docs/studies.md)."""

    @model_validator(mode="after")
    def _names_exist(self) -> Self:
        """Check references between sections. A subset without the section referred to is accepted."""
        for name, expert in self.experts.items():
            key = {"url": "url", "hub": "repo", "local": "path"}.get(expert.weights)
            if key and getattr(expert, key) is None:
                raise ValueError(f"experts.{name}.{key}: weights {expert.weights!r} need it; see docs/experts.md")
        for name, store in self.label_stores.items():
            if self.experts and store.expert not in self.experts:
                raise ValueError(f"label_stores.{name}.expert: {store.expert!r} is not one of {sorted(self.experts)}")
            if store.of in self.label_stores and self.label_stores[store.of].of is not None:
                raise ValueError(f"label_stores.{name}.of: {store.of!r} has changed labels itself; name its source")
        for name, model in self.models.items():
            for store in model.tasks:
                if self.label_stores and store not in self.label_stores:
                    raise ValueError(f"models.{name}.tasks: {store!r} is not one of {sorted(self.label_stores)}")
            if unknown := sorted(model.losses.keys() - model.tasks.keys()):
                raise ValueError(f"models.{name}.losses: {unknown[0]!r} is not among its tasks, {sorted(model.tasks)}")
            if model.tasks and model.patch_dropout:
                raise ValueError(f"models.{name}.patch_dropout: tasks need every patch; set it to 0")
            if model.interpolate is not None:
                self._check_interpolation(name, model)
            self._refuse_circles([name])
        for name in self.probes.models:
            if self.models and name not in self.models:
                raise ValueError(f"probes.models: {name!r} is not one of {sorted(self.models)}")
        for name, figures in self.zeroshot.published.items():
            if self.models and name not in self.models:
                raise ValueError(f"zeroshot.published: {name!r} is not one of {sorted(self.models)}")
            if self.zeroshot.benchmarks and (unknown := sorted(figures.keys() - set(self.zeroshot.benchmarks))):
                known = sorted(self.zeroshot.benchmarks)
                raise ValueError(f"zeroshot.published.{name}: {unknown[0]!r} is not one of {known}")
        taken = {*self.zeroshot.benchmarks, *self.probes.benchmarks, *self.miniature.benchmarks}
        if both := [name for name in self.zeroshot.caption_sets if name in taken]:
            raise ValueError(f"zeroshot.retrieval: {both[0]!r} is the name of a benchmark; choose another")
        return self

    def _check_interpolation(self, name: str, model: Model) -> None:
        for key, field in Model.model_fields.items():
            if key != "interpolate" and getattr(model, key) != field.get_default(call_default_factory=True):
                raise ValueError(
                    f"models.{name}.{key}: a model that is interpolated is not trained; remove it, or `interpolate`"
                )
        for key, other in zip(("of", "with"), model.sources(), strict=True):
            if other not in self.models:
                raise ValueError(f"models.{name}.interpolate.{key}: {other!r} is not one of {sorted(self.models)}")

    def _refuse_circles(self, chain: list[str]) -> None:
        """chain: models, each made from the next."""
        model = self.models[chain[-1]]
        for other in model.sources():
            if other in chain:
                key = "init" if self.models[chain[0]].interpolate is None else "interpolate"
                raise ValueError(f"models.{chain[0]}.{key}: the chain {' -> '.join([*chain, other])} is a circle")
            if other in self.models:
                self._refuse_circles([*chain, other])

    @classmethod
    def load(cls, source: str | Path | Mapping[str, Any]) -> Self:
        """Read a YAML file, a JSON text (starts with "{") or a mapping.

        Raises CliptexError that names the file, the key and what is wrong with it.
        """
        where = "configuration"
        if not isinstance(source, Mapping):
            text = str(source)
            if not text.lstrip().startswith("{"):
                where = text
                try:
                    text = Path(source).read_text()
                except OSError as error:
                    raise CliptexError(
                        f"{where}: cannot be read ({error.strerror}); name a configuration file, as --config FILE"
                    ) from error
                except ValueError as error:  # bytes that are no text
                    raise CliptexError(f"{where}: not a text in UTF-8 ({error})") from error
            try:
                source = yaml.safe_load(text) or {}
            except (yaml.YAMLError, ValueError) as error:  # the latter for a date or a number that is none
                mark = getattr(error, "problem_mark", None)
                what = f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}" if mark else error
                raise CliptexError(f"{where}: not valid YAML ({what})") from error
            except RecursionError as error:
                raise CliptexError(f"{where}: not a configuration: nested too deeply") from error
            if not isinstance(source, Mapping):
                raise CliptexError(f"{where}: not a configuration, which has sections such as dataset: and train:")
        try:
            return cls.model_validate(dict(source))
        except ValidationError as error:
            problems = []
            for item in error.errors():
                key = ".".join(str(part) for part in item["loc"])
                if item["type"] == "extra_forbidden":
                    problems.append(f"{key}: unknown key")
                elif item["type"] == "value_error":
                    problems.append(str(item["ctx"]["error"]))
                else:
                    problems.append(f"{key}: {item['msg']}, got {reprlib.repr(item['input'])}")
            raise CliptexError(f"{where}: " + "; ".join(problems)) from error

    def benchmark_source(self, benchmark: str) -> BenchmarkSource:
        """Where a benchmark's data come from, with `source` filled in."""
        given = self.benchmark_data.benchmarks.get(benchmark, BenchmarkSource())
        usual = "miniature" if self.dataset.source == "miniature" else "official"
        return given.model_copy(update={"source": given.source or self.benchmark_data.source or usual})

    def plain(self) -> dict[str, Any]:
        """The configuration as JSON values, defaults filled in."""
        return self.model_dump(mode="json", by_alias=True)

    def subset(self, *keys: str) -> str:
        """JSON text with only these dotted keys, e.g. `subset("train", "models.clip")`.

        The workflow hands it to a stage, so that a job is redone exactly when a value it uses has changed.
        """
        plain = self.plain()
        out: dict[str, Any] = {}
        for key in keys:
            *parents, last = key.split(".")
            source, target = plain, out
            for parent in parents:
                source, target = source[parent], target.setdefault(parent, {})
            target[last] = source[last]
        return json.dumps(out, sort_keys=True, separators=(",", ":"))
