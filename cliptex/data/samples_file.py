"""The samples of all shards in one Arrow IPC file next to the index, memory-mapped and read by shard.

Reads, writes  results/shards/samples.arrow: uncompressed, a record batch per shard, a row per sample (`SCHEMA`).

The index names the file with its size and the SHA-256 of its footer, and has a CRC-32 of each shard's rows, which is
checked when they are read. Opening it takes the same time for any number of samples.
"""

import hashlib
import json
import threading
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa

from cliptex.core.errors import CliptexError

SCHEMA = pa.schema(
    {
        "key": pa.string(),
        "image_offset": pa.int64(),  # of the image's bytes in the tar; 0, as all below, if the sample is dropped
        "image_bytes": pa.uint32(),
        "caption_offset": pa.int64(),  # of the member with the caption
        "caption_bytes": pa.uint32(),
        "caption_in_json": pa.bool_(),
        "crc32": pa.uint32(),  # of the bytes of image and caption
        "reason": pa.uint16(),  # 0: usable; n: dropped for the index's `samples.reasons[n - 1]`
    }
)
LOCATION = SCHEMA.names[1:7]
MAX_FOOTER_BYTES = 1 << 28


class Rows(NamedTuple):
    """Where the rows of a shard are: number of the record batch, its checksum, usable and dropped samples."""

    number: int
    crc32: int
    num_samples: int
    num_dropped: int


class SamplesFile:
    """The file, opened at first use.

    reasons: why samples are dropped. Raises CliptexError with the remedy if it is missing, is not the one that the
    index names, or is damaged.
    """

    def __init__(self, path: Path, num_bytes: int, footer_sha256: str, reasons: list[str]):
        self.path, self.num_bytes, self.footer_sha256, self.reasons = Path(path), num_bytes, footer_sha256, reasons
        self._lock = threading.Lock()
        self._opened: pa.ipc.RecordBatchFileReader | None = None
        self._batch = lru_cache(maxsize=2)(self._read)

    def __reduce__(self) -> tuple[Any, ...]:
        return SamplesFile, (self.path, self.num_bytes, self.footer_sha256, self.reasons)

    def usable(self, rows: Rows) -> pa.RecordBatch:
        """The usable samples of a shard, in order."""
        return self._split(rows)[0]

    def dropped(self, rows: Rows) -> dict[str, str]:
        """Key -> reason of a shard's dropped samples."""
        batch = self._split(rows)[1]
        reasons = (self.reasons[code - 1] for code in batch["reason"].to_pylist())
        return dict(zip(batch["key"].to_pylist(), reasons, strict=True))

    def _split(self, rows: Rows) -> tuple[pa.RecordBatch, pa.RecordBatch]:
        with self._lock:  # a background thread and the main one may read
            return self._batch(rows)

    def _read(self, rows: Rows) -> tuple[pa.RecordBatch, pa.RecordBatch]:
        try:
            if self._opened is None:
                self._opened = self._open()
            batch = self._opened.get_batch(rows.number)
            batch.validate(full=True)
            if checksum(batch) != rows.crc32:
                raise ValueError(f"checksum of record batch {rows.number}")
            codes = np.asarray(batch["reason"])
            if len(codes) != rows.num_samples + rows.num_dropped or (codes == 0).sum() != rows.num_samples:
                raise ValueError(f"record batch {rows.number} has other samples than the index")
            if codes.max(initial=0) > len(self.reasons):
                raise ValueError("an unknown reason")
            return (
                (batch, batch.slice(0, 0))
                if not rows.num_dropped
                else (batch.filter(pa.array(codes == 0)), batch.filter(pa.array(codes > 0)))
            )
        except MemoryError:
            raise
        except (pa.ArrowException, OSError, ValueError, IndexError, OverflowError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            missing = "is missing" if not self.path.exists() else f"is damaged, or not of this index ({reason})"
            index = self.path.with_name("index.json")
            raise CliptexError(
                f"{self.path}: the samples' file {missing}; restore it, or run: rm -f {index}   and then the same"
                " command again"
            ) from error

    def _open(self) -> pa.ipc.RecordBatchFileReader:
        if self.path.stat().st_size != self.num_bytes:
            raise ValueError(f"{self.path.stat().st_size} bytes, not {self.num_bytes}")
        if footer_sha256(self.path) != self.footer_sha256:
            raise ValueError("another footer")
        opened = pa.ipc.open_file(pa.memory_map(str(self.path)))
        if opened.schema != SCHEMA:
            raise ValueError("other columns")
        return opened


def write_batches(path: Path, batches: Iterable[pa.RecordBatch]) -> None:
    """Write the batches of all shards, one in memory at a time."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
        for batch in batches:
            writer.write_batch(batch)


def checksums(path: Path) -> list[int]:
    """`checksum` of each record batch of a file that was just written."""
    opened = pa.ipc.open_file(pa.memory_map(str(path)))
    return [checksum(opened.get_batch(number)) for number in range(opened.num_record_batches)]


def checksum(batch: pa.RecordBatch) -> int:
    """CRC-32 of the buffers of a record batch as they are in the file."""
    value = 0
    for column in batch.columns:
        for buffer in column.buffers():
            value = value if buffer is None else zlib.crc32(buffer, value)
    return value


def footer_sha256(path: Path) -> str:
    """Hex SHA-256 of the footer, which has the columns, and place and size of each record batch. Raises ValueError if
    there is none."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - 10))
        end = file.read(10)
        length = int.from_bytes(end[:4], "little", signed=True)
        if end[4:] != b"ARROW1" or not 0 < length <= min(size - 10, MAX_FOOTER_BYTES):
            raise ValueError("no Arrow file, or truncated")
        file.seek(size - 10 - length)
        return hashlib.sha256(file.read(length)).hexdigest()


class StoredKeys(Sequence[str]):
    """The usable keys of a shard, read when needed. Equal to a list of the same strings."""

    __hash__ = None
    __slots__ = ("file", "rows")

    def __init__(self, file: SamplesFile, rows: Rows):
        self.file, self.rows = file, rows

    def __len__(self) -> int:
        return self.rows.num_samples

    def __iter__(self) -> Iterator[str]:
        return iter(self.file.usable(self.rows)["key"].to_pylist())

    def __getitem__(self, index: int | slice) -> Any:
        keys = self.file.usable(self.rows)["key"]
        return keys[index].to_pylist() if isinstance(index, slice) else keys[index].as_py()

    def __contains__(self, key: object) -> bool:
        return key in list(self)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, str | bytes) or not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and list(self) == list(other)

    def __repr__(self) -> str:
        return repr(list(self))


class StoredReasons(Mapping[str, str]):
    """Key -> reason of a shard's dropped samples, read when needed."""

    __slots__ = ("file", "rows")

    def __init__(self, file: SamplesFile, rows: Rows):
        self.file, self.rows = file, rows

    def __len__(self) -> int:
        return self.rows.num_dropped

    def __iter__(self) -> Iterator[str]:
        return iter(self._read())

    def __getitem__(self, key: str) -> str:
        return self._read()[key]

    def __repr__(self) -> str:
        return repr(self._read())

    def _read(self) -> dict[str, str]:
        return self.file.dropped(self.rows) if self.rows.num_dropped else {}


ENTRY = {"shard": str, "path": str, "sha256": str, "bytes": int, "num_samples": int, "num_dropped": int, "crc32": int}
TYPES = {str: pa.string(), int: pa.int64()}
ENTRY_SCHEMA = pa.schema({name: TYPES[kind] for name, kind in ENTRY.items()} | {"ignored": pa.string()})


class Entries(Sequence[dict[str, Any]]):
    """The shards of an index: dictionaries made when asked for, since 100,000 of them would take 100 MB."""

    __hash__ = None

    def __init__(self, columns: pa.Table, file: SamplesFile):
        self._columns, self._file = columns, file

    @staticmethod
    def pack(item: dict[str, Any]) -> tuple:
        """A shard of index.json as a row of `from_rows`. Raises ValueError if a value is missing or of another type."""
        values = tuple(item.get(name) for name in ENTRY)
        for (name, kind), value in zip(ENTRY.items(), values, strict=True):
            if type(value) is not kind or (kind is int and not 0 <= value < 1 << 62):
                raise ValueError(f"shards: {name} is wrong ({str(value)[:60]!r})")
        ignored = item.get("ignored")
        if ignored is not None and not isinstance(ignored, dict):
            raise ValueError(f"shards: ignored is wrong ({str(ignored)[:60]!r})")
        return (*values, json.dumps(ignored) if ignored else None)

    @classmethod
    def from_rows(cls, rows: list[tuple], file: SamplesFile) -> Self:
        """Of rows of `pack`."""
        columns = zip(*rows, strict=True) if rows else [()] * len(ENTRY_SCHEMA)
        return cls(pa.table(list(map(list, columns)), schema=ENTRY_SCHEMA), file)

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, Entries | list) else NotImplemented

    def sizes(self) -> list[int]:
        """Number of usable samples of each shard."""
        return self._columns["num_samples"].to_pylist()

    def __len__(self) -> int:
        return self._columns.num_rows

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        entry = {name: self._columns[name][index].as_py() for name in ENTRY_SCHEMA.names}
        rows = Rows(index, entry.pop("crc32"), entry.pop("num_samples"), entry.pop("num_dropped"))
        ignored = entry.pop("ignored")
        entry |= {"ignored": json.loads(ignored)} if ignored else {}
        return entry | {"keys": StoredKeys(self._file, rows), "dropped": StoredReasons(self._file, rows)}
