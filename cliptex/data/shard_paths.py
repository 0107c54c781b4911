"""Which shards there are and which of them one job does. Imports nothing heavy: the workflow asks here too."""

from pathlib import Path

from braceexpand import UnbalancedBracesError, braceexpand

from cliptex.config import Config
from cliptex.core import paths
from cliptex.core.errors import CliptexError


def shard_sources(config: Config) -> list[str]:
    """Where the tars of source `webdataset` are, in order: paths and urls, with brace patterns written out.

    Raises CliptexError where there are none, or braces do not match.
    """
    if not config.dataset.shards:
        raise CliptexError("dataset.shards: source 'webdataset' needs the paths of the tars")
    return _written_out(config.dataset.shards, "dataset.shards")


def _written_out(patterns: list[str], key: str) -> list[str]:
    try:
        return [source for pattern in patterns for source in braceexpand(pattern)]
    except UnbalancedBracesError as error:
        raise CliptexError(f"{key}: braces do not match ({error}); write {{00000..00331}}.tar") from error


def caption_tars(config: Config, name: str) -> list[Path]:
    """The tars of an entry of `zeroshot.retrieval`, in order; none where a benchmark has its captions."""
    given = config.zeroshot.retrieval[name]
    if given.rendered is not None:
        return [paths.benchmark(name) / "00000.tar"]
    return [Path(source) for source in _written_out(given.shards, f"zeroshot.retrieval.{name}.shards")]


def is_remote(source: str) -> bool:
    """Whether a tar has to be downloaded."""
    return source.startswith(("http://", "https://", "hf://"))


def shard_paths(config: Config) -> list[Path]:
    """All shards, in order; the user's own tars stay where they are.

    Raises CliptexError where the configuration names no data of its source.
    """
    if config.dataset.source == "webdataset":
        sources = enumerate(shard_sources(config))
        return [paths.shard(number) if is_remote(source) else Path(source) for number, source in sources]
    if config.dataset.source == "urls":
        if config.dataset.urls is None:
            raise CliptexError("dataset.urls: source 'urls' needs a list of urls and its number of rows")
        count = -(-config.dataset.urls.rows // config.dataset.urls.rows_per_shard)
    else:
        count = -(-config.miniature.pairs // config.miniature.pairs_per_shard)
    return [paths.shard(number) for number in range(count)]


def num_batches(config: Config) -> int:
    """Labelling jobs that it takes to do every shard."""
    return -(-len(shard_paths(config)) // config.labels.shards_per_job)


def num_downloads(config: Config) -> int:
    """Jobs that it takes to download, or check, every shard."""
    return -(-len(shard_paths(config)) // config.download.shards_per_job)


def shards_of_download(config: Config, batch: int) -> range:
    """Shard numbers of a job that downloads or checks shards."""
    size = config.download.shards_per_job
    return range(batch * size, min((batch + 1) * size, len(shard_paths(config))))
