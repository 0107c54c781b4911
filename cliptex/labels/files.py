"""Write label files: their metadata (the recipe), their rows, and the records of them in batch-*.json.

A recipe is everything that labels depend on except the images. The bytes of a file depend on the rows only, not on the
portions in which they are written.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from cliptex import versions
from cliptex.config import Config
from cliptex.core.files import read_checked, replacing, sha256_file, sha256_json
from cliptex.labels.store import COLUMNS, METADATA_KEY, SCHEMA_VERSION, LabelFile
from cliptex.tasks.base import Task

ROWS_PER_GROUP = 1024


def label_recipe(
    config: Config, store: str, task: Task, weights_sha256: str | None, labels_dir: Path
) -> dict[str, Any]:
    """The metadata shared by all label files of a store. `recipe_sha256` covers everything that changes the labels.
    labels_dir: folder of all stores; the index of a store named by `label_stores.*.of` is read from it."""
    name = config.label_stores[store].expert
    expert = config.experts[name]
    recipe = {
        "schema_version": SCHEMA_VERSION,
        "task": task.name,
        "expert": name,
        "plugin": expert.plugin or name,
        "weights_sha256": weights_sha256,
        "network": expert.network,
        "batch_size": expert.batch_size,
        "precision": expert.precision,
        "max_side_px": config.labels.max_side_px,
        "max_image_side_px": config.labels.max_image_side_px,
        "codec": task.codec(),
        "frame": "the stored image's frame; longer side of the label grid at most max_side_px",
        "versions": {"label": versions.LABEL},
    }
    if expert.batch_window is not None:
        recipe["batch_window"] = expert.batch_window
    weights = expert.weights
    if (source := config.label_stores[store].of) is not None:
        index = read_checked(labels_dir / source / "index.json", {"weights": str})
        recipe["of"] = {"store": source, "index_sha256": sha256_json(index)}
        # labels derived from those of a random network are as meaningless as these
        weights = "random" if index["weights"] == "random" else weights
    return {**recipe, "recipe_sha256": sha256_json(recipe), "licence": expert.licence_name, "weights": weights}


@contextmanager
def open_label_writer(
    path: Path, scalars: list[str], extras: dict[str, Any], metadata: dict[str, Any]
) -> Iterator[Callable[[list[dict[str, Any]]], None]]:
    """Yield a function that appends rows to the label file `path`, which is created only if no error occurs. scalars:
    names of the task's scalar columns. extras: name -> pyarrow type of the expert's extra columns."""
    import pyarrow as pa
    from pyarrow import parquet

    types = dict(zip(COLUMNS, (pa.string(), pa.int32(), pa.int32(), pa.binary(), pa.string()), strict=True))
    types |= dict.fromkeys(scalars, pa.float64()) | extras
    schema = pa.schema(types, metadata={METADATA_KEY: json.dumps(metadata)})
    compression = {name: "none" if name == "payload" else "zstd" for name in types}
    form = {"compression": compression, "use_dictionary": False, "write_page_checksum": True}
    rows: list[dict[str, Any]] = []
    with replacing(path) as scratch, parquet.ParquetWriter(scratch, schema, **form) as file:

        def flush(count: int) -> None:
            table = pa.Table.from_pylist([{name: row.get(name) for name in types} for row in rows[:count]], schema)
            file.write_table(table, row_group_size=count)
            del rows[:count]

        def write(more: list[dict[str, Any]]) -> None:
            rows.extend(more)
            # only whole groups: the bytes must not depend on how rows arrive, and payloads must not fill the memory
            while len(rows) >= ROWS_PER_GROUP:
                flush(ROWS_PER_GROUP)

        yield write
        if rows:
            flush(len(rows))


def describe_labels(path: Path, entry: dict[str, Any], task: Task) -> dict[str, Any]:
    """The record of one label file in batch-*.json. entry: of the shard index."""
    file = LabelFile(path, task)
    errors = file.column("error")
    return {
        "shard": entry["shard"],
        "file": path.name,
        "sha256": sha256_file(path),
        "bytes": path.stat().st_size,
        "shard_sha256": entry["sha256"],
        "rows": len(file.keys),
        "labelled": sum(error is None for error in errors),
        # "expert failed: ValueError: no box" counts as "expert failed"
        "failures": sum_counts({error.partition(":")[0]: 1} for error in errors if error is not None),
        "payload_bytes": file.payload_bytes(),
        "classes": _class_counts(file, task),
    }


def _class_counts(file: LabelFile, task: Task) -> dict[str, tuple[int, int]]:
    """Class name -> number of its pixels and of images that contain it. Empty for a task without classes."""
    names = task.codec().get("class_names", [])
    pixels, images = np.zeros(len(names), np.int64), np.zeros(len(names), np.int64)
    for row in range(len(file) if names else 0):
        if (label := file.label(row)) is not None:
            counts = np.bincount(task.classes(label).ravel(), minlength=len(names))[: len(names)]
            pixels += counts
            images += counts > 0
    totals = zip(names, pixels.tolist(), images.tolist(), strict=True)
    return {name: (num_pixels, num_images) for name, num_pixels, num_images in totals if num_images}


def class_statistics(records: list[dict[str, Any]], task: Task) -> dict[str, dict[str, Any]]:
    """Class name -> `share` of the valid pixels and number of `images`, over several records of `describe_labels`.
    Classes that do not occur are left out. Empty for a task without classes."""
    pixels, images = Counter[str](), Counter[str]()
    for record in records:
        for name, (num_pixels, num_images) in record["classes"].items():
            pixels[name] += num_pixels
            images[name] += num_images
    total = max(pixels.total(), 1)
    names = task.codec().get("class_names", [])
    return {name: {"share": pixels[name] / total, "images": images[name]} for name in names if images[name]}


def sum_counts(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    """Sums by name, sorted by name."""
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(sorted(total.items()))
