"""Shards: WebDataset tars of image-caption pairs, and their index.

Reads   results/shards/{shard}.tar (or existing tars, source `webdataset`).
Writes  results/shards/{shard}.parquet: a row a sample, kept or dropped and why (sources `urls` and `webdataset`);
        results/shards/index.json, last: every shard's digest, keys and dropped samples by reason.
Holds   keys are unique over all shards and in order; a sample in the index has an image that decodes and a caption.
"""

import hashlib
import io
import json
import logging
import os
import tarfile
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cliptex.core import paths
from cliptex.core.errors import CliptexError
from cliptex.core.files import read_json, replacing, sha256_file, write_json
from cliptex.core.progress import track
from cliptex.data.images import BadImage, open_image, require_codecs
from cliptex.data.packed import Keys, Reasons, plain

log = logging.getLogger("cliptex")
Value = TypeVar("Value")
IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp")
MAX_REPEATS = 10
OK = "ok"
ROWS = pa.schema(
    {
        "key": pa.string(),
        "status": pa.string(),  # "ok" or the reason for which it is dropped
        "detail": pa.string(),  # the message behind the reason, where there is one
        "url": pa.string(),
        "sha256": pa.string(),  # of the stored image's bytes
        "width": pa.int32(),
        "height": pa.int32(),
    }
)
"""A shard's table: one row a sample, or a row of the list of urls."""


@dataclass(frozen=True)
class Pair:
    """One sample of a shard: encoded image, caption (None where it is missing), metadata."""

    key: str
    image: bytes | None
    caption: str | None
    metadata: dict[str, Any] = field(default_factory=dict)


def write_shard(path: Path, pairs: Iterable[Pair]) -> None:
    """Write a shard atomically; the same pairs give the same bytes."""
    write_tar(path, (member for pair in pairs for member in _members(pair)))


def _members(pair: Pair) -> Iterator[tuple[str, bytes]]:
    yield f"{pair.key}.jpg", pair.image
    yield f"{pair.key}.txt", pair.caption.encode()
    yield f"{pair.key}.json", json.dumps(pair.metadata).encode()


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    """Write a tar of (file name, bytes) atomically; the same members give the same bytes."""
    with replacing(path) as scratch, tarfile.open(scratch, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def iterate_shard(path: Path) -> Iterator[Pair]:
    """Every sample of a shard as it stands in the tar, images still encoded; one sample in memory at a time.

    Raises CliptexError, naming the file and the remedy, when it is missing, truncated, not a tar, or when the
    members of a sample are not adjacent.
    """

    def content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
        data = tar.extractfile(member).read()
        if len(data) != member.size:
            raise tarfile.ReadError("unexpected end of data")
        return data

    return (_pair(key, members) for key, members in _samples(Path(path), content))


def _samples(
    path: Path, value: Callable[[tarfile.TarFile, tarfile.TarInfo], Value]
) -> Iterator[tuple[str, dict[str, Value]]]:
    """Key and members of every sample: suffix in small letters -> what `value` says of the member."""
    seen: set[str] = set()
    key, members = None, {}
    try:
        with tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # tarfile remembers every header it has read
                if not member.isfile():
                    continue
                name, _, suffix = member.name.rpartition("/")[2].partition(".")
                if name != key:
                    if name in seen:
                        raise CliptexError(
                            f"{path}: the members of sample {name!r} are not adjacent; write the shard again"
                        )
                    if "\n" in name:
                        raise CliptexError(
                            f"{path}: the key {name!r} has a line break; write the shard again with another"
                        )
                    seen.add(name)
                    if members:
                        yield key, members
                    key, members = name, {}
                members[suffix.lower()] = value(tar, member)
            end = tar.offset
        # tarfile takes a cut between two members for the end; a whole tar ends with empty blocks
        with path.open("rb") as file:
            file.seek(end)
            if file.read(512) != b"\0" * 512:
                raise tarfile.ReadError("no end-of-archive mark")
    except FileNotFoundError as error:
        raise CliptexError(f"{path}: shard is missing; {_remedy(path)}") from error
    except (tarfile.TarError, OSError, EOFError) as error:
        raise CliptexError(f"{path}: shard is truncated or not a tar ({error}); {_remedy(path)}") from error
    if members:
        yield key, members


def _remedy(path: Path) -> str:
    if path.parent.resolve() != paths.SHARDS.resolve():
        return "put a whole one in its place"
    index = f"{path.parent}/index.json {path.parent}/batch-*.json"
    return f"run: rm -f {path} {index}   and then the same command again"


def _pair(key: str, members: dict[str, bytes]) -> Pair:
    try:
        metadata = json.loads(members["json"]) if "json" in members else {}
    except ValueError:
        metadata = {}
    metadata = metadata if isinstance(metadata, dict) else {}
    image = members.get(_image_suffix(members))
    caption = members["txt"].decode("utf-8", "replace") if "txt" in members else str(metadata.get("caption") or "")
    return Pair(key, image, caption.strip() or None, metadata)


def _image_suffix(members: Container[str]) -> str | None:
    return next((suffix for suffix in IMAGE_SUFFIXES if suffix in members), None)


def read_shard(path: Path) -> list[Pair]:
    """Every sample of a shard in the order of keys (img2dataset writes them as they arrive). As `iterate_shard`."""
    return sorted(iterate_shard(path), key=lambda pair: pair.key)


def verify_shard(path: Path) -> pa.Table:
    """Read every sample of a shard once and decode its image; the rows (`ROWS`), in the order of keys."""
    rows = []
    for pair in iterate_shard(path):
        status, size = _judge(pair)
        if status != OK:
            log.warning("%s: %s dropped: %s", path, pair.key, status)
        digest = hashlib.sha256(pair.image).hexdigest() if pair.image else None
        url = pair.metadata.get("url")
        rows.append((pair.key, status, None, str(url) if url else None, digest, *size))
    rows.sort(key=lambda row: row[0])
    columns = list(zip(*rows, strict=True)) or [()] * len(ROWS)
    return pa.table([pa.array(column, kind.type) for column, kind in zip(columns, ROWS, strict=True)], schema=ROWS)


def _judge(pair: Pair) -> tuple[str, tuple[int | None, int | None]]:
    """Status of a sample, and width and height of its image."""
    if pair.image is None:
        return "no image", (None, None)
    try:
        size = open_image(pair.image).size
    except BadImage as error:
        return str(error), (None, None)
    return (OK if pair.caption else "no caption"), size


def describe_shard(number: int, path: Path) -> dict[str, Any]:
    """Identity of a shard: `shard` (5 digits), `path`, `sha256`, `bytes`."""
    return {
        "shard": f"{number:05d}",
        "path": str(path),
        "sha256": sha256_file(path),
        "bytes": Path(path).stat().st_size,
    }


def write_rows(path: Path, rows: pa.Table, shard: dict[str, Any]) -> None:
    """Write a shard's table; `shard` goes into its metadata under `cliptex`."""
    with replacing(path) as scratch:
        pq.write_table(rows.replace_schema_metadata({"cliptex": json.dumps(shard)}), scratch, compression="zstd")


def read_rows(path: Path) -> tuple[dict[str, Any], pa.Table]:
    """What `write_rows` wrote: the shard's description and its rows."""
    try:
        table = pq.read_table(path)
        return json.loads(table.schema.metadata[b"cliptex"]), table
    except (OSError, ValueError, KeyError, TypeError) as error:
        folder = Path(path).parent
        raise CliptexError(
            f"{path}: cannot be read ({error}); run: rm -f {path} {folder}/index.json {folder}/batch-*.json   and then"
            " the same command again"
        ) from error


def index_shards(shards: list[Path], index: Path, min_yield: float, max_repeats: int = MAX_REPEATS) -> dict[str, Any]:
    """Read every sample of every shard once and write the index; see `write_index`.

    Raises CliptexError for an unreadable shard, and as `write_index` does.
    """
    require_codecs()

    def verified() -> Iterator[tuple[dict[str, Any], pa.Table]]:
        for number, path in enumerate(track(shards, "index shards")):
            rows = verify_shard(path)
            yield describe_shard(number, path), rows

    return write_index(verified(), index, min_yield, max_repeats)


def write_index(
    shards: Iterable[tuple[dict[str, Any], pa.Table]], index: Path, min_yield: float, max_repeats: int = MAX_REPEATS
) -> dict[str, Any]:
    """Write the index of shards given by their descriptions and rows, in order.

    The index holds `shards` (a list of {shard, path, sha256, bytes, keys, dropped: {key: reason}}), `num_samples`
    (usable), `dropped` (reason -> count) and `repeated` (SHA-256 -> count of images seen more than `max_repeats`
    times, all of which are dropped as "repeated image": servers answer with one picture for everything that is gone).
    Raises CliptexError for a key seen twice, or a share of usable samples below `min_yield`, with the most common
    reasons.
    """
    entries: list[dict[str, Any]] = []
    digests, hashes = [], []  # of images and of keys; millions of pairs fit into memory
    for description, rows in shards:
        keys, statuses = rows["key"].to_pylist(), rows["status"].to_pylist()
        hashes.append(np.fromiter(map(hash, keys), np.int64, len(keys)))
        if len(set(keys)) < len(keys):
            (twice, _), *_ = Counter(keys).most_common(1)
            raise _not_unique(description["path"], twice, description["path"])
        good = [number for number, status in enumerate(statuses) if status == OK]
        dropped = {key: status for key, status in zip(keys, statuses, strict=True) if status != OK}
        found = bytes.fromhex("".join(rows["sha256"].take(pa.array(good, pa.int64())).to_pylist()))
        digests.append(np.frombuffer(found, np.uint8).reshape(-1, 32))
        description = {name: description[name] for name in ("shard", "path", "sha256", "bytes")}
        entries.append({**description, "keys": Keys(keys[number] for number in good), "dropped": Reasons(dropped)})
    _require_unique(entries, hashes)
    suspects = _frequent(digests, max_repeats)
    repeated: Counter[str] = Counter()
    for entry, found in zip(entries, digests, strict=True) if suspects else ():
        bad = {number for number, value in enumerate(_short(found).tolist()) if value in suspects}
        repeated.update(found[number].tobytes().hex() for number in sorted(bad))
        keys = list(entry["keys"])
        entry["keys"] = Keys(key for number, key in enumerate(keys) if number not in bad)
        dropped = dict.fromkeys(sorted(keys[number] for number in bad), "repeated image")
        entry["dropped"] = Reasons({**entry["dropped"], **dropped})
    reasons = Counter(reason for entry in entries for reason in entry["dropped"].values())
    usable = sum(len(entry["keys"]) for entry in entries)
    require_yield(usable, reasons, min_yield)
    out = {
        "schema_version": 1,
        "num_samples": usable,
        "dropped": dict(reasons.most_common()),
        "repeated": dict(repeated.most_common()),
        "shards": entries,
    }
    write_json(index, out, plain)
    return out


def _require_unique(entries: list[dict[str, Any]], hashes: list[np.ndarray]) -> None:
    """Raise CliptexError where a key occurs twice. hashes: those of each shard's keys."""
    every = np.sort(np.concatenate(hashes)) if hashes else np.zeros(0, np.int64)
    suspects = set(every[1:][every[1:] == every[:-1]].tolist())
    seen: dict[str, str] = {}
    for entry, found in zip(entries, hashes, strict=True) if suspects else ():
        if suspects.isdisjoint(found.tolist()):
            continue
        for key in sorted([*entry["keys"], *entry["dropped"]]):
            if key in seen:
                raise _not_unique(entry["path"], key, seen[key])
            if hash(key) in suspects:
                seen[key] = entry["path"]


def _not_unique(path: str, key: str, other: str) -> CliptexError:
    return CliptexError(f"{path}: key {key!r} is also in {other}; keys must be unique over all shards")


def _short(digests: np.ndarray) -> np.ndarray:
    """The first 64 bits of SHA-256 digests [N, 32], enough to find what may be repeated."""
    return np.ascontiguousarray(digests[:, :8]).view(np.uint64)[:, 0]


def _frequent(digests: list[np.ndarray], max_repeats: int) -> set[int]:
    """Short forms of the digests that occur more than `max_repeats` times."""
    every = np.sort(np.concatenate([_short(found) for found in digests])) if digests else np.zeros(0, np.uint64)
    return set(every[max_repeats:][every[max_repeats:] == every[: max(len(every) - max_repeats, 0)]].tolist())


def require_yield(usable: int, reasons: Counter[str], min_yield: float, what: str = "") -> None:
    """Raise CliptexError, with the three most common reasons, where too small a share is usable."""
    total = usable + sum(reasons.values())
    if not total or usable / total < min_yield:
        common = ", ".join(f"{reason}: {count}" for reason, count in reasons.most_common(3)) or "no samples at all"
        raise CliptexError(
            f"{what}only {usable} of {total} samples are usable, below dataset.min_yield = {min_yield} ({common});"
            " mend the cause, or set dataset.min_yield lower"
        )


def read_index(index: Path) -> dict[str, Any]:
    """The shard index; see `write_index`. Keys and reasons stay packed, see `cliptex.data.packed`."""

    def packed(item: dict[str, Any]) -> dict[str, Any]:
        if "keys" in item and "dropped" in item:  # an entry, made smaller before the next one is read
            item |= {"keys": Keys(item["keys"]), "dropped": Reasons(item["dropped"])}
        return item

    return read_json(index, packed)


def read_indexed(entry: dict[str, Any]) -> list[Pair]:
    """The usable samples of one shard of the index, in the order of keys.

    Raises CliptexError when the shard is not what was indexed.
    """
    path = Path(entry["path"])
    if path.exists():
        check_indexed(entry)
    wanted = set(entry["keys"])
    pairs = [pair for pair in read_shard(path) if pair.key in wanted]
    if [pair.key for pair in pairs] != entry["keys"]:
        raise CliptexError(f"{path}: keys differ from the index; {index_again()}")
    return pairs


@dataclass(frozen=True)
class Place:
    """Where a sample lies: first byte and number of bytes of its image and of its caption in a shard's file.

    path: absolute. written: when the file was, in nanoseconds.
    """

    path: str
    written: int
    key: str
    image: tuple[int, int]
    caption: tuple[int, int]
    captioned_in: str
    """`txt`, or `json` for a caption in the metadata."""

    def read(self) -> Pair:
        """The sample, without its metadata where the caption has a member of its own.

        Raises CliptexError when the file has become shorter, or cannot be read.
        """
        try:
            file = _opened(self.path, self.written).fileno()
            image, caption = (os.pread(file, size, start) for start, size in (self.image, self.caption))
        except OSError as error:
            raise CliptexError(f"{self.path}: cannot be read ({error}); {_remedy(Path(self.path))}") from error
        if (len(image), len(caption)) != (self.image[1], self.caption[1]):
            raise CliptexError(f"{self.path}: shard is truncated; {_remedy(Path(self.path))}")
        return _pair(self.key, {IMAGE_SUFFIXES[0]: image, self.captioned_in: caption})


@lru_cache(maxsize=256)
def _opened(path: str, written: int) -> io.FileIO:
    return io.FileIO(path)


class Places:
    """Where the usable samples of a shard of the index lie, in the order of keys; 25 bytes a sample in memory.

    Reads the tar's headers once. Raises CliptexError when the shard is not what was indexed.
    """

    def __init__(self, entry: dict[str, Any]):
        check_indexed(entry)
        path = Path(entry["path"]).absolute()
        self._path, self._written, self._count = str(path), path.stat().st_mtime_ns, len(entry["keys"])
        found = {}
        for key, members in _samples(path, lambda _, member: (member.offset_data, member.size)):
            image, text = _image_suffix(members), "txt" if "txt" in members else "json"
            found[key] = (*members.get(image, (0, 0)), *members.get(text, (0, 0)), text == "json")
        if missing := next((key for key in entry["keys"] if key not in found), None):
            raise CliptexError(f"{self._path}: key {missing!r} of the index is not there; {index_again()}")
        rows = np.array([found[key] for key in entry["keys"]], np.int64).reshape(-1, 5)
        self._starts, self._sizes = rows[:, 0:4:2].copy(), rows[:, 1:4:2].astype(np.uint32)
        self._in_json = rows[:, 4] > 0

    def __len__(self) -> int:
        return self._count

    def at(self, row: int, key: str) -> Place:
        """The place of a sample by its number among the keys, and its key."""
        image, caption = zip(self._starts[row].tolist(), self._sizes[row].tolist(), strict=True)
        return Place(self._path, self._written, key, image, caption, "json" if self._in_json[row] else "txt")

    def will_be_read(self) -> None:
        """Have the system read the file ahead, in order, while samples are taken from anywhere in it."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(_opened(self._path, self._written).fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


def check_indexed(entry: dict[str, Any]) -> None:
    """Raise CliptexError when a shard of the index is missing, of another size, or begins with another sample.

    No more of it is read; all its headers are when it is drawn from, see `Places`.
    """
    path = Path(entry["path"])
    if not path.exists():
        raise CliptexError(f"{path}: shard is missing; {_remedy(path)}")
    if path.stat().st_size != entry["bytes"]:
        raise CliptexError(f"{path}: size differs from the index; {index_again()}")
    first = next((key for key, _ in _samples(path, lambda *_: None)), None)
    if first is not None and first not in entry["keys"] and first not in entry["dropped"]:
        raise CliptexError(f"{path}: its first key, {first!r}, is not in the index; {index_again()}")


def index_again() -> str:
    """The command that has the shards looked at anew, for errors."""
    return f"run: rm -f {paths.SHARD_INDEX} {paths.SHARDS}/batch-*.json   and then the same command again"
