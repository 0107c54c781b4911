"""Label shards with an expert.

Reads   results/shards/index.json and its shards, the expert's folder, and the store named by `label_stores.*.of`.
Writes  results/labels/{store}/{shard}.parquet and, last, batch-{batch}.json.
Holds   row order = order of the shard's keys; the same shard, expert and batch size on the same machine give the same
        bytes; a failed image is a row with a null payload and a reason, never a label of zeros.
"""

import logging
import time
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cliptex.config import Config, ExpertConfig
from cliptex.config import Labels as LabelSizes
from cliptex.core.errors import CliptexError, working_on
from cliptex.core.files import sha256_file, write_json
from cliptex.core.plugins import find
from cliptex.core.progress import track
from cliptex.core.provenance import provenance
from cliptex.data.images import require_codecs
from cliptex.data.shard_index import read_index, read_indexed, reindex_command
from cliptex.data.shards import Pair
from cliptex.experts.base import Expert
from cliptex.labels.files import describe_labels, label_recipe, open_label_writer, sum_counts
from cliptex.labels.pipeline import Pipeline, Predicted
from cliptex.labels.store import SCHEMA_VERSION, LabelFile, StoredLabels, open_store, task_of_store
from cliptex.tasks.base import Task

if TYPE_CHECKING:
    from pyarrow import parquet

log = logging.getLogger("cliptex")
FAILURES_IN_A_ROW = 8


def label_batch(
    config: Config,
    store: str,
    batch: int,
    shard_index: Path,
    expert_folder: Path,
    out_dir: Path,
    workers: int | None = None,
) -> None:
    """Label the shards of one batch. A shard is skipped if its label file is complete and made by the same recipe.

    workers: see `labelling`; does not change the output. An image on which the expert fails, or whose label has no
    valid pixel, becomes a row with a reason. Raises CliptexError if a shard has changed since it was indexed, if memory
    runs out, if a worker dies, and if 8 images in a row fail, which means that the expert is at fault.
    """
    from cliptex.experts.training import load_expert

    require_codecs()
    store_config = config.label_stores[store]
    expert_config = config.experts[store_config.expert]
    per_job = config.labels.shards_per_job
    entries = read_index(shard_index)["shards"][batch * per_job : (batch + 1) * per_job]
    expert = load_expert(store_config.expert, expert_config, expert_folder)
    if expert.task != (name := find("tasks", store_config.task).name):
        raise CliptexError(
            f"label_stores.{store}.expert: {store_config.expert!r} makes {expert.task}, but the task is {name!r}"
        )
    task = attached_task(config, store, expert, entries, out_dir.parent)
    recipe = label_recipe(config, store, task, expert.weights_sha256, out_dir.parent)
    scalars = list(task.scalars(task.missing(1)))
    start, records = time.monotonic(), []
    with labelling(store_config.expert, expert, task, expert_config, config.labels, workers) as labeller:
        for entry in entries:
            path = out_dir / f"{entry['shard']}.parquet"
            metadata = {**recipe, "store": store, "shard": entry["shard"], "shard_sha256": entry["sha256"]}
            metadata["extra_columns"] = list(expert.extra_columns())
            with working_on(f"{entry['path']} and {path}"):
                if resumed := is_complete(path, entry, metadata, scalars, expert.extra_columns()):
                    log.info("%s: already labelled", path)
                else:
                    labeller.label_shard(entry, metadata, path)
                records.append({**describe_labels(path, entry, task), "resumed": resumed})
    write_batch(config, store, batch, recipe, records, time.monotonic() - start, out_dir)


def write_batch(
    config: Config,
    store: str,
    batch: int,
    recipe: dict[str, Any],
    records: list[dict[str, Any]],
    seconds: float,
    out_dir: Path,
) -> None:
    """Write batch-{batch}.json. records: of `describe_labels`, with `resumed`."""
    images = sum(record["rows"] for record in records)
    num_new = sum(record["rows"] for record in records if not record["resumed"])
    labelled = sum(record["labelled"] for record in records)
    write_json(
        out_dir / f"batch-{batch:03d}.json",
        {
            "schema_version": SCHEMA_VERSION,
            "store": store,
            "batch": batch,
            **{name: recipe[name] for name in ("task", "expert", "weights_sha256", "recipe_sha256")},
            "shards": records,
            "images": images,
            "labelled": labelled,
            "failures": sum_counts(record["failures"] for record in records),
            "bytes_per_image": round(sum(record["payload_bytes"] for record in records) / max(labelled, 1), 1),
            "seconds": round(seconds, 3),
            "images_per_second": round(num_new / seconds, 2) if num_new else None,
            "provenance": provenance(config.plain()),
        },
    )


def attached_task(config: Config, store: str, expert: Expert, entries: list[dict[str, Any]], labels_dir: Path) -> Task:
    """The store's task, with the expert's parameters. An expert that changes the labels of another store first gets
    access to that store, for the shards `entries`.

    labels_dir: folder of all stores. Raises CliptexError if `label_stores.*.of` is set for an expert that needs no
    labels or missing for one that does, if the other store is of another task, or if the parameters cannot be used.
    """
    _attach_source_labels(config, store, expert, entries, labels_dir)
    try:
        return find("tasks", config.label_stores[store].task).from_codec(expert.task_parameters())
    except ValueError as error:
        name = config.label_stores[store].expert
        raise CliptexError(f"experts.{name}: {error}; correct what its weights or its plugin give") from error


def _attach_source_labels(
    config: Config, store: str, expert: Expert, entries: list[dict[str, Any]], labels_dir: Path
) -> None:
    source, name = config.label_stores[store].of, config.label_stores[store].expert
    if source is None and expert.takes_labels:
        raise CliptexError(f"label_stores.{store}.of: {name!r} changes the labels of another store; name that store")
    if source is None:
        return
    if not expert.takes_labels:
        raise CliptexError(f"label_stores.{store}.of: {name!r} labels images itself; remove the key")
    index = labels_dir / source / "index.json"
    task = task_of_store(config, store, index)
    expert.take(StoredLabels([open_store(index, entry, task) for entry in entries]))


def is_complete(
    path: Path, entry: dict[str, Any], metadata: dict[str, Any], scalars: list[str], extras: dict[str, Any]
) -> bool:
    """Whether a label file is undamaged and made by the same recipe from the same shard; it then has the bytes that
    labelling again would give."""
    if not path.is_file():
        return False
    try:
        file = LabelFile(path)
        same = all(file.metadata.get(name) == metadata[name] for name in ("recipe_sha256", "shard_sha256", "shard"))
        if not same or file.keys != entry["keys"]:
            return False
        _update_metadata(file, metadata, scalars, extras)
    except CliptexError as error:
        log.warning("%s; labelling the shard again", str(error).partition(";")[0])
        return False
    return True


def _update_metadata(file: LabelFile, metadata: dict[str, Any], scalars: list[str], extras: dict[str, Any]) -> None:
    """Rewrite a label file from its rows and `metadata`, and replace it if the bytes differ. Parquet's page checksums
    cover the data, not the metadata."""
    rewritten = file.path.with_name(f".{file.path.stem}.again.parquet")

    def copy(source: "parquet.ParquetFile") -> None:
        with open_label_writer(rewritten, scalars, extras, metadata) as write:
            for group in range(source.num_row_groups):
                write(source.read_row_group(group).to_pylist())

    file.read_with(copy)
    if sha256_file(rewritten) == sha256_file(file.path):
        rewritten.unlink()
    else:
        log.warning("%s: labels are complete, metadata is outdated; rewriting", file.path)
        rewritten.replace(file.path)


@dataclass
class Labeller:
    """Runs an expert over shards and counts consecutive failures across them."""

    name: str
    expert: Expert
    task: Task
    batch_size: int
    window: int | None
    pipeline: Pipeline
    failed_in_a_row: int = 0

    def label_shard(self, entry: dict[str, Any], metadata: dict[str, Any], path: Path) -> None:
        """Label one shard and write its file."""
        if sha256_file(Path(entry["path"])) != entry["sha256"]:
            raise CliptexError(f"{entry['path']}: differs from the index; {reindex_command()}")
        # which images share a forward pass depends on the shard, batch_size and batch_window alone
        pairs, each = read_indexed(entry), self.window or self.batch_size
        windows = [pairs[i : i + each] for i in range(0, len(pairs), each)]
        scalars = list(self.task.scalars(self.task.missing(1)))
        with open_label_writer(path, scalars, self.expert.extra_columns(), metadata) as write:
            labelled = self._rows(entry["path"], windows)
            try:
                for rows in track(labelled, f"{metadata['store']} {entry['shard']}", len(windows)):
                    for row in rows:
                        self._count_failure(row, entry)
                    write(rows)
            except BrokenExecutor as error:
                raise CliptexError(
                    f"{entry['path']}: a worker process that decodes images or encodes labels has died, most often"
                    " killed because memory ran out; give the job more memory (`mem`) or fewer `threads`, then run the"
                    " same command again, which resumes at this shard"
                ) from error

    def label_pairs(self, shard: str, pairs: list[Pair]) -> list[dict[str, Any]]:
        """The rows of some pairs of a shard, labelled as one window; see `Pipeline.rows`."""
        (rows,) = self._rows(shard, [pairs])
        return rows

    def _rows(self, shard: str, windows: list[list[Pair]]) -> Iterator[list[dict[str, Any]]]:
        key = self.expert.batch_key if self.window else None
        return self.pipeline.rows(shard, windows, self._predict, self.batch_size, key)

    def _count_failure(self, row: dict[str, Any], entry: dict[str, Any]) -> None:
        if "error" not in row:
            self.failed_in_a_row = 0
            return
        self.failed_in_a_row += 1
        if self.failed_in_a_row >= FAILURES_IN_A_ROW:
            raise CliptexError(
                f"{entry['path']}: {FAILURES_IN_A_ROW} images in a row failed, the last one {row['key']!r}"
                f" ({row['error']}); fix the expert {self.name!r} (the log has the traceback)"
            )
        log.warning("%s: %r has no label: %s", entry["path"], row["key"], row["error"])

    def _predict(self, images: dict[str, np.ndarray]) -> dict[str, Predicted]:
        """Key -> label and extra columns, or the reason why there is no label. If a batch fails, its images are tried
        one at a time."""
        try:
            rows = self.expert.predict_rows(list(images.values()), list(images))
            return dict(zip(images, rows, strict=True))
        except (CliptexError, MemoryError):
            raise
        except Exception as error:
            if type(error).__name__ == "OutOfMemoryError":
                raise CliptexError(
                    f"experts.{self.name}.batch_size: {len(images)} images do not fit into memory; lower it"
                ) from error
            if len(images) == 1:
                log.warning("%s failed on %r", self.name, *images, exc_info=True)
                return dict.fromkeys(images, f"expert failed: {type(error).__name__}: {error}"[:200])
            singles: dict[str, Predicted] = {}
            for key, image in images.items():
                singles |= self._predict({key: image})
            return singles


@contextmanager
def labelling(
    name: str, expert: Expert, task: Task, settings: ExpertConfig, sizes: LabelSizes, workers: int | None = None
) -> Iterator[Labeller]:
    """A `Labeller` for the expert `name`, whose workers end with this context. settings: of which `batch_size` and
    `batch_window` are used. workers: see `Pipeline`; by default one for each compute thread if the expert is on a GPU,
    and none otherwise."""
    if workers is None:
        workers = 0
        if getattr(getattr(expert, "device", None), "type", "cpu") != "cpu":
            import torch

            workers = torch.get_num_threads()
    with expert.session(), Pipeline(task, sizes.max_side_px, sizes.max_image_side_px, workers) as pipeline:
        yield Labeller(name, expert, task, settings.batch_size, settings.batch_window, pipeline)
