"""The shard index: which samples of which shards are usable, checked once and recorded with the shards' digests.

Reads   results/shards/{shard}.tar (or existing tars, source `webdataset`).
Writes  results/shards/{shard}.parquet (sources `urls` and `webdataset`): one row per sample, with the reason if it is
        dropped; results/shards/index.json, last: each shard's digest, keys, and dropped samples with the reason.
Holds   keys are unique over all shards and in order; each sample in the index has a caption and an image that decodes.

Single samples are read by byte offsets from the tars' headers, which are read once.
"""

import hashlib
import io
import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cliptex.core import paths
from cliptex.core.errors import CliptexError, working_on
from cliptex.core.files import read_checked, read_error, replacing, require_file, sha256_file, write_json
from cliptex.core.progress import track
from cliptex.core.redact import without_credentials
from cliptex.data.images import BadImage, open_image, require_codecs
from cliptex.data.packed import Keys, Reasons, plain
from cliptex.data.shards import (
    IMAGE_SUFFIXES,
    Pair,
    Unusable,
    image_suffix,
    iterate_shard,
    open_tar,
    read_pair,
    read_shard,
    samples,
)

log = logging.getLogger("cliptex")
MAX_REPEATS = 10
OK, NO_IMAGE = "ok", "no image"
TABLE_SCHEMA = pa.schema(
    {
        "key": pa.string(),
        "status": pa.string(),  # "ok", or the reason why it is dropped
        "detail": pa.string(),  # the original message of the reason, if any
        "url": pa.string(),
        "sha256": pa.string(),  # of the stored image's bytes
        "width": pa.int32(),
        "height": pa.int32(),
    }
)
"""A shard's table: one row per sample, or per row of the URL list."""


def verify_shard(path: Path, ignored: Counter[str] | None = None) -> pa.Table:
    """Read every sample of a shard once and decode its image. Returns the table (`TABLE_SCHEMA`), sorted by key.

    ignored: as of `cliptex.data.shards.samples`.
    """
    rows, ignored = [], Counter() if ignored is None else ignored
    for pair in iterate_shard(path, ignored):
        with working_on(f"{path}: {pair.key}"):
            status, size = pair.problem or (OK if pair.caption else "no caption"), (None, None)
            try:
                if pair.image is not None:
                    size = open_image(pair.image).size
            except BadImage as error:
                status = str(error)
            if status != OK:
                log.warning("%s: %s dropped: %s", path, pair.key, status)
            digest = hashlib.sha256(pair.image).hexdigest() if pair.image else None
            url = without_credentials(str(pair.metadata.get("url") or "")).encode("utf-8", "replace").decode() or None
            rows.append((pair.key, status, None, url, digest, *size))
    for reason, count in ignored.items():
        log.warning("%s: %d members belong to no sample: %s", path, count, reason)
    return to_table(sorted(rows, key=lambda row: row[0]))


def to_table(rows: list[tuple]) -> pa.Table:
    """Rows with one value per column of `TABLE_SCHEMA` as a table."""
    columns = list(zip(*rows, strict=True)) or [()] * len(TABLE_SCHEMA)
    arrays = [pa.array(column, kind.type) for column, kind in zip(columns, TABLE_SCHEMA, strict=True)]
    return pa.table(arrays, schema=TABLE_SCHEMA)


def describe_shard(number: int, path: Path, ignored: Mapping[str, int] = MappingProxyType({})) -> dict[str, Any]:
    """Identity of a shard: `shard` (5 digits), `path`, `sha256`, `bytes`; and `ignored`, if there are such members."""
    described = {"shard": f"{number:05d}", "path": str(path), "sha256": sha256_file(path), "bytes": path.stat().st_size}
    return described | ({"ignored": dict(ignored)} if ignored else {})


def write_shard_table(path: Path, rows: pa.Table, shard: dict[str, Any]) -> None:
    """Write a shard's table, with its description `shard` as Parquet metadata under `cliptex`."""
    with replacing(path) as scratch:
        pq.write_table(rows.replace_schema_metadata({"cliptex": json.dumps(shard)}), scratch, compression="zstd")


def read_shard_table(path: Path) -> tuple[dict[str, Any], pa.Table]:
    """Read the file that `write_shard_table` wrote: the shard's description and its rows."""
    require_file(path)
    try:
        table = pq.read_table(path)
        return json.loads(table.schema.metadata[b"cliptex"]), table
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        files = f"{path} {path.parent}/index.json {path.parent}/batch-*.json"
        redo = f"run: rm -f {files}   and then the same command again"
        raise read_error(error, path, "a shard's table", redo) from error


def index_shards(
    shards: list[Path],
    index: Path,
    min_yield: float,
    max_repeats: int = MAX_REPEATS,
    data_sha256: str | None = None,
) -> dict[str, Any]:
    """Read every sample of every shard once and write the index. Raises CliptexError for an unreadable shard, and as
    `write_index` does."""
    require_codecs()

    def verified() -> Iterator[tuple[dict[str, Any], pa.Table]]:
        for number, path in enumerate(track(shards, "index shards")):
            ignored = Counter()
            with working_on(path):
                described = verify_shard(path, ignored), describe_shard(number, path, ignored)
            yield described[::-1]

    return write_index(verified(), index, min_yield, max_repeats, data_sha256)


def write_index(
    shards: Iterable[tuple[dict[str, Any], pa.Table]],
    index: Path,
    min_yield: float,
    max_repeats: int = MAX_REPEATS,
    data_sha256: str | None = None,
) -> dict[str, Any]:
    """Write the index. shards: descriptions and rows of all shards, in order. data_sha256: see `shard_paths`.

    The index holds `shards` (a list of {shard, path, sha256, bytes, keys, dropped: {key: reason}}, and `ignored` where
    members belong to no sample), `num_samples` (usable), `dropped` (reason -> count) and `repeated` (SHA-256 -> count).
    Images that occur more than `max_repeats` times are all dropped as "repeated image", since servers replace deleted
    images with a placeholder. Raises CliptexError for duplicate keys, or if the share of usable samples is below
    `min_yield`, with the most common reasons.
    """
    entries: list[dict[str, Any]] = []
    digests, hashes, counts = [], [], []  # digests and hashes in arrays, so that millions of pairs fit in memory
    for description, rows in shards:
        keys, statuses = rows["key"].to_pylist(), rows["status"].to_pylist()
        named = (hash(key) for key, status in zip(keys, statuses, strict=True) if status != NO_IMAGE)
        hashes.append(np.fromiter(named, np.int64))
        counts.append(len(keys))
        if len(set(keys)) < len(keys):
            (duplicate, _), *_ = Counter(keys).most_common(1)
            raise _duplicate_key(description["path"], duplicate, description["path"])
        usable_rows = [number for number, status in enumerate(statuses) if status == OK]
        dropped = {key: status for key, status in zip(keys, statuses, strict=True) if status != OK}
        image_digests = bytes.fromhex("".join(rows["sha256"].take(pa.array(usable_rows, pa.int64())).to_pylist()))
        digests.append(np.frombuffer(image_digests, np.uint8).reshape(-1, 32))
        names = ("shard", "path", "sha256", "bytes", "ignored")
        entry = {name: description[name] for name in names if name in description}
        entries.append({**entry, "keys": Keys(keys[number] for number in usable_rows), "dropped": Reasons(dropped)})
    _require_unique(entries, hashes)
    frequent = _frequent(digests, max_repeats)
    repeated: Counter[str] = Counter()
    for entry, image_digests in zip(entries, digests, strict=True) if frequent else ():
        placeholders = {n for n, value in enumerate(_short(image_digests).tolist()) if value in frequent}
        repeated.update(image_digests[number].tobytes().hex() for number in sorted(placeholders))
        keys = list(entry["keys"])
        entry["keys"] = Keys(key for number, key in enumerate(keys) if number not in placeholders)
        dropped = dict.fromkeys(sorted(keys[number] for number in placeholders), "repeated image")
        entry["dropped"] = Reasons({**entry["dropped"], **dropped})
    for entry, count in zip(entries, counts, strict=True):
        accounted = len(entry["keys"]) + len(entry["dropped"])
        if accounted != count:
            raise RuntimeError(f"{entry['path']}: {accounted} of {count} samples are usable or dropped")
    reasons = Counter(reason for entry in entries for reason in entry["dropped"].values())
    num_usable = sum(len(entry["keys"]) for entry in entries)
    require_yield(num_usable, reasons, min_yield)
    out = {
        "schema_version": 1,
        "data_sha256": data_sha256,
        "num_samples": num_usable,
        "dropped": dict(reasons.most_common()),
        "repeated": dict(repeated.most_common()),
        "shards": entries,
    }
    write_json(index, out, plain)
    return out


def _require_unique(entries: list[dict[str, Any]], hashes: list[np.ndarray]) -> None:
    """Raise CliptexError if a key occurs twice. hashes: of the keys, one array per shard. Samples without an image do
    not matter: many tars have a README of their own."""
    all_hashes = np.sort(np.concatenate(hashes)) if hashes else np.zeros(0, np.int64)
    suspects = set(all_hashes[1:][all_hashes[1:] == all_hashes[:-1]].tolist())  # equal keys, or a hash collision
    seen: dict[str, str] = {}
    for entry, key_hashes in zip(entries, hashes, strict=True) if suspects else ():
        if suspects.isdisjoint(key_hashes.tolist()):
            continue
        dropped = (key for key, reason in entry["dropped"].items() if reason != NO_IMAGE)
        for key in sorted([*entry["keys"], *dropped]):
            if key in seen:
                raise _duplicate_key(entry["path"], key, seen[key])
            if hash(key) in suspects:
                seen[key] = entry["path"]


def _duplicate_key(path: str, key: str, other: str) -> CliptexError:
    return CliptexError(f"{path}: key {key!r} is also in {other}; keys must be unique over all shards")


def _short(digests: np.ndarray) -> np.ndarray:
    """The first 64 bits of SHA-256 digests [N, 32], enough to find repeated images."""
    return np.ascontiguousarray(digests[:, :8]).view(np.uint64)[:, 0]


def _frequent(digests: list[np.ndarray], max_repeats: int) -> set[int]:
    """Short forms (`_short`) of the digests that occur more than `max_repeats` times."""
    short = np.sort(np.concatenate([_short(part) for part in digests])) if digests else np.zeros(0, np.uint64)
    return set(short[max_repeats:][short[max_repeats:] == short[: max(len(short) - max_repeats, 0)]].tolist())


def require_yield(usable: int, reasons: Counter[str], min_yield: float, prefix: str = "") -> None:
    """Raise CliptexError, which begins with `prefix` and has the three most common reasons, if the share of usable
    samples is below `min_yield`."""
    total = usable + sum(reasons.values())
    if not total or usable / total < min_yield:
        common = ", ".join(f"{reason}: {count}" for reason, count in reasons.most_common(3)) or "no samples at all"
        raise CliptexError(
            f"{prefix}only {usable} of {total} samples are usable, below dataset.min_yield = {min_yield} ({common});"
            " fix the cause, or lower dataset.min_yield"
        )


def read_index(index: Path) -> dict[str, Any]:
    """Read the shard index; see `write_index`. Keys and reasons are packed, see `cliptex.data.packed`."""

    def pack(item: dict[str, Any]) -> dict[str, Any]:
        if "keys" in item and "dropped" in item:  # a shard, packed before the next one is parsed
            item |= {"keys": Keys(item["keys"]), "dropped": Reasons(item["dropped"])}
        return item

    entry = {"shard": str, "path": str, "bytes": int, "sha256": str, "keys": Keys, "dropped": Reasons}
    return read_checked(index, {"shards": [entry]}, pack)


def read_indexed(entry: dict[str, Any]) -> list[Pair]:
    """Read the usable samples of an indexed shard, sorted by key. Raises CliptexError if it differs from the index."""
    path = Path(entry["path"])
    check_indexed(entry)
    keys = set(entry["keys"])
    pairs = [pair for pair in read_shard(path) if pair.key in keys]
    if [pair.key for pair in pairs] != entry["keys"]:
        raise CliptexError(f"{path}: keys differ from the index; {reindex_command()}")
    return pairs


def check_indexed(entry: dict[str, Any]) -> None:
    """Raise CliptexError if an indexed shard is missing, or its size or first sample differs from the index. The
    remaining headers are only read when samples are, by `ShardOffsets`."""
    path = Path(entry["path"])
    with open_tar(path) as file:
        if path.stat().st_size != entry["bytes"]:
            raise CliptexError(f"{path}: size differs from the index; {reindex_command()}")
        first = next(samples(file), None)
    if first and first.key not in entry["keys"] and first.key not in entry["dropped"]:
        raise CliptexError(f"{path}: its first key, {first.key!r}, is not in the index; {reindex_command()}")


def reindex_command() -> str:
    """The command that checks and indexes the shards again, for error messages."""
    return f"run: rm -f {paths.SHARD_INDEX} {paths.SHARDS}/batch-*.json   and then the same command again"


@dataclass(frozen=True)
class SampleLocation:
    """The byte ranges of a sample's image and caption in a shard's file."""

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

    def read(self) -> Pair:
        """Read the sample, with metadata only if the caption is part of them. Raises CliptexError if the file is
        truncated or cannot be read."""
        members = {IMAGE_SUFFIXES[0]: self.image, self.caption_suffix: self.caption}
        return read_pair(_open(self.path, self.modified_ns), self.key, members)


@lru_cache(maxsize=256)
def _open(path: str, modified_ns: int) -> io.FileIO:
    """The open file; modified_ns only distinguishes cache entries."""
    return open_tar(Path(path))


class ShardOffsets:
    """The locations of a shard's usable samples, in the order of keys; 25 bytes per sample in memory.

    Reads the tar's headers once. Raises CliptexError if the shard differs from the index.
    """

    def __init__(self, entry: dict[str, Any]):
        check_indexed(entry)
        path = Path(entry["path"]).absolute()
        self._path, self._modified_ns, self._count = str(path), path.stat().st_mtime_ns, len(entry["keys"])
        keys, locations = set(entry["keys"]), {}
        with open_tar(path) as file, suppress(Unusable, KeyError):  # the shard was usable when it was indexed
            for key, members, _ in samples(file):
                if key in keys:
                    text = "txt" if "txt" in members else "json"
                    locations[key] = (*members[image_suffix(members)], *members[text], text == "json")
        if missing := next((key for key in entry["keys"] if key not in locations), None):
            raise CliptexError(f"{self._path}: has no key {missing!r}, which is in the index; {reindex_command()}")
        rows = np.array([locations[key] for key in entry["keys"]], np.int64).reshape(-1, 5)
        self._offsets, self._sizes = rows[:, 0:4:2].copy(), rows[:, 1:4:2].astype(np.uint32)
        self._in_json = rows[:, 4] > 0

    def __len__(self) -> int:
        return self._count

    def at(self, row: int, key: str) -> SampleLocation:
        """The location of a sample, given its position among the keys and its key."""
        image, caption = zip(self._offsets[row].tolist(), self._sizes[row].tolist(), strict=True)
        suffix = "json" if self._in_json[row] else "txt"
        return SampleLocation(self._path, self._modified_ns, key, image, caption, suffix)

    def prefetch(self) -> None:
        """Ask the system to read the file ahead, in order, since samples are read in random order."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(_open(self._path, self._modified_ns).fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
