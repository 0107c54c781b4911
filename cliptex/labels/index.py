"""Check a label store and write its index.

Reads   results/shards/index.json, results/labels/{store}/{shard}.parquet and batch-{batch}.json.
Writes  results/labels/{store}/payloads.arrow (`cliptex.labels.payloads`) and, last, index.json.
Holds   the index depends on the labels alone, so that rewriting a lost file gives the same index.
"""

import logging
from pathlib import Path
from typing import Any

import numpy as np

from cliptex.config import Config
from cliptex.core.errors import CliptexError, working_on
from cliptex.core.files import read_checked, sha256_file, write_json
from cliptex.core.progress import track
from cliptex.data.shard_index import read_index
from cliptex.labels.files import class_statistics, label_recipe, sum_counts
from cliptex.labels.payloads import FILE, payloads_writer
from cliptex.labels.store import INDEXED, SCHEMA_VERSION, LabelFile, check_keys, task_of_codec
from cliptex.labels.take import coverage, recorded_recipe
from cliptex.tasks.base import Task

log = logging.getLogger("cliptex")
COPIED = ("shard", "file", "sha256", "bytes", "shard_sha256", "rows", "labelled", "failures", "payload_bytes")
"""Keys of a batch file's record that the index repeats."""


def index_labels(config: Config, store: str, shard_index: Path, out_dir: Path) -> dict[str, Any]:
    """Check every label file of a store and write its index.json.

    Each file is compared with its shard (digest, keys and their order), with the batch file of the job that wrote it
    (digest), and with the configuration (expert, recipe). Raises CliptexError that names the file and the remedy.
    """
    expert = config.label_stores[store].expert
    entries = read_index(shard_index)["shards"]
    task = _task(config, store, out_dir / f"{entries[0]['shard']}.parquet")
    files, records, weights, first = [], [], None, None
    taken = config.label_stores[store].from_ is not None
    scalars: dict[str, list[float]] = {}
    with payloads_writer(out_dir / FILE) as add_payloads:
        for number, entry in enumerate(track(entries, f"index labels {store}")):
            batch_path = out_dir / f"batch-{number // config.labels.shards_per_job:03d}.json"
            path = out_dir / f"{entry['shard']}.parquet"
            redo = f"run: rm -f {path} {batch_path}   and then the same command again"
            with working_on(path):
                record = _checked_record(path, batch_path, entry, redo)
                file = LabelFile(path, task)
                check_keys(file, entry, redo)
                made = file.metadata
                weights = weights or made["weights_sha256"]
                if taken:
                    recipe = recorded_recipe(config.label_stores[store], store, made, f"{path}: {{}}; {redo}")
                    expert = made["expert"]
                else:
                    recipe = label_recipe(config, store, task, weights, out_dir.parent)
                first = first or recipe
                if made["shard_sha256"] != entry["sha256"]:
                    raise CliptexError(f"{path}: made from another version of shard {entry['shard']}; {redo}")
                problem = None
                if made["expert"] != expert:
                    problem = f"made by the expert {made['expert']!r}, but label_stores.{store}.expert is {expert!r}"
                elif made["weights_sha256"] != weights:
                    problem = f"made with other weights of {expert!r} than the first shards"
                elif made["recipe_sha256"] != first["recipe_sha256"]:
                    problem = "made with other settings than the configuration's"
                if problem:
                    raise CliptexError(f"{path}: {problem}; correct the configuration, or {redo}")
                for name in file.scalars:
                    scalars.setdefault(name, []).extend(value for value in file.column(name) if value is not None)
                add_payloads(file, record["sha256"], entry["sha256"])
                records.append(record)
                files.append({"batch": batch_path.name, **{name: record[name] for name in COPIED}})
    images, labelled = sum(item["rows"] for item in files), sum(item["labelled"] for item in files)
    failures = sum_counts(item["failures"] for item in files)
    if not labelled:
        remedy = f"set label_stores.{store}.join, or take another set" if taken else f"fix the expert {expert!r}"
        raise CliptexError(f"{out_dir}: no image has a label ({failures}); {remedy}")
    if failures:
        log.warning("%s: %d of %d images have no label: %s", out_dir, images - labelled, images, failures)
    if recipe["weights"] == "random":
        log.warning("%s: labels of a network with RANDOM weights, for tests and benchmarks only", out_dir)
    classes = class_statistics(records, task)
    if len(classes) == 1:
        log.warning("%s: every pixel is %s; check the expert's quality", out_dir, *classes)
    index = {
        "schema_version": SCHEMA_VERSION,
        "store": store,
        **{name: recipe[name] for name in ("task", "expert", "plugin", "weights", "weights_sha256", "licence")},
        "recipe_sha256": recipe["recipe_sha256"],
        **({"from": coverage(recipe, images, failures)} if taken else {}),
        "codec": recipe["codec"],
        "images": images,
        "labelled": labelled,
        "coverage": labelled / images,
        "failures": failures,
        "bytes": sum(item["bytes"] for item in files),
        "bytes_per_image": round(sum(item["payload_bytes"] for item in files) / labelled, 1),
        "statistics": {
            "scalars": {
                name: {"mean": float(np.mean(values)), "least": min(values), "greatest": max(values)}
                for name, values in scalars.items()
                if values
            },
            **({"classes": classes} if recipe["codec"].get("class_names") else {}),
            **({"variance_kept": teacher["variance_kept"]} if (teacher := recipe["codec"].get("teacher")) else {}),
        },
        "files": files,
    }
    write_json(out_dir / "index.json", index)
    return index


def _task(config: Config, store: str, first: Path) -> Task:
    """The store's task, with the parameters that its first label file has; all files must have the same."""
    codec = LabelFile(first).metadata["codec"] if first.is_file() else {}
    return task_of_codec(config, store, codec, first)


def _checked_record(path: Path, batch_path: Path, entry: dict[str, Any], redo: str) -> dict[str, Any]:
    """The batch file's record of a label file. Raises CliptexError if it is missing or the file differs from it."""
    form = INDEXED | {"rows": int, "labelled": int, "failures": {str: int}, "payload_bytes": int}
    form = {"shards": [form | {"classes": {str: [int]}}]}
    record = next((item for item in read_checked(batch_path, form)["shards"] if item["shard"] == entry["shard"]), None)
    if record is not None and any(len(counts) != 2 for counts in record.get("classes", {}).values()):
        raise CliptexError(f"{batch_path}: classes of shard {entry['shard']} must have two numbers each; {redo}")
    if record is None:
        raise CliptexError(f"{batch_path}: lacks shard {entry['shard']}; {redo}")
    if not path.is_file():
        raise CliptexError(f"{path}: label file is missing; {redo}")
    if path.stat().st_size != record["bytes"] or sha256_file(path) != record["sha256"]:
        raise CliptexError(f"{path}: differs from the record in {batch_path.name}; {redo}")
    return record
