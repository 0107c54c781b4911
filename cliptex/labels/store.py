"""Read label stores: one Parquet file for each shard, with one row for each image.

Reads   results/labels/{store}/index.json and {shard}.parquet.

Columns: `key`; `payload`, `height` and `width`, the arguments of the task's `decode`, or null and a reason in `error`;
then the task's scalars and the expert's extra columns. The file's metadata hold the recipe under the key `cliptex`.
"""

import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from cliptex.config import Config
from cliptex.core.errors import CliptexError
from cliptex.core.files import read_checked, sha256_file
from cliptex.core.plugins import find
from cliptex.data.packed import Keys
from cliptex.labels.parquet_form import PLAIN, RLE, row_groups
from cliptex.tasks.base import Task

if TYPE_CHECKING:
    from pyarrow import parquet

T = TypeVar("T")
SCHEMA_VERSION = 1
METADATA_KEY = b"cliptex"
COLUMNS = ("key", "height", "width", "payload", "error")
COLUMN_TYPES = ("string", "int32", "int32", "binary", "string")
INDEXED = {"shard": str, "file": str, "sha256": str, "bytes": int, "shard_sha256": str}
"""What the index and a batch file have of each label file (`cliptex.core.files.read_checked`)."""
MAX_RATIO, MAX_EXTRA_BYTES = 64, 1 << 22
"""Of the uncompressed data to the file: payloads are not compressed, so that label files are far below."""


def again_without(*files: Path) -> str:
    """The remedy for files that are wrong and that the same command makes again."""
    return f"run: rm {' '.join(map(str, files))}   and then the same command again"


def check_keys(file: "LabelFile", entry: dict[str, Any], redo: str) -> None:
    """Raise CliptexError unless the file has exactly the keys of a shard (an entry of the shard index), in order. redo:
    the remedy, for the message."""
    if file.keys == entry["keys"]:
        return
    label_keys, shard_keys = set(file.keys), set(entry["keys"])
    problems = (
        *(f"key {key!r} has no label row" for key in entry["keys"] if key not in label_keys),
        *(f"key {key!r} is not in the shard" for key in file.keys if key not in shard_keys),
        *(f"key {key!r} is out of order" for key, other in zip(file.keys, entry["keys"], strict=False) if key != other),
        "duplicate key",
    )
    raise CliptexError(f"{file.path}: does not match shard {entry['shard']}: {problems[0]}; {redo}")


class LabelFile:
    """One label file. Keys are read at once, payloads on first access.

    task: needed for `label`; a file of another task or codec is then rejected. sha256: of the file, compared before the
    first payload is read. Raises CliptexError, naming the file and the remedy, if it is missing, truncated, corrupt,
    not what it should be, or has another schema version.
    """

    def __init__(self, path: Path, task: Task | None = None, sha256: str | None = None):
        self.path, self.task, self._sha256 = Path(path), task, sha256
        self.metadata: dict[str, Any] = {}
        self._checked: tuple[int, int, int] | None = None
        self._rows: tuple[Any, list[int | None], list[int | None]] | None = None
        (keys,) = self._read(["key"])
        self.keys = Keys(keys.to_pylist())
        if self.metadata.get("schema_version") != SCHEMA_VERSION:
            raise CliptexError(
                f"{path}: label schema {self.metadata.get('schema_version')} is not {SCHEMA_VERSION}, the one this"
                f" version reads; {again_without(path)}"
            )
        if task is not None and (self.metadata["task"], self.metadata["codec"]) != (task.name, task.codec()):
            raise CliptexError(
                f"{path}: holds {self.metadata['task']} as {self.metadata['codec'].get('name')!r}, not {task.name} as"
                f" {task.codec().get('name')!r}; {again_without(path)}"
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

    def get(self, row: int) -> tuple[bytes, int, int] | None:
        """(payload, height, width) of a row, the arguments of the task's `decode`; None if it has no label."""
        if self._rows is None:
            self.check_digest()
            payload, height, width = self._read(["payload", "height", "width"])
            self._rows = (payload.combine_chunks(), height.to_pylist(), width.to_pylist())
        payloads, heights, widths = self._rows
        payload = payloads[row].as_py()
        return None if payload is None else (payload, heights[row], widths[row])

    def label(self, row: int) -> np.ndarray | None:
        """The decoded label of a row; None if it has no label."""
        encoded = self.get(row)
        try:
            return None if encoded is None else self.task.decode(*encoded)
        except MemoryError:
            raise
        except Exception as error:  # decoders raise many types of errors for damaged payloads
            problem = f"label of {self.keys[row]!r} cannot be decoded ({error})"
            raise CliptexError(f"{self.path}: {problem}; {again_without(self.path)}") from error

    def _read(self, columns: list[str]) -> list[Any]:
        def read(file: "parquet.ParquetFile") -> list[Any]:
            self.metadata = json.loads((file.schema_arrow.metadata or {}).get(METADATA_KEY, b"{}"))
            self._names = file.schema_arrow.names
            if not isinstance(self.metadata, dict) or not {"task", "codec"} <= set(self.metadata):
                raise ValueError("no metadata of a label file")
            columns_read = file.read(columns).columns
            if columns[0] == "key" and columns_read[0].null_count:
                raise ValueError("a row without a key")
            return columns_read

        return self.read_with(read)

    def read_with(self, read: "Callable[[parquet.ParquetFile], T]") -> T:
        """Call `read` on the open Parquet file; errors become CliptexError with the file and the remedy."""
        import pyarrow as pa
        from pyarrow import parquet

        if not self.path.is_file():
            problem = "is not a file; move it away" if self.path.exists() else "label file is missing"
            raise CliptexError(f"{self.path}: {problem}; run the same command again")
        try:
            limits = {"thrift_string_size_limit": 1 << 24, "thrift_container_size_limit": 1 << 20}
            with parquet.ParquetFile(self.path, page_checksum_verification=True, **limits) as file:
                status = self.path.stat()
                if self._checked != (version := (status.st_ino, status.st_mtime_ns, status.st_size)):
                    _check_form(file, self.path)
                    self._checked = version  # training opens the file again in every epoch
                return read(file)
        except MemoryError as error:
            raise CliptexError(f"{self.path}: label file does not fit into memory ({_first_line(error)})") from error
        except (pa.ArrowException, OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno:  # of the disk, not of the content
                raise CliptexError(f"{self.path}: cannot be read ({error.strerror or error})") from error
            problem = f"label file is damaged ({_first_line(error)})"
            raise CliptexError(f"{self.path}: {problem}; {again_without(self.path)}") from error

    def check_digest(self) -> None:
        """Raise CliptexError if the file is not the one that was indexed (SHA-256)."""
        if self._sha256 is not None and sha256_file(self.path) != self._sha256:
            problem = "differs from the file that was indexed (SHA-256)"
            remedy = f"put the indexed file back, or {again_without(self.path, self.path.parent / 'index.json')}"
            raise CliptexError(f"{self.path}: {problem}; {remedy}")
        self._sha256 = None  # once for each process


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _check_form(file: "parquet.ParquetFile", path: Path) -> None:
    """Raise ValueError unless the types are those that are written here, and reading takes memory in proportion to
    the file: no dictionaries, no encodings that repeat values, no far larger uncompressed data."""
    types, size = {field.name: str(field.type) for field in file.schema_arrow}, path.stat().st_size
    if wrong := [name for name, kind in zip(COLUMNS, COLUMN_TYPES, strict=True) if types.get(name) != kind]:
        raise ValueError(f"column {wrong[0]} is {types.get(wrong[0], 'missing')}")
    groups, num_rows = row_groups(path), file.metadata.num_rows
    chunks = [chunk for group in groups for chunk in group.chunks]
    if any(chunk.has_dictionary or chunk.encodings - {PLAIN, RLE} for chunk in chunks):
        raise ValueError("encodings that repeat values; to write label files elsewhere, use plain ones")
    if sum(group.rows for group in groups) != num_rows or num_rows > size + MAX_EXTRA_BYTES:
        raise ValueError(f"{num_rows} rows in {size} bytes")
    if sum(chunk.uncompressed_bytes for chunk in chunks) > MAX_RATIO * size + MAX_EXTRA_BYTES:
        raise ValueError(f"uncompressed more than {MAX_RATIO} times as large")


class StoredLabels:
    """Decoded labels of several label files by key, for an expert that changes the labels of another store."""

    def __init__(self, files: list[LabelFile]):
        self.codec: dict[str, Any] = files[0].metadata["codec"]
        shards = [(file, list(file.keys)) for file in files]
        self._rows = {key: (file, row, keys) for file, keys in shards for row, key in enumerate(keys)}

    def label(self, key: str) -> np.ndarray | None:
        """Label of an image; None if it has none."""
        file, row, _ = self._rows[key]
        return file.label(row)

    def shard_keys(self, key: str) -> list[str]:
        """Keys of all images in this image's shard, in order."""
        return self._rows[key][2]


def task_of_store(config: Config, store: str, index: Path) -> Task:
    """The task of a label store, with the parameters that the codec in its `index` (index.json) has; without an index,
    the task's defaults."""
    codec = read_checked(index, {"codec": {}})["codec"] if Path(index).exists() else {}
    return task_of_codec(config, store, codec, index)


def task_of_codec(config: Config, store: str, codec: Any, path: Path) -> Task:
    """The task of a label store with the codec that its file `path` has. Raises CliptexError if it is damaged."""
    try:
        if not isinstance(codec, dict):
            raise ValueError(f"the codec is {type(codec).__name__}")
        return find("tasks", config.label_stores[store].task).from_codec(codec)
    except ValueError as error:
        raise CliptexError(f"{path}: not the codec of a label store ({error}); {again_without(path)}") from error


def read_label_index(config: Config, store: str, path: Path) -> dict[str, Any]:
    """The index.json of a store. Raises CliptexError if its expert, task or codec differs from the config's."""
    store_config = config.label_stores[store]
    index = read_checked(path, {"expert": str, "task": str, "codec": {"name": str}, "files": [INDEXED]})
    task = task_of_codec(config, store, index["codec"], path)
    origin = ("expert", index["expert"], store_config.expert)
    if store_config.from_ is not None:
        origin = ("from", (index.get("from") or {}).get("source"), store_config.from_)
    for name, actual, expected in (
        origin,
        ("task", index["task"], task.name),
        ("codec", index["codec"], task.codec()),
    ):
        if actual != expected:
            actual, expected = (value["name"] if name == "codec" else value for value in (actual, expected))
            raise CliptexError(
                f"{path}: the label store's {name} is {actual!r}, but label_stores.{store} has {expected!r};"
                f" use that, or run: mv {Path(path).parent} {Path(path).parent}.old   and then the same command again"
            )
    return index


@lru_cache(maxsize=16)
def _files_of(index: Path, mtime_ns: int) -> dict[str, dict[str, Any]]:
    return {item["shard"]: item for item in read_checked(index, {"files": [INDEXED]})["files"]}


def open_store(index: Path, entry: dict[str, Any], task: Task | None = None) -> LabelFile:
    """The label file of one shard (an entry of the shard index) in an indexed store. Raises CliptexError, naming shard
    and key, if the store does not hold exactly the shard's keys, or if the file has changed since it was indexed."""
    index = Path(index)
    files = _files_of(index, index.stat().st_mtime_ns if index.exists() else 0)
    item = files.get(entry["shard"])
    redo = f"run: rm -f {index}   and then the same command again"
    if item is None or item["shard_sha256"] != entry["sha256"]:
        problem = "does not hold" if item is None else "was made from another version of"
        raise CliptexError(f"{index}: {problem} shard {entry['shard']}, first key {entry['keys'][0]!r}; {redo}")
    path = index.parent / f"{entry['shard']}.parquet"
    if path.is_file() and path.stat().st_size != item["bytes"]:
        problem = f"labels of shard {entry['shard']} changed since they were indexed"
        raise CliptexError(f"{path}: {problem}; {again_without(path, index)}")
    file = LabelFile(path, task, item["sha256"])
    check_keys(file, entry, redo)
    file.keys = entry["keys"]  # equal; all stores share one copy in memory
    return file


def rows_by_shard(sizes: list[int], images: np.ndarray) -> dict[int, list[int]]:
    """Shard -> rows in it, ascending, of images that are numbered over all shards from 0. sizes: rows of each shard."""
    starts = np.cumsum([0, *sizes])
    rows: dict[int, list[int]] = {}
    for image in sorted(images.tolist()):
        shard = int(np.searchsorted(starts, image, side="right")) - 1
        rows.setdefault(shard, []).append(image - int(starts[shard]))
    return rows
