"""Configuration of the data: the miniature, the image-caption pairs and their download, the benchmarks' data."""

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from cliptex.config.base import FilePath, Name, Pattern, Positive, Section, Share, Unique

RECORDED = frozenset({"voc", "ade20k", "coco", "nyuv2", "imagenet", "places365"})
"""Benchmarks whose numbers of images are in what every job that renders anything is given and records. A newer one is
only in that of the job that renders it, so that it reruns nothing else."""


class Split(Section):
    """Number of rendered images of a benchmark; spair71k, scannet1500: of pairs of images, davis2017: of videos."""

    train: Annotated[int, Field(ge=0)]
    """Number in the training split; 0 for scannet1500, which has none."""
    val: Positive
    """Number in the evaluation split."""


class Miniature(Section):
    """The miniature: small synthetic data sets, rendered locally in place of the real ones."""

    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of all scenes; a different seed gives different data sets."""
    image_size_px: Annotated[int, Field(ge=32)] = 96
    """Side of the square images, pixels."""
    pairs: Positive = 6000
    """Number of image-caption pairs, the replacement for CC3M."""
    pairs_per_shard: Positive = 500
    """Pairs in one WebDataset shard."""
    noisy_captions: Share = 0.2
    """Share of captions that are uninformative or belong to another image."""
    expert_train: Positive = 4000
    """Number of labelled images on which the experts are trained."""
    expert_val: Positive = 300
    """Number of labelled images on which the experts are evaluated."""
    benchmarks: dict[Name, Split] = {}
    """Benchmarks to render, each with its number of images per split."""


class Urls(Section):
    """List of image URLs and captions, and how the images are stored (source `urls`). A change downloads the images
    again."""

    files: Annotated[list[FilePath], Field(min_length=1), Unique]
    """Files with one row per image, read one after the other: .tsv, .csv (also .gz) or .parquet."""
    rows: Positive
    """Number of rows to use, from the first; 3318333 for all of CC3M. It is an error if the list has fewer."""
    columns: list[str] = []
    """Column names of a list without a header; [caption, url] for the official CC3M files."""
    url_column: str = "url"
    """Column with the URL."""
    caption_column: str = "caption"
    """Column with the caption."""
    sha256_column: str | None = None
    """Column with the expected SHA-256 of the downloaded bytes; null: not checked."""
    rows_per_shard: Annotated[int, Field(gt=0, le=10_000)] = 10_000
    """Rows of the list per shard; rows without a usable image leave it smaller."""
    size_px: Positive = 256
    """Larger images are resized so that their shorter side has this length, pixels; the aspect ratio is kept, and
    smaller images are stored unchanged."""
    jpeg_quality: Annotated[int, Field(ge=1, le=100)] = 95
    """JPEG quality of the images that are re-encoded."""
    min_side_px: Positive = 64
    """Smallest shorter side, pixels; smaller images are dropped."""
    max_aspect_ratio: Annotated[float, Field(ge=1)] = 10.0
    """Largest ratio of longer to shorter side; more elongated images are dropped."""
    max_bytes: Positive = 20_000_000
    """Largest size of a downloaded image, bytes; larger ones are dropped."""
    allow_private: list[str] = []
    """Hosts that may have a private address, for example a mirror in your own network. All other hosts must have a
    public one."""
    user_agent: str = "cliptex"
    """Name that the requests give in their User-Agent header, and to which a site's X-Robots-Tag may refer."""
    refused_directives: list[str] = ["noai", "noimageai", "noindex", "noimageindex", "noml"]
    """Images whose server sends one of these directives in the X-Robots-Tag header are dropped."""


class Dataset(Section):
    """Source of the image-caption pairs."""

    source: Literal["miniature", "webdataset", "urls"] = "miniature"
    """`miniature`: rendered. `webdataset`: existing tars. `urls`: downloaded from a list with img2dataset."""
    shards: list[Pattern] = []
    """Tars of source `webdataset`, in order: paths (also *.tar and ~), http(s) URLs, hf://datasets/owner/name/file.tar
    or pipe:COMMAND, with brace patterns such as {00000..00331}."""
    sha256: dict[str, str] = {}
    """Expected SHA-256 of downloaded tars, by URL; other tars are only checked for completeness."""
    urls: Urls | None = None
    """The list for source `urls`."""
    max_repeats: Positive = 10
    """An image whose exact bytes occur more often than this is dropped: it is a server's placeholder for removed
    images."""
    min_yield: Share = 0.9
    """Smallest share of usable samples; with fewer, indexing the shards fails. Old URL lists give 0.4 to 0.7."""


class Download(Section):
    """How pairs are downloaded. A change of these keys downloads nothing again."""

    python: FilePath = "python"
    """Python interpreter, by name or path, of the environment that has img2dataset."""
    shards_per_job: Positive = 10
    """Shards that one job downloads, or checks if they exist."""
    threads: Positive = 64
    """Simultaneous downloads per process; the number of processes is the job's threads."""
    timeout_s: Annotated[float, Field(gt=0)] = 10.0
    """Timeout without data from the server, seconds."""
    max_seconds: Annotated[float, Field(gt=0)] = 60.0
    """Timeout for one image as a whole (headers and body), seconds."""
    retries: Annotated[int, Field(ge=0)] = 1
    """Number of immediate retries of a failed URL."""
    second_try: bool = True
    """At the end of the job, retry URLs with errors that may be temporary (timeout, server busy, name not resolved)."""


class BenchmarkSource(Section):
    """Source of one benchmark's data."""

    plugin: Annotated[str, Field(pattern=r"^\w+(\.\w+)*:\w+$")] | None = None
    """Class of your own benchmark, "package.module:Class"; null: the module in cliptex/benchmarks/ with the benchmark's
    name."""
    source: Literal["miniature", "official", "subset", "own"] | None = None
    """In place of `benchmark_data.source`; null: the same. `subset`: fewer images in the official layout, in the folder
    `path`. `own`: your own benchmark, the default with `plugin`."""
    variant: str | None = None
    """Variant of the official data; null: the first. voc: `train`, or `trainaug` with SBD's masks. nyuv2: publication
    of the normals, `bae`, `dsine` or `ladicky`. places365: `easyformat`, or `small` with lists of files.
    pascal_context: `context59`, or `context60` with the class "background"."""
    path: FilePath | None = None
    """Folder with the official archives or their unpacked contents; it is never modified. What it lacks is downloaded
    where the terms of use permit it."""

    @model_serializer(mode="wrap")
    def _without_unset_plugin(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A benchmark of the package has no `plugin`, so that nothing depends on that key."""
        values = handler(self)
        if self.plugin is None:
            values.pop("plugin", None)
        return values


class BenchmarkData(Section):
    """Source of the benchmarks' data (docs/data.md). A change that leads to the same data reruns nothing."""

    source: Literal["miniature", "official"] | None = None
    """`miniature`: rendered. `official`: downloaded, or taken from `path`. null: `miniature` if the image-caption pairs
    are the miniature's, else `official`."""
    archives: FilePath | None = None
    """Your own table (TSV) of mirrors and additional archives; its rows override those of
    cliptex/benchmarks/archives.tsv."""
    keep_archives: bool = False
    """Whether downloaded archives are kept in resources/archives/ after unpacking."""
    benchmarks: dict[Name, BenchmarkSource] = {}
    """Sources of single benchmarks, by name."""
