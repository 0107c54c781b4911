"""Read single samples of a shard by their places in the tar.

Reads   results/shards/samples.arrow, which has them; for an index of an earlier version, the tars' headers.
"""

import os
import zlib
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, reduce
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np

from cliptex.core import paths
from cliptex.core.errors import CliptexError
from cliptex.data.samples_file import LOCATION, StoredKeys
from cliptex.data.shards import (
    IMAGE_SUFFIXES,
    Pair,
    Unusable,
    image_suffix,
    open_tar,
    read_member,
    read_pair,
    samples,
)

OPEN_TARS = 256


def reindex_command() -> str:
    """The command that checks and indexes the shards again, for error messages."""
    return f"run: rm -f {paths.SHARD_INDEX} {paths.SHARDS}/batch-*.json   and then the same command again"


def check_indexed(entry: dict[str, Any]) -> None:
    """Raise CliptexError if an indexed shard is missing, or its size or first sample differs from the index. The other
    samples are compared when they are read."""
    path = Path(entry["path"])
    with open_tar(path) as file:
        if path.stat().st_size != entry["bytes"]:
            raise CliptexError(f"{path}: size differs from the index; {reindex_command()}")
        first = next(samples(file), None)
    if first and first.key not in entry["keys"] and first.key not in entry["dropped"]:
        raise CliptexError(f"{path}: its first key, {first.key!r}, is not in the index; {reindex_command()}")


@dataclass(frozen=True)
class SampleLocation:
    """Where the image and the caption of a sample are in a shard's file."""

    path: str
    """Absolute path of the shard."""
    modified_ns: int
    """Modification time of the file, so that a replaced file is opened again."""
    key: str
    image: tuple[int, int]
    caption: tuple[int, int]
    """Offset and number of bytes, as of the image."""
    caption_suffix: str
    """`txt`, or `json` for a caption in the metadata."""
    crc32: int | None
    """CRC-32 of the bytes of image and caption; None if the index is of an earlier version."""

    def read(self) -> Pair:
        """Read the sample, with metadata only if the caption is part of them. Raises CliptexError if the file is
        truncated or cannot be read, or if the sample differs from the one that was indexed."""
        file, crc32 = _open(self.path, self.modified_ns), 0

        def read(offset: int, size: int) -> bytes:
            nonlocal crc32
            data = read_member(file, offset, size)
            crc32 = zlib.crc32(data, crc32)
            return data

        pair = read_pair(read, self.key, {IMAGE_SUFFIXES[0]: self.image, self.caption_suffix: self.caption})
        if self.crc32 is not None and crc32 != self.crc32:
            raise CliptexError(f"{self.path}: {self.key!r} differs from the sample indexed; {reindex_command()}")
        return pair


@lru_cache(maxsize=OPEN_TARS)
def _open(path: str, modified_ns: int) -> FileIO:
    """The open file; modified_ns only distinguishes cache entries."""
    return open_tar(Path(path))


def locations_of(path: Path, keys: list[str | None], with_crc32: bool) -> np.ndarray:
    """The columns `LOCATION` of samples as int64 [N, 6]; 0 for None. Reads the tar's headers; `with_crc32` also the
    samples. Raises CliptexError if a key is not in the tar."""
    wanted, locations = set(keys) - {None}, {None: (0,) * len(LOCATION)}
    if wanted:
        with open_tar(path) as file, suppress(Unusable, KeyError):  # the shard was usable when it was indexed
            for key, members, _ in samples(file):
                if key in wanted:
                    text = "txt" if "txt" in members else "json"
                    image, caption = members[image_suffix(members)], members[text]
                    read = (read_member(file, *place) for place in (image, caption) if with_crc32)
                    crc32 = reduce(lambda value, data: zlib.crc32(data, value), read, 0)
                    locations[key] = (*image, *caption, text == "json", crc32)
    if missing := next((key for key in keys if key not in locations), None):
        raise CliptexError(f"{path}: has no key {missing!r}, which is in the index; {reindex_command()}")
    return np.array([locations[key] for key in keys], np.int64).reshape(-1, len(LOCATION))


class ShardOffsets:
    """Keys and locations of a shard's usable samples, by row (position among its keys).

    Raises CliptexError if the shard differs from the index.
    """

    def __init__(self, entry: dict[str, Any]):
        check_indexed(entry)
        path, keys = Path(entry["path"]).absolute(), entry["keys"]
        self._path, self._modified_ns = str(path), path.stat().st_mtime_ns
        if isinstance(keys, StoredKeys):
            rows = keys.file.usable(keys.rows)
            self._keys = rows["key"]
            self._columns = [rows[name] for name in LOCATION]
        else:
            self._keys = list(keys)
            self._columns = list(locations_of(path, self._keys, with_crc32=False).T)
        self._has_crc32 = isinstance(keys, StoredKeys)

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, row: int) -> str:
        """The key of a sample."""
        return str(self._keys[row])

    def at(self, row: int) -> SampleLocation:
        """The location of a sample."""
        image_at, image_bytes, caption_at, caption_bytes, in_json, crc32 = (
            column[row].as_py() if self._has_crc32 else int(column[row]) for column in self._columns
        )
        suffix, crc32 = "json" if in_json else "txt", crc32 if self._has_crc32 else None
        image, caption = (image_at, image_bytes), (caption_at, caption_bytes)
        return SampleLocation(self._path, self._modified_ns, self.key(row), image, caption, suffix, crc32)

    def read_ahead(self) -> None:
        """Ask the system to read the file, in order, since samples are read in random order."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(_open(self._path, self._modified_ns).fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
