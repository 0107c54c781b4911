"""Where the payloads of a label store are in its files, so that one is read without the others.

Reads   results/labels/{store}/{shard}.parquet.
Writes  results/labels/{store}/payloads.arrow when a store is indexed: a record batch for each shard of the shard index,
        a row (`SCHEMA`) for each image. Each batch has the digests of shard and label file, the size of the latter,
        and the CRC-32 of its own rows. Nothing else depends on this file: without it, places are found when needed.
"""

import mmap
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from cliptex.core.errors import CliptexError
from cliptex.core.files import replacing, sha256_file
from cliptex.data.samples_file import checksum
from cliptex.labels.store import LabelFile, check_keys, open_store
from cliptex.tasks.base import Task

if TYPE_CHECKING:
    from pyarrow import parquet

FILE = "payloads.arrow"
SCHEMA = pa.schema(
    {
        "offset": pa.int64(),  # of the payload in the label file; 0: the image has no label; -1: it is compressed
        "bytes": pa.uint32(),
        "height": pa.int32(),
        "width": pa.int32(),
        "crc32": pa.uint32(),  # of the payload
    }
)
OPEN_FILES = 128
EncodedLabel = tuple[bytes, int, int] | None
"""Payload, height and width, the arguments of `Task.decode`; None if an image has no label."""


def find_payloads(file: LabelFile) -> pa.RecordBatch:
    """The places of a label file's payloads (`SCHEMA`). Raises CliptexError if the file is damaged.

    Payloads are stored one after the other in the order of rows, each after its length of 4 bytes, with a header
    between pages. Another program may have compressed the column; then none has a place.
    """

    def find(opened: "parquet.ParquetFile") -> pa.RecordBatch:
        offsets, sizes, checksums, sides, at = [], [], [], [], 0
        with file.path.open("rb") as raw, mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for group in range(opened.num_row_groups):
                table = opened.read_row_group(group, ["payload", "height", "width"], use_threads=False)
                sides.append([table[name].fill_null(0).to_numpy() for name in ("height", "width")])
                for payload in table["payload"].to_pylist():
                    size = 0 if payload is None else len(payload)
                    if size and at >= 0 and data[at + 4 : at + 4 + size] == payload:
                        at += 4
                    elif size and at >= 0:
                        at = data.find(payload, at)
                    offsets.append(at if size else 0 if payload is None else -1)
                    sizes.append(size)
                    checksums.append(zlib.crc32(payload) if size else 0)
                    at += size if at >= 0 else 0
        if at < 0:
            offsets = [-1 if offset else 0 for offset in offsets]
        heights, widths = np.concatenate(sides, axis=1) if sides else ([], [])
        columns = zip((offsets, sizes, heights, widths, checksums), SCHEMA, strict=True)
        return pa.record_batch([pa.array(values).cast(field.type) for values, field in columns], schema=SCHEMA)

    return file.read_with(find)


@contextmanager
def payloads_writer(path: Path) -> Iterator[Callable[[LabelFile, str, str], None]]:
    """Yield a function that adds a label file, given also its SHA-256 and that of its shard, to a new payloads.arrow,
    which is created only if no error occurs."""
    with replacing(path) as scratch, pa.OSFile(str(scratch), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:

        def add(file: LabelFile, sha256: str, shard_sha256: str) -> None:
            batch, size = find_payloads(file), file.path.stat().st_size
            about = {"sha256": sha256, "shard_sha256": shard_sha256, "bytes": str(size), "crc32": str(checksum(batch))}
            writer.write_batch(batch, custom_metadata=about)

        yield add


class StoredPayloads:
    """The encoded labels of a store by shard and row. Sent to another process, it opens files there.

    index: index.json of the store. entries: of the shard index. shards: number of shards of which places are kept.
    Raises CliptexError that names the file and the remedy if a label file is missing, or differs from the indexed one.
    """

    def __init__(self, index: Path, entries: Sequence[dict[str, Any]], task: Task, shards: int):
        self.index, self.entries, self.task, self.shards = Path(index), entries, task, shards
        self._places_of = lru_cache(maxsize=shards)(self._find)
        self._whole_file = lru_cache(maxsize=shards)(lambda shard: open_store(self.index, entries[shard], task))
        self._opened: pa.ipc.RecordBatchFileReader | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return StoredPayloads, (self.index, self.entries, self.task, self.shards)

    def check(self, shard: int) -> None:
        """Raise CliptexError unless the labels of a shard have its keys."""
        entry = self.entries[shard]
        if self._read(shard)[0] is None:
            open_store(self.index, entry, self.task)
        else:
            redo = f"run: rm -f {self.index}   and then the same command again"
            check_keys(LabelFile(self._path(entry), self.task), entry, redo)

    def check_digest(self, shard: int) -> None:
        """Raise CliptexError unless a shard's whole label file is the indexed one. `get` compares what it reads."""
        batch, sha256 = self._read(shard)
        if batch is not None and sha256_file(self._path(self.entries[shard])).encode() != sha256:
            open_store(self.index, self.entries[shard], self.task).check_digest()  # names the label file, if it changed
            raise self._damaged(f"has another digest of the labels of shard {self.entries[shard]['shard']}")

    def get(self, shard: int, row: int) -> EncodedLabel:
        """The encoded label of an image."""
        path, modified_ns, columns = self._places_of(shard)
        offset, size, height, width, crc32 = (column[row].as_py() for column in columns)
        if offset < 0:
            return self._whole_file(shard).get(row)
        if not offset:
            return None
        payload = os.pread(_open(path, modified_ns).fileno(), size, offset)
        if zlib.crc32(payload) != crc32:
            open_store(self.index, self.entries[shard], self.task).check_digest()  # names the label file, if it changed
            raise self._damaged(f"row {row} of shard {self.entries[shard]['shard']} has another checksum")
        return payload, height, width

    def read_ahead(self, shard: int) -> None:
        """Ask the system to read a label file, in order, since labels are read in random order."""
        path, modified_ns, _ = self._places_of(shard)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(_open(path, modified_ns).fileno(), 0, 0, os.POSIX_FADV_WILLNEED)

    def _find(self, shard: int) -> tuple[str, int, list[pa.Array]]:
        entry = self.entries[shard]
        batch, _ = self._read(shard)
        if batch is None:
            file = open_store(self.index, entry, self.task)
            file.check_digest()
            batch = find_payloads(file)
        path = self._path(entry)
        return str(path), path.stat().st_mtime_ns, batch.columns

    def _read(self, shard: int) -> tuple[pa.RecordBatch | None, bytes]:
        """The rows of payloads.arrow, and the label file's SHA-256; None if the store has no such file."""
        path, entry = self.index.with_name(FILE), self.entries[shard]
        if self._opened is None and not path.exists():
            return None, b""
        try:
            if self._opened is None:
                self._opened = pa.ipc.open_file(pa.memory_map(str(path)))
            if self._opened.schema != SCHEMA or self._opened.num_record_batches != len(self.entries):
                raise ValueError("has other columns, or another number of shards")
            batch, about = self._opened.get_batch_with_custom_metadata(shard)
            batch.validate(full=True)
            about = dict(about or {})
            if about.get(b"crc32") != str(checksum(batch)).encode():
                raise ValueError(f"the checksum of shard {entry['shard']} is wrong")
            if batch.num_rows != len(entry["keys"]) or about.get(b"shard_sha256") != entry["sha256"].encode():
                raise ValueError(f"was made from another version of shard {entry['shard']}")
            if about.get(b"bytes") != str(self._path(entry).stat().st_size).encode():
                raise ValueError(f"was made from other labels of shard {entry['shard']}")
        except (pa.ArrowException, OSError, ValueError) as error:
            open_store(self.index, entry, self.task)  # names the label file, if that is missing or changed
            raise self._damaged((str(error).strip() or type(error).__name__).splitlines()[0]) from error
        return batch, about.get(b"sha256", b"")

    def _path(self, entry: dict[str, Any]) -> Path:
        return self.index.parent / f"{entry['shard']}.parquet"

    def _damaged(self, reason: str) -> CliptexError:
        path = self.index.with_name(FILE)
        return CliptexError(
            f"{path}: {reason}; run: rm -f {path}   and then the same command again, which loads more slowly without it"
        )


@lru_cache(maxsize=OPEN_FILES)
def _open(path: str, modified_ns: int) -> FileIO:
    """The open file; modified_ns only distinguishes cache entries."""
    return FileIO(path)
