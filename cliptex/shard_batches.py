"""Which shards there are and which of them one job does. Imports nothing heavy: the workflow asks here too."""

from pathlib import Path

from cliptex import paths
from cliptex.config import Config


def shard_paths(config: Config) -> list[Path]:
    """All shards, in order: rendered ones, or the user's own tars."""
    if config.dataset.source == "webdataset":
        return [Path(path) for path in config.dataset.shards]
    count = -(-config.miniature.pairs // config.miniature.pairs_per_shard)
    return [paths.shard(number) for number in range(count)]


def num_batches(config: Config) -> int:
    """Jobs that it takes to do every shard."""
    return -(-len(shard_paths(config)) // config.labels.shards_per_job)


def shards_of_batch(config: Config, batch: int) -> range:
    """Shard numbers of a batch."""
    size = config.labels.shards_per_job
    return range(batch * size, min((batch + 1) * size, len(shard_paths(config))))
