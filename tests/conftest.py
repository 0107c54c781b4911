"""Fixtures make their own data: small tars of drawn pictures. No test needs the network, a GPU or weights."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest

from cliptex.images import encode_jpeg
from cliptex.shards import Pair, index_shards, write_shard


def drawn_pair(key: str, seed: int, height: int = 40, width: int = 56) -> Pair:
    """A smooth random picture with a caption."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 255, (4, 4, 3))
    pixels = np.kron(coarse, np.ones((height // 4, width // 4, 1))).astype(np.uint8)
    return Pair(key, encode_jpeg(pixels), f"a picture number {seed}", {"width": width, "height": height})


@pytest.fixture
def shard_paths(tmp_path):
    """Two shards of eight pairs."""
    paths = []
    for shard in range(2):
        path = tmp_path / "results" / "shards" / f"{shard:05d}.tar"
        write_shard(path, [drawn_pair(f"{shard:05d}{i:04d}", 8 * shard + i) for i in range(8)])
        paths.append(path)
    return paths


@pytest.fixture
def shard_index(shard_paths):
    """Index of the two shards."""
    path = shard_paths[0].parent / "index.json"
    index_shards(shard_paths, path, min_yield=0.5)
    return path
