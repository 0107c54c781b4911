"""The paths of all shards, and which of them a job processes. Imports nothing heavy, since the workflow uses it."""

import glob
import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from braceexpand import braceexpand

from cliptex.config import Config
from cliptex.core import paths
from cliptex.core.errors import CliptexError
from cliptex.core.files import sha256_json

MAX_SHARDS = 1_000_000
DOWNLOADED = ("http", "https", "hf")
PIPED = ("pipe", "gs", "htgs", "ais", "sftp", "ftps", "scp")
"""Schemes that webdataset's `gopen` opens by running a command."""
SCHEME = re.compile(r"pipe(?=:)|(?!file:)[a-z][a-z0-9+.-]*(?=://)")
RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.(-?\d+))?")
INNER_BRACES = re.compile(r"\{([^{}]*)\}")
COUNT = re.compile(r"\0(\d+)\0")


SHARD_KEYS = ("dataset.source", "dataset.shards", "dataset.sha256", "dataset.urls", "download.shards_per_job")
"""Keys of the configuration that determine the shards."""
INDEX_KEYS = (*SHARD_KEYS, "dataset.max_repeats", "miniature.pairs", "miniature.pairs_per_shard")
"""Keys of the configuration that the shard index depends on."""


def data_sha256(config: Config) -> str:
    """Digest of the values that determine the index's contents, by which the index of another run is noticed."""
    return sha256_json(json.loads(config.subset(*(key for key in INDEX_KEYS if not key.startswith("download.")))))


def shard_sources(config: Config) -> list[str]:
    """Paths and URLs of the tars of source `webdataset`, in order, with braces, globs, `~` and variables expanded.

    Raises CliptexError if there are none, and for a source that is not supported.
    """
    if not config.dataset.shards:
        raise CliptexError("dataset.shards: source 'webdataset' needs the paths of the tars")
    return _expand(config.dataset.shards, "dataset.shards")


def caption_tars(config: Config, name: str) -> list[Path]:
    """The tars of an entry of `zeroshot.retrieval`, in order; none if its captions are those of a benchmark."""
    caption_set = config.zeroshot.retrieval[name]
    if caption_set.rendered is not None:
        return [paths.benchmark(name) / "00000.tar"]
    key = f"zeroshot.retrieval.{name}.shards"
    sources = _expand(caption_set.shards, key)
    if remote := next(filter(is_remote, sources), None):
        raise CliptexError(f"{key}: {remote} is not a local file; download the tar and give its path")
    return [Path(source) for source in sources]


def is_remote(source: str) -> bool:
    """Whether a tar must be downloaded, or is what a command prints."""
    return SCHEME.match(source) is not None


def _expand(patterns: list[str], key: str) -> list[str]:
    return [source for pattern in patterns for text in _braces(pattern, key) for source in _files(text, key)]


def _braces(pattern: str, key: str) -> Iterator[str]:
    """Expand braces, from the inside out counted first: braceexpand holds in memory what they stand for."""

    def count(group: re.Match) -> str:
        if numbers := RANGE.fullmatch(group[1]):
            first, last, step = (int(number or 1) for number in numbers.groups())
            return f"\0{abs(last - first) // max(abs(step), 1) + 1}\0"
        return f"\0{sum(map(product, group[1].split(',')))}\0"

    def product(text: str) -> int:
        return math.prod(map(int, COUNT.findall(text)))

    try:
        counted = pattern
        while INNER_BRACES.search(counted):
            counted = INNER_BRACES.sub(count, counted)
        if product(counted) > MAX_SHARDS:
            raise CliptexError(f"{key}: {pattern!r} stands for more than {MAX_SHARDS:,} tars; correct the braces")
        return braceexpand(pattern)
    except ValueError as error:
        raise CliptexError(f"{key}: braces do not match ({error}); write for example {{00000..00331}}.tar") from error


def _files(source: str, key: str) -> list[str]:
    """The files that a path stands for, or a URL as it is."""
    if scheme := SCHEME.match(source):
        if scheme[0] not in (*DOWNLOADED, *PIPED, *os.environ.get("USE_AIS_FOR", "").split(":")):
            raise CliptexError(
                f"{key}: {source}: {scheme[0]}: is not supported; write a command that prints the tar, such as"
                f" 'pipe:aws s3 cp {source} -', or copy the tar and give its path"
            )
        return [source]
    if source.startswith("file:"):
        source = unquote(urlsplit(source).path)
    source = os.path.expandvars(Path(source).expanduser() if source.startswith("~") else source)
    if Path(source).is_dir():
        raise CliptexError(f"{key}: {source} is a folder; for the tars in it, write {source.rstrip('/')}/*.tar")
    if glob.has_magic(source) and not Path(source).exists():
        if found := sorted(glob.glob(source, recursive=True)):  # noqa: PTH207, Path.glob takes no absolute pattern
            return found
        raise CliptexError(f"{key}: no file matches {source}; correct the path")
    return [source]


def shard_paths(config: Config) -> list[Path]:
    """Paths of all shards, in order. The user's own tars are used in place, unless they are compressed.

    Raises CliptexError if the configuration has no data for its source.
    """
    if config.dataset.source == "webdataset":
        sources = enumerate(shard_sources(config))
        brought = (".gz", ".tgz", ".bz2")
        return [
            paths.shard(number) if is_remote(source) or source.endswith(brought) else Path(source)
            for number, source in sources
        ]
    if config.dataset.source == "urls":
        if config.dataset.urls is None:
            raise CliptexError("dataset.urls: source 'urls' needs a URL list and its number of rows")
        count = -(-config.dataset.urls.rows // config.dataset.urls.rows_per_shard)
    else:
        count = -(-config.miniature.pairs // config.miniature.pairs_per_shard)
    return [paths.shard(number) for number in range(count)]


def num_batches(config: Config) -> int:
    """Number of labelling jobs for all shards."""
    return -(-len(shard_paths(config)) // config.labels.shards_per_job)


def num_downloads(config: Config) -> int:
    """Number of jobs that download, or check, all shards."""
    return -(-len(shard_paths(config)) // config.download.shards_per_job)


def shards_of_download(config: Config, batch: int) -> range:
    """Numbers of the shards that a job downloads or checks."""
    size = config.download.shards_per_job
    return range(batch * size, min((batch + 1) * size, len(shard_paths(config))))
