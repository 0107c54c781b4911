"""The paths of all shards, and which of them a job processes. Imports nothing heavy, since the workflow uses it."""

from pathlib import Path

from braceexpand import UnbalancedBracesError, braceexpand

from cliptex.config import Config
from cliptex.core import paths
from cliptex.core.errors import CliptexError


def shard_sources(config: Config) -> list[str]:
    """Paths and URLs of the tars of source `webdataset`, in order, with brace patterns expanded.

    Raises CliptexError if there are none, or if braces do not match.
    """
    if not config.dataset.shards:
        raise CliptexError("dataset.shards: source 'webdataset' needs the paths of the tars")
    return _expand(config.dataset.shards, "dataset.shards")


def _expand(patterns: list[str], key: str) -> list[str]:
    try:
        return [source for pattern in patterns for source in braceexpand(pattern)]
    except UnbalancedBracesError as error:
        raise CliptexError(f"{key}: braces do not match ({error}); write for example {{00000..00331}}.tar") from error


def caption_tars(config: Config, name: str) -> list[Path]:
    """The tars of an entry of `zeroshot.retrieval`, in order; none if its captions are those of a benchmark."""
    caption_set = config.zeroshot.retrieval[name]
    if caption_set.rendered is not None:
        return [paths.benchmark(name) / "00000.tar"]
    return [Path(source) for source in _expand(caption_set.shards, f"zeroshot.retrieval.{name}.shards")]


def is_remote(source: str) -> bool:
    """Whether a tar must be downloaded."""
    return source.startswith(("http://", "https://", "hf://"))


def shard_paths(config: Config) -> list[Path]:
    """Paths of all shards, in order. The user's own tars are used in place.

    Raises CliptexError if the configuration has no data for its source.
    """
    if config.dataset.source == "webdataset":
        sources = enumerate(shard_sources(config))
        return [paths.shard(number) if is_remote(source) else Path(source) for number, source in sources]
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
