"""Fit the principal components of an expert's dense features to a sample of the shards, before it labels them.

Reads   results/shards/index.json, its shards, and the expert's folder.
Writes  results/experts/{expert}/pca.safetensors and, last, pca.json.
Holds   the sample depends on the shard index and the options alone, and on one machine so do the bytes.
"""

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cliptex.config import Config
from cliptex.core.errors import CliptexError, working_on
from cliptex.core.files import write_json
from cliptex.core.progress import track
from cliptex.core.provenance import provenance
from cliptex.data.sample_reader import ShardOffsets
from cliptex.data.shard_index import num_usable, read_index
from cliptex.experts import pca
from cliptex.labels.pipeline import decode
from cliptex.labels.store import rows_by_shard

log = logging.getLogger("cliptex")


def fit_pca(config: Config, name: str, shard_index: Path, folder: Path) -> dict[str, Any]:
    """Fit the components of the expert `name` in `folder`; returns the record, as in pca.json.

    Raises CliptexError if the expert has none, if no image of the sample can be decoded, and if `network.dims` is more
    than the teacher's channels.
    """
    from cliptex.experts.features import FeaturesExpert
    from cliptex.experts.training import load_expert
    from cliptex.tasks.features import LIMIT, SIGMAS

    start, expert_config = time.monotonic(), config.experts[name]
    expert = load_expert(name, expert_config, folder)
    if not isinstance(expert, FeaturesExpert):
        raise CliptexError(f"experts.{name}: its labels are no features, so it needs no principal components")
    options, images = expert.network, 0

    def features() -> Iterator[np.ndarray]:
        nonlocal images
        sample = _sample(shard_index, options.sample, options.seed, config.labels.max_image_side_px)
        with expert.session():
            for batch in _batches(sample, expert_config.batch_size):
                images += len(batch)
                cells = np.stack(expert.features(batch))
                yield cells.reshape(-1, cells.shape[-1])

    try:
        fitted, some = pca.fit(features(), options.dims)
    except ValueError as error:
        raise CliptexError(
            f"experts.{name}.network.dims: {error}; lower it, or check the images of {shard_index}"
        ) from error
    labels = fitted.labels(some)
    clipped = float((np.abs(labels) > (LIMIT + 0.5) * np.float32(fitted.scales(SIGMAS, LIMIT))).mean())
    record = {
        "schema_version": 1,
        "expert": name,
        "weights_sha256": expert.weights_sha256,
        "teacher": expert.teacher.name,
        "images": images,
        "cells": list(options.cells),
        "width": len(fitted.mean),
        "dims": len(fitted.components),
        "variance_kept": fitted.variance_kept,
        "clipped": clipped,
        "variances": fitted.variances.tolist(),
        "sha256": pca.save(fitted, folder),
        "seconds": round(time.monotonic() - start, 3),
        "provenance": provenance(config.plain()),
    }
    write_json(folder / pca.RECORD, record)
    share = 100 * record["variance_kept"]
    log.info("%s: %d of %d channels keep %.1f %% of the variance", name, record["dims"], record["width"], share)
    return record


def _sample(shard_index: Path, count: int, seed: int, max_side_px: int) -> Iterator[np.ndarray]:
    """Images of `count` samples, drawn from all shards without repetition, in the order of the shards."""
    entries = read_index(shard_index)["shards"]
    sizes = num_usable(entries)
    chosen = np.random.default_rng(seed).choice(sum(sizes), min(count, sum(sizes)), replace=False)
    for shard, rows in track(rows_by_shard(sizes, chosen).items(), "sample shards"):
        offsets = ShardOffsets(entries[shard])
        for row in rows:
            location = offsets.at(row)
            with working_on(f"{location.path}, key {location.key!r}"):
                image = decode(location.read().image, max_side_px)
                if not isinstance(image, str):  # else the reason why it cannot be used, which labelling reports
                    yield image


def _batches(images: Iterator[np.ndarray], size: int) -> Iterator[list[np.ndarray]]:
    batch: list[np.ndarray] = []
    for image in images:
        batch.append(image)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
