"""Summaries of label files: digest, rows, failures by reason, pixels by class."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from cliptex.core.files import sha256_file
from cliptex.labels.store import LabelFile
from cliptex.tasks.base import Task


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
        "failures": sum_counts({_reason(error): 1} for error in errors if error is not None),
        "payload_bytes": file.payload_bytes(),
        "classes": _class_counts(file, task),
    }


def _class_counts(file: LabelFile, task: Task) -> dict[str, tuple[int, int]]:
    """Class name -> number of its pixels and of images that contain it. Empty for a task without classes."""
    names = task.codec().get("class_names", [])
    pixels, images = np.zeros(len(names), np.int64), np.zeros(len(names), np.int64)
    for row in range(len(file) if names else 0):
        if (label := file.label(row)) is not None:
            counts = np.bincount(task.classes(label).ravel(), minlength=256)[: len(names)]
            pixels += counts
            images += counts > 0
    totals = zip(names, pixels.tolist(), images.tolist(), strict=True)
    return {name: (num_pixels, num_images) for name, num_pixels, num_images in totals if num_images}


def class_statistics(records: list[dict[str, Any]], task: Task) -> dict[str, dict[str, Any]]:
    """Class name -> `share` of the valid pixels and number of `images`, over several records of `describe_labels`.

    Classes that do not occur are left out. Empty for a task without classes.
    """
    pixels, images = Counter[str](), Counter[str]()
    for record in records:
        for name, (num_pixels, num_images) in record["classes"].items():
            pixels[name] += num_pixels
            images[name] += num_images
    total = max(pixels.total(), 1)
    names = task.codec().get("class_names", [])
    return {name: {"share": pixels[name] / total, "images": images[name]} for name in names if images[name]}


def _reason(error: str) -> str:
    """The part of an `error` to count by: "expert failed: ValueError: no box" is "expert failed"."""
    return error.partition(":")[0]


def sum_counts(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    """Sums by name, sorted by name."""
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(sorted(total.items()))
