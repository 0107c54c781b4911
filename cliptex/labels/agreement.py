"""How far the labels of several stores of one task agree.

Reads   results/shards/index.json, indexed label stores.
Writes  results/labels/agreement.json; of a study's stores results/studies/{study}/agreement.json.
Holds   images are spread evenly over the data set, so that the same stores give the same file.
"""

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from cliptex.config import Config
from cliptex.core.errors import CliptexError, working_on
from cliptex.core.files import write_json
from cliptex.core.plugins import find
from cliptex.core.provenance import provenance
from cliptex.data.shard_index import read_index
from cliptex.labels.store import LabelFile, open_store, read_label_index, rows_by_shard, task_of_store
from cliptex.tasks.base import Task
from cliptex.tasks.contact_sheet import class_names

FILE = "agreement.json"


def pairs_of_stores(config: Config) -> list[tuple[str, str]]:
    """Pairs of label stores of one task. Imports no class outside the package: these are told apart by their names."""
    kinds = {
        name: store.task if ":" in store.task else find("tasks", store.task).name
        for name, store in config.label_stores.items()
    }
    return [(a, b) for a, b in combinations(kinds, 2) if kinds[a] == kinds[b]]


def measure_agreement(
    config: Config, shard_index: Path, labels_dir: Path, images: int = 100, out: Path | None = None
) -> dict[str, Any]:
    """Compare the stores of each task in pairs, on at most `images` images that have both labels; write `out`, by
    default agreement.json in `labels_dir`.

    A pair has `agreement`, the mean of `Task.agreement` over the pixels that are valid in both, 0..1, and `quality`,
    the task's metrics of the second store with the first as truth. Both are null if the stores have different classes.
    Raises CliptexError without a pair, and as `open_store` does.
    """
    pairs = pairs_of_stores(config)
    if not pairs:
        raise CliptexError("label_stores: no two have the same task, so there is nothing to compare")
    entries = read_index(shard_index)["shards"]
    indices = {store: labels_dir / store / "index.json" for pair in pairs for store in pair}
    recipes = {store: read_label_index(config, store, index)["recipe_sha256"] for store, index in indices.items()}
    tasks = {store: task_of_store(config, store, index) for store, index in indices.items()}
    sizes = [len(entry["keys"]) for entry in entries]
    chosen = np.unique(np.linspace(0, sum(sizes) - 1, min(images, sum(sizes))).round().astype(int))
    rows = rows_by_shard(sizes, chosen)
    labels: dict[str, list[np.ndarray | None]] = {store: [] for store in indices}
    for shard, shard_rows in rows.items():
        with working_on(entries[shard]["path"]):
            for store, index in indices.items():
                file: LabelFile = open_store(index, entries[shard], tasks[store])
                labels[store] += [file.label(row) for row in shard_rows]
    record = {
        "schema_version": 1,
        "images": len(chosen),
        "recipes": recipes,
        "pairs": [_compared(tasks, labels, pair) for pair in pairs],
        "provenance": provenance(config.plain()),
    }
    write_json(out or labels_dir / FILE, record)
    return record


def _compared(
    tasks: dict[str, Task], labels: dict[str, list[np.ndarray | None]], stores: tuple[str, str]
) -> dict[str, Any]:
    a, b = (tasks[store] for store in stores)
    both = [
        (x, y) for x, y in zip(*(labels[store] for store in stores), strict=True) if x is not None and y is not None
    ]
    out = {"stores": list(stores), "task": a.name, "images": len(both), "agreement": None, "quality": None}
    if not both or class_names(a) != class_names(b):
        return out
    both = [(x, y if y.shape[:2] == x.shape[:2] else b.resize(y, *x.shape[:2])) for x, y in both]
    try:
        agreements = [_agreement(a, x, y) for x, y in both]
        known = [value for value in agreements if value is not None]
        out["agreement"] = round(float(np.mean(known)), 6) if known else None
    except CliptexError:  # a task outside the package without `agreement`
        pass
    try:
        metrics = a.quality([(y, x) for x, y in both])
        out["quality"] = {name: round(value, 4) for name, value in metrics.items()}
    except ValueError:  # no pixel that is valid in both
        pass
    return out


def _agreement(task: Task, a: np.ndarray, b: np.ndarray) -> float | None:
    """Mean over the pixels that are valid in both; None if there is none."""
    import torch

    agreement = task.agreement(torch.from_numpy(a.copy())[None], torch.from_numpy(b.copy())[None])[0].numpy()
    valid = task.valid(a) & task.valid(b)
    return float(agreement[valid].mean()) if valid.any() else None
