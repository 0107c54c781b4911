"""Label stores: label shards with an expert, check the whole store, read it.

Reads   results/shards/index.json and its shards, the expert's folder.
Writes  results/labels/{store}/{shard}.parquet, then batch-{batch}.json (last); index.json for the checked store.
Holds   row order = order of the shard's keys; the same shard, expert and batch size on the same machine give the same
        bytes; a failed image is a row with a null payload and a reason, never a label of zeros.
"""

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np

from cliptex import versions
from cliptex.config import Config
from cliptex.config import Labels as LabelSizes
from cliptex.core.errors import CliptexError
from cliptex.core.files import read_json, replacing, sha256_file, sha256_json, write_json
from cliptex.core.plugins import find
from cliptex.core.progress import track
from cliptex.core.provenance import provenance
from cliptex.data.images import require_codecs
from cliptex.data.packed import Keys
from cliptex.data.shards import Pair, index_again, read_index, read_indexed
from cliptex.experts.base import Expert
from cliptex.labels.pipeline import Pipeline, Predicted
from cliptex.tasks.base import Task

if TYPE_CHECKING:
    from pyarrow import parquet

log = logging.getLogger("cliptex")
Found = TypeVar("Found")
SCHEMA_VERSION = 1
METADATA_KEY = b"cliptex"
FAILURES_IN_A_ROW = 8
ROWS_A_GROUP = 1024
COLUMNS = ("key", "height", "width", "payload", "error")


# ---- writing


def label_batch(
    config: Config,
    store: str,
    batch: int,
    shard_index: Path,
    expert_folder: Path,
    out_dir: Path,
    workers: int | None = None,
) -> None:
    """Label the shards of one batch, skipping those whose label file is whole and was made the same way.

    workers: processes that decode and encode, see `Labeller`; they change nothing in what is written.
    An image on which the expert fails, or whose label is all invalid, becomes a row with a reason. Raises CliptexError
    when the shard is not what was indexed, when memory runs out, when a worker dies, and when 8 images in a row fail,
    since then it is not the images.
    """
    from cliptex.experts.training import load_expert

    require_codecs()
    settings = config.label_stores[store]
    expert_config = config.experts[settings.expert]
    per_job = config.labels.shards_per_job
    entries = read_index(shard_index)["shards"][batch * per_job : (batch + 1) * per_job]
    task: Task = find("tasks", settings.task)()
    expert = load_expert(settings.expert, expert_config, expert_folder)
    if expert.task != task.name:
        raise CliptexError(
            f"label_stores.{store}.expert: {settings.expert!r} makes {expert.task}, but the task is {task.name!r}"
        )
    give_labels(config, store, expert, task, entries, out_dir.parent)
    recipe = _recipe(config, store, task, expert.weights_sha256, out_dir.parent)
    scalars = list(task.scalars(task.missing(1)))
    start, records = time.monotonic(), []
    with Labeller(settings.expert, expert, task, expert_config.batch_size, config.labels, workers) as labeller:
        for entry in entries:
            path = out_dir / f"{entry['shard']}.parquet"
            metadata = {**recipe, "store": store, "shard": entry["shard"], "shard_sha256": entry["sha256"]}
            metadata["extra_columns"] = list(expert.extra_columns())
            for half_made in out_dir.glob(f".{entry['shard']}.*.parquet"):  # by a job that was killed
                half_made.unlink(missing_ok=True)
            if resumed := _is_done(path, entry, metadata, scalars, expert.extra_columns()):
                log.info("%s: already labelled", path)
            else:
                labeller.label_shard(entry, metadata, path)
            records.append({**describe_labels(path, entry, task), "resumed": resumed})
    seconds = time.monotonic() - start
    images = sum(record["rows"] for record in records)
    fresh = sum(record["rows"] for record in records if not record["resumed"])
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
            "failures": _total(record["failures"] for record in records),
            "bytes_per_image": round(sum(record["payload_bytes"] for record in records) / max(labelled, 1), 1),
            "seconds": round(seconds, 3),
            "images_per_second": round(fresh / seconds, 2) if fresh else None,
            "provenance": provenance(config.plain()),
        },
    )


def give_labels(
    config: Config, store: str, expert: Expert, task: Task, entries: list[dict[str, Any]], labels_dir: Path
) -> None:
    """Hand an expert that changes other labels the store that they are in, for the shards `entries`.

    labels_dir: folder of all stores. Raises CliptexError where the configuration and the expert do not agree on that,
    or where the other store is of another task.
    """
    other, name = config.label_stores[store].of, config.label_stores[store].expert
    if other is None and expert.takes_labels:
        raise CliptexError(f"label_stores.{store}.of: {name!r} changes the labels of another store; name it")
    if other is None:
        return
    if not expert.takes_labels:
        raise CliptexError(f"label_stores.{store}.of: {name!r} labels images itself; remove the key")
    expert.take(StoredLabels([open_store(labels_dir / other / "index.json", entry, task) for entry in entries]))


def _recipe(config: Config, store: str, task: Task, weights_sha256: str | None, labels_dir: Path) -> dict[str, Any]:
    """What every label file says of how it was made. `recipe_sha256` covers all that changes its labels."""
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
    weights = expert.weights
    if (other := config.label_stores[store].of) is not None:
        index = read_json(labels_dir / other / "index.json")
        recipe["of"] = {"store": other, "index_sha256": sha256_json(index)}
        # what is made of labels without meaning has none
        weights = "random" if index["weights"] == "random" else weights
    return {**recipe, "recipe_sha256": sha256_json(recipe), "licence": expert.licence_name, "weights": weights}


def _is_done(
    path: Path, entry: dict[str, Any], metadata: dict[str, Any], scalars: list[str], extras: dict[str, Any]
) -> bool:
    """Whether a label file is whole and made by the same recipe from the same shard; then it has the bytes that
    labelling would give."""
    if not path.is_file():
        return False
    try:
        file = LabelFile(path)
        same = all(file.metadata.get(name) == metadata[name] for name in ("recipe_sha256", "shard_sha256", "shard"))
        if not same or file.keys != entry["keys"]:
            return False
        _write_again(file, metadata, scalars, extras)
    except CliptexError as error:
        log.warning("%s; labelling the shard again", str(error).partition(";")[0])
        return False
    return True


def _write_again(file: "LabelFile", metadata: dict[str, Any], scalars: list[str], extras: dict[str, Any]) -> None:
    """Replace a label file by one of the same rows where that differs: page checksums tell of every change of
    the labels, but not of what the file says of itself."""
    again = file.path.with_name(f".{file.path.stem}.again.parquet")

    def copy(source: "parquet.ParquetFile") -> None:
        with _writing(again, scalars, extras, metadata) as write:
            for group in range(source.num_row_groups):
                write(source.read_row_group(group).to_pylist())

    file.read_with(copy)
    if sha256_file(again) == sha256_file(file.path):
        again.unlink()
    else:
        log.warning("%s: its labels are whole, what it says of itself is not; written again", file.path)
        again.replace(file.path)


def describe_labels(path: Path, entry: dict[str, Any], task: Task) -> dict[str, Any]:
    """What a batch file says of one label file."""
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
        "failures": _total({reason(error): 1} for error in errors if error is not None),
        "payload_bytes": file.payload_bytes(),
        "classes": _class_counts(file, task),
    }


def _class_counts(file: "LabelFile", task: Task) -> dict[str, tuple[int, int]]:
    """Name of each class that occurs -> pixels, and images it occurs in; empty for a task without classes."""
    names = task.codec().get("class_names", [])
    pixels, images = np.zeros(len(names), np.int64), np.zeros(len(names), np.int64)
    for row in range(len(file) if names else 0):
        if (label := file.label(row)) is not None:
            counts = np.bincount(task.classes(label).ravel(), minlength=256)[: len(names)]
            pixels += counts
            images += counts > 0
    found = zip(names, pixels.tolist(), images.tolist(), strict=True)
    return {name: (number, count) for name, number, count in found if count}


def reason(error: str) -> str:
    """The countable part of an `error`: "expert failed: ValueError: no box" is "expert failed"."""
    return error.partition(":")[0]


def _total(counts: Any) -> dict[str, int]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(sorted(total.items()))


@dataclass
class Labeller:
    """Runs an expert over shards, counting failures in a row across them. A context: its workers end with it.

    workers: see `Pipeline`; None is as many as the compute threads where the expert is on a GPU, and none elsewhere.
    """

    name: str
    expert: Expert
    task: Task
    batch_size: int
    sizes: LabelSizes
    workers: int | None = None
    failed_in_a_row: int = 0

    def __enter__(self) -> Self:
        workers = _workers(self.expert) if self.workers is None else self.workers
        with ExitStack() as entered:
            entered.enter_context(self.expert.session())
            sizes = self.sizes.max_side_px, self.sizes.max_image_side_px
            self._pipeline = entered.enter_context(Pipeline(self.task, *sizes, workers))
            self._entered = entered.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._entered.__exit__(*error)

    def label_shard(self, entry: dict[str, Any], metadata: dict[str, Any], path: Path) -> None:
        """Label one shard and write its file."""
        if sha256_file(Path(entry["path"])) != entry["sha256"]:
            raise CliptexError(f"{entry['path']}: differs from the index; {index_again()}")
        # which images share a forward pass depends on the shard and batch_size alone
        pairs = read_indexed(entry)
        batches = [pairs[i : i + self.batch_size] for i in range(0, len(pairs), self.batch_size)]
        scalars = list(self.task.scalars(self.task.missing(1)))
        with _writing(path, scalars, self.expert.extra_columns(), metadata) as write:
            found = self._pipeline.rows(batches, self._predict)
            try:
                for rows in track(found, f"{metadata['store']} {entry['shard']}", len(batches)):
                    for row in rows:
                        self._count_failure(row, entry)
                    write(rows)
            except BrokenExecutor as error:
                raise CliptexError(
                    f"{entry['path']}: a worker process that decodes its images or encodes its labels has died, most"
                    " often killed because memory ran out; give the job more memory (`mem`) or fewer `threads`, then"
                    " run the same command again, it goes on with this shard"
                ) from error

    def label_pairs(self, pairs: list[Pair]) -> list[dict[str, Any]]:
        """The rows of some pairs, labelled in one batch: `key`, and `error` or what a label file has."""
        (rows,) = self._pipeline.rows([pairs], self._predict)
        return rows

    def _count_failure(self, row: dict[str, Any], entry: dict[str, Any]) -> None:
        if "error" not in row:
            self.failed_in_a_row = 0
            return
        self.failed_in_a_row += 1
        if self.failed_in_a_row >= FAILURES_IN_A_ROW:
            raise CliptexError(
                f"{entry['path']}: {FAILURES_IN_A_ROW} images in a row failed, the last one {row['key']!r}"
                f" ({row['error']}); mend the expert {self.name!r} (the log has the traceback)"
            )
        log.warning("%s: %s has no label: %s", entry["path"], row["key"], row["error"])

    def _predict(self, images: dict[str, np.ndarray]) -> dict[str, Predicted]:
        """Key -> label and extra columns, or the reason why there are none.

        If a batch fails, its images are tried one by one.
        """
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
                log.warning("%s failed on %s", self.name, *images, exc_info=True)
                return dict.fromkeys(images, f"expert failed: {type(error).__name__}: {error}"[:200])
            singles: dict[str, Predicted] = {}
            for key, image in images.items():
                singles |= self._predict({key: image})
            return singles


def _workers(expert: Expert) -> int:
    """As many as the compute threads beside a GPU, else 0."""
    if getattr(getattr(expert, "device", None), "type", "cpu") == "cpu":
        return 0
    import torch

    return torch.get_num_threads()


@contextmanager
def _writing(
    path: Path, scalars: list[str], extras: dict[str, Any], metadata: dict[str, Any]
) -> Iterator[Callable[[list[dict[str, Any]]], None]]:
    """Yield a function that adds rows to a label file, which is there when the context ends without an error."""
    import pyarrow as pa
    from pyarrow import parquet

    types = dict(zip(COLUMNS, (pa.string(), pa.int32(), pa.int32(), pa.binary(), pa.string()), strict=True))
    types |= dict.fromkeys(scalars, pa.float64()) | extras
    schema = pa.schema(types, metadata={METADATA_KEY: json.dumps(metadata)})
    rows: list[dict[str, Any]] = []
    with (
        replacing(path) as scratch,
        parquet.ParquetWriter(
            scratch,
            schema,
            compression={name: "none" if name == "payload" else "zstd" for name in types},
            use_dictionary=False,
            write_page_checksum=True,
        ) as file,
    ):

        def flush(count: int) -> None:
            table = pa.Table.from_pylist([{name: row.get(name) for name in types} for row in rows[:count]], schema)
            file.write_table(table, row_group_size=count)
            del rows[:count]

        def write(more: list[dict[str, Any]]) -> None:
            rows.extend(more)
            # whole groups only, so that the file does not depend on how rows arrive, and payloads do not pile up
            while len(rows) >= ROWS_A_GROUP:
                flush(ROWS_A_GROUP)

        yield write
        if rows:
            flush(len(rows))


# ---- checking


def index_labels(config: Config, store: str, shard_index: Path, out_dir: Path) -> dict[str, Any]:
    """Check every label file of a store and write its index.json.

    Each file is compared with its shard (digest, keys and their order) and with the batch file of the job that wrote
    it (digest), and all with the configuration (expert, recipe). The index holds what was found: `files`, share of
    images labelled (`coverage`), `failures` by reason, `statistics`, `bytes_per_image`. It depends on the labels
    alone, so that redoing a lost file gives the same index. Raises CliptexError that names the file and the command
    to mend it.
    """
    settings = config.label_stores[store]
    task: Task = find("tasks", settings.task)()
    entries = read_index(shard_index)["shards"]
    per_job = config.labels.shards_per_job
    files, weights = [], None
    scalars: dict[str, list[float]] = {}
    records = []
    for number, entry in enumerate(track(entries, f"index labels {store}")):
        batch_path = out_dir / f"batch-{number // per_job:03d}.json"
        record = next((item for item in read_json(batch_path)["shards"] if item["shard"] == entry["shard"]), None)
        path = out_dir / f"{entry['shard']}.parquet"
        redo = f"run: rm -f {path} {batch_path}   and then the same command again"
        if record is None:
            raise CliptexError(f"{batch_path}: lacks shard {entry['shard']}; {redo}")
        if not path.is_file():
            raise CliptexError(f"{path}: label file is missing; {redo}")
        if path.stat().st_size != record["bytes"] or sha256_file(path) != record["sha256"]:
            raise CliptexError(f"{path}: differs from what {batch_path.name} says was written; {redo}")
        file = LabelFile(path, task)
        _check_keys(file, entry, redo)
        if file.metadata["shard_sha256"] != entry["sha256"]:
            raise CliptexError(f"{path}: made from another version of shard {entry['shard']}; {redo}")
        if file.metadata["expert"] != settings.expert:
            raise CliptexError(
                f"{path}: made by the expert {file.metadata['expert']!r}, but label_stores.{store}.expert is"
                f" {settings.expert!r}; {redo}"
            )
        weights = weights or file.metadata["weights_sha256"]
        if file.metadata["weights_sha256"] != weights:
            raise CliptexError(f"{path}: made with other weights of {settings.expert!r} than the files before; {redo}")
        if file.metadata["recipe_sha256"] != _recipe(config, store, task, weights, out_dir.parent)["recipe_sha256"]:
            raise CliptexError(f"{path}: made with other settings than the configuration's; {redo}")
        for name in file.scalars:
            scalars.setdefault(name, []).extend(value for value in file.column(name) if value is not None)
        records.append(record)
        kept = ("shard", "file", "sha256", "bytes", "shard_sha256", "rows", "labelled", "failures", "payload_bytes")
        files.append({"batch": batch_path.name, **{name: record[name] for name in kept}})
    images, labelled = sum(item["rows"] for item in files), sum(item["labelled"] for item in files)
    failures = _total(item["failures"] for item in files)
    if not labelled:
        raise CliptexError(f"{out_dir}: no image has a label ({failures}); mend the expert {settings.expert!r}")
    if failures:
        log.warning("%s: %d of %d images have no label: %s", out_dir, images - labelled, images, failures)
    recipe = _recipe(config, store, task, weights, out_dir.parent)
    if recipe["weights"] == "random":
        log.warning("%s: labels of a network with RANDOM weights, for tests and benchmarks only", out_dir)
    statistics = _class_statistics(records, task)
    if len(statistics.get("classes", "many")) == 1:
        log.warning("%s: every pixel is %s; look at the expert's quality", out_dir, *statistics["classes"])
    index = {
        "schema_version": SCHEMA_VERSION,
        "store": store,
        **{name: recipe[name] for name in ("task", "expert", "plugin", "weights", "weights_sha256", "licence")},
        "recipe_sha256": recipe["recipe_sha256"],
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
            **statistics,
        },
        "files": files,
    }
    write_json(out_dir / "index.json", index)
    return index


def _class_statistics(records: list[dict[str, Any]], task: Task) -> dict[str, Any]:
    """`classes`: name -> share of the valid pixels, and images it occurs in; classes that occur."""
    names = task.codec().get("class_names", [])
    if not names:
        return {}
    pixels, images = Counter[str](), Counter[str]()
    for record in records:
        for name, (number, count) in record["classes"].items():
            pixels[name] += number
            images[name] += count
    total = max(pixels.total(), 1)
    return {
        "classes": {name: {"share": pixels[name] / total, "images": images[name]} for name in names if images[name]}
    }


def _check_keys(file: "LabelFile", entry: dict[str, Any], redo: str) -> None:
    if file.keys == entry["keys"]:
        return
    found, wanted = set(file.keys), set(entry["keys"])
    problems = (
        *(f"key {key!r} has no label row" for key in entry["keys"] if key not in found),
        *(f"key {key!r} is not in the shard" for key in file.keys if key not in wanted),
        *(f"key {key!r} is out of order" for key, other in zip(file.keys, entry["keys"], strict=False) if key != other),
    )
    raise CliptexError(
        f"{file.path}: does not fit shard {entry['shard']}: {(*problems, 'a key is there twice')[0]}; {redo}"
    )


# ---- reading


class LabelFile:
    """One label file: its keys now, its payloads when first asked for.

    task: refuse a file of another task or codec, and allow `label`. Raises CliptexError, naming the file and the
    remedy, when it is missing, truncated, changed on disk, or not a label file of a known schema.
    """

    def __init__(self, path: Path, task: Task | None = None):
        self.path, self.task = Path(path), task
        self.metadata: dict[str, Any] = {}
        self._rows: tuple[Any, list[int | None], list[int | None]] | None = None
        (keys,) = self._read(["key"])
        self.keys = Keys(keys.to_pylist())
        if self.metadata.get("schema_version") != SCHEMA_VERSION:
            raise CliptexError(
                f"{path}: label schema {self.metadata.get('schema_version')} is not {SCHEMA_VERSION}, the one this"
                f" version reads; run: rm {path}   and then the same command again"
            )
        if task is not None and (self.metadata["task"], self.metadata["codec"]) != (task.name, task.codec()):
            raise CliptexError(
                f"{path}: holds {self.metadata['task']} as {self.metadata['codec'].get('name')!r}, not {task.name} as"
                f" {task.codec().get('name')!r}; run: rm {path}   and then the same command again"
            )

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def scalars(self) -> list[str]:
        """Names of the task's scalar columns."""
        return [name for name in self._names if name not in (*COLUMNS, *self.metadata.get("extra_columns", ()))]

    def column(self, name: str) -> list[Any]:
        """The values of a column."""
        return self._read([name])[0].to_pylist()

    def payload_bytes(self) -> int:
        """Bytes of all payloads."""
        import pyarrow.compute as pc

        return pc.sum(pc.binary_length(self._read(["payload"])[0])).as_py() or 0

    def load(self) -> None:
        """Read the payloads into memory, checking the page checksums."""
        if self._rows is None:
            payload, height, width = self._read(["payload", "height", "width"])
            self._rows = (payload.combine_chunks(), height.to_pylist(), width.to_pylist())

    def get(self, row: int) -> tuple[bytes, int, int] | None:
        """(payload, height, width) of a row, the arguments of the task's `decode`; None where the label failed."""
        self.load()
        payloads, heights, widths = self._rows
        payload = payloads[row].as_py()
        return None if payload is None else (payload, heights[row], widths[row])

    def some(self, rows: Iterable[int]) -> dict[int, tuple[bytes, int, int] | None]:
        """`get` of some rows, by row; nothing is kept, and only the groups of rows that they are in are read."""
        wanted = np.unique(np.fromiter(rows, np.int64))
        found: dict[int, tuple[bytes, int, int] | None] = {}

        def read(file: "parquet.ParquetFile") -> None:
            first = 0
            for group in range(file.num_row_groups):
                end = first + file.metadata.row_group(group).num_rows
                here = wanted[(wanted >= first) & (wanted < end)]
                if here.size:
                    table = file.read_row_group(group, ["payload", "height", "width"], use_threads=False).take(
                        here - first
                    )
                    columns = (table[name].to_pylist() for name in ("payload", "height", "width"))
                    for row, payload, *size in zip(here.tolist(), *columns, strict=True):
                        found[row] = None if payload is None else (payload, *size)
                first = end

        self.read_with(read)
        return found

    def label(self, row: int) -> np.ndarray | None:
        """The decoded label of a row; None where it failed."""
        found = self.get(row)
        try:
            return None if found is None else self.task.decode(*found)
        except ValueError as error:
            raise CliptexError(
                f"{self.path}: label of {self.keys[row]!r} cannot be decoded ({error}); run: rm {self.path}   and then"
                " the same command again"
            ) from error

    def _read(self, columns: list[str]) -> list[Any]:
        def read(file: "parquet.ParquetFile") -> list[Any]:
            self.metadata = json.loads((file.schema_arrow.metadata or {}).get(METADATA_KEY, b"{}"))
            self._names = file.schema_arrow.names
            return file.read(columns).columns

        return self.read_with(read)

    def read_with(self, read: "Callable[[parquet.ParquetFile], Found]") -> Found:
        """What `read` makes of the open file; its errors name the file and the remedy."""
        import pyarrow as pa
        from pyarrow import parquet

        try:
            with parquet.ParquetFile(self.path, page_checksum_verification=True) as file:
                return read(file)
        except FileNotFoundError as error:
            raise CliptexError(f"{self.path}: label file is missing; run the same command again") from error
        except (pa.ArrowException, OSError, ValueError) as error:
            what = str(error).splitlines()[0]
            raise CliptexError(
                f"{self.path}: label file is damaged ({what}); run: rm {self.path}   and then the same command again"
            ) from error


class StoredLabels:
    """The decoded labels of some label files by key: what an expert gets that changes them."""

    def __init__(self, files: list[LabelFile]):
        self._places = {}
        for file in files:
            keys = list(file.keys)
            self._places |= {key: (file, row, keys) for row, key in enumerate(keys)}

    def label(self, key: str) -> np.ndarray | None:
        """Label of a picture; None where it failed."""
        file, row, _ = self._places[key]
        return file.label(row)

    def beside(self, key: str) -> list[str]:
        """Keys of the picture's shard, in order."""
        return self._places[key][2]


def read_label_index(config: Config, store: str, path: Path) -> dict[str, Any]:
    """The index.json of a store. Raises CliptexError when it is not by the expert or for the task in the config."""
    settings = config.label_stores[store]
    task: Task = find("tasks", settings.task)()
    index = read_json(path)
    for what, found, wanted in (
        ("expert", index["expert"], settings.expert),
        ("task", index["task"], task.name),
        ("codec", index["codec"], task.codec()),
    ):
        if found != wanted:
            found, wanted = (value["name"] if what == "codec" else value for value in (found, wanted))
            raise CliptexError(
                f"{path}: the label store's {what} is {found!r}, but label_stores.{store} wants {wanted!r};"
                f" run: rm -r {Path(path).parent}   and then the same command again"
            )
    return index


@lru_cache(maxsize=16)
def _files_of(index: Path, mtime_ns: int) -> dict[str, dict[str, Any]]:
    return {item["shard"]: item for item in read_json(index)["files"]}


def open_store(index: Path, entry: dict[str, Any], task: Task | None = None) -> LabelFile:
    """The label file of one shard (an entry of the shard index) in an indexed store.

    Raises CliptexError, naming shard and key, when the store does not hold exactly the shard's keys, or when the file
    is not the one that was indexed.
    """
    index = Path(index)
    files = _files_of(index, index.stat().st_mtime_ns if index.exists() else 0)
    item = files.get(entry["shard"])
    redo = f"run: rm -f {index}   and then the same command again"
    if item is None or item["shard_sha256"] != entry["sha256"]:
        what = "does not hold" if item is None else "was made from another version of"
        raise CliptexError(f"{index}: {what} shard {entry['shard']}, first key {entry['keys'][0]!r}; {redo}")
    path = index.parent / item["file"]
    if path.is_file() and path.stat().st_size != item["bytes"]:
        raise CliptexError(
            f"{path}: labels of shard {entry['shard']} changed since they were indexed; run: rm {path} {index}   and"
            " then the same command again"
        )
    file = LabelFile(path, task)
    _check_keys(file, entry, redo)
    return file
