"""Shards: WebDataset tars of image-caption pairs, and their index.

Reads   results/shards/{shard}.tar (or existing tars, source `webdataset`).
Writes  results/shards/index.json, last: every shard's digest, keys and dropped samples by reason.
Holds   keys are unique over all shards and in order; a sample in the index has an image that decodes and a caption.
"""

import io
import json
import logging
import tarfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cliptex.errors import CliptexError
from cliptex.files import read_json, replacing, sha256_file, write_json
from cliptex.images import BadImage, decode_image
from cliptex.progress import track

log = logging.getLogger("cliptex")
IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")


@dataclass(frozen=True)
class Pair:
    """One sample of a shard: encoded image, caption (None where it is missing), metadata."""

    key: str
    image: bytes | None
    caption: str | None
    metadata: dict[str, Any] = field(default_factory=dict)


def write_shard(path: Path, pairs: Iterable[Pair]) -> None:
    """Write a shard atomically; the same pairs give the same bytes."""
    with replacing(path) as scratch, tarfile.open(scratch, "w", format=tarfile.USTAR_FORMAT) as tar:
        for pair in pairs:
            members = {"jpg": pair.image, "txt": pair.caption.encode(), "json": json.dumps(pair.metadata).encode()}
            for suffix, data in members.items():
                info = tarfile.TarInfo(f"{pair.key}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def read_shard(path: Path) -> list[Pair]:
    """Every sample of a shard, in order, images still encoded.

    Raises CliptexError, naming the file and the remedy, when it is missing, truncated, not a tar, or when the
    members of a sample are not adjacent.
    """
    path = Path(path)
    samples: dict[str, dict[str, bytes]] = {}
    last = None
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                key, _, suffix = member.name.rpartition("/")[2].partition(".")
                if key != last and key in samples:
                    raise CliptexError(f"{path}: the members of sample {key!r} are not adjacent; write the shard again")
                last = key
                data = tar.extractfile(member).read()
                if len(data) != member.size:
                    raise tarfile.ReadError("unexpected end of data")
                samples.setdefault(key, {})[suffix.lower()] = data
            end = tar.offset
        # tarfile takes a cut between two members for the end; a whole tar ends with empty blocks
        with path.open("rb") as file:
            file.seek(end)
            if file.read(512) != b"\0" * 512:
                raise tarfile.ReadError("no end-of-archive mark")
    except FileNotFoundError as error:
        raise CliptexError(
            f"{path}: shard is missing; run: rm -f {path.parent}/index.json   and then the same command again"
        ) from error
    except (tarfile.TarError, OSError, EOFError) as error:
        raise CliptexError(
            f"{path}: shard is truncated or not a tar ({error}); run: rm -f {path} {path.parent}/index.json   and then"
            " the same command again"
        ) from error
    pairs = []
    for key, members in samples.items():
        image = next((members[suffix] for suffix in IMAGE_SUFFIXES if suffix in members), None)
        caption = members["txt"].decode("utf-8", "replace").strip() if "txt" in members else None
        try:
            metadata = json.loads(members["json"]) if "json" in members else {}
        except ValueError:
            metadata = {}
        pairs.append(Pair(key, image, caption or None, metadata))
    return pairs


def index_shards(shards: list[Path], index: Path, min_yield: float) -> dict[str, Any]:
    """Read every sample of every shard once and write the index.

    The index holds `shards` (a list of {shard, path, sha256, bytes, keys, dropped: {key: reason}}), `num_samples`,
    `dropped` (reason -> count). Raises CliptexError for an unreadable shard, a key seen twice, or a share of usable
    samples below `min_yield`, with the most common reasons.
    """
    entries, reasons, seen = [], Counter(), {}
    for number, path in enumerate(track(shards, "index shards")):
        keys, dropped = [], {}
        for pair in read_shard(path):
            if pair.key in seen:
                raise CliptexError(f"{path}: key {pair.key!r} is also in {seen[pair.key]}; keys must be unique")
            seen[pair.key] = path
            reason = _reason_to_drop(pair)
            if reason:
                dropped[pair.key] = reason
                reasons[reason] += 1
                log.warning("%s: %s dropped: %s", path, pair.key, reason)
            else:
                keys.append(pair.key)
        if keys != sorted(keys):
            raise CliptexError(f"{path}: keys are not in order; write the shard again with its samples sorted by key")
        entries.append(
            {
                "shard": f"{number:05d}",
                "path": str(path),
                "sha256": sha256_file(path),
                "bytes": path.stat().st_size,
                "keys": keys,
                "dropped": dropped,
            }
        )
    usable = sum(len(entry["keys"]) for entry in entries)
    if not seen or usable / len(seen) < min_yield:
        common = ", ".join(f"{reason}: {count}" for reason, count in reasons.most_common(3)) or "no samples at all"
        raise CliptexError(f"only {usable} of {len(seen)} samples are usable, below dataset.min_yield ({common})")
    out = {"schema_version": 1, "num_samples": usable, "dropped": dict(reasons), "shards": entries}
    write_json(index, out)
    return out


def _reason_to_drop(pair: Pair) -> str | None:
    if pair.image is None:
        return "no image"
    if pair.caption is None:
        return "no caption"
    try:
        decode_image(pair.image)
    except BadImage as error:
        return str(error)
    return None


def read_index(index: Path) -> dict[str, Any]:
    """The shard index; see `index_shards`."""
    return read_json(index)


def read_indexed(entry: dict[str, Any]) -> list[Pair]:
    """The usable samples of one shard of the index. Raises CliptexError when the shard is not what was indexed."""
    path = Path(entry["path"])
    if path.exists() and path.stat().st_size != entry["bytes"]:
        raise CliptexError(f"{path}: size differs from the index; delete {path.parent}/index.json to index again")
    wanted = set(entry["keys"])
    pairs = [pair for pair in read_shard(path) if pair.key in wanted]
    if [pair.key for pair in pairs] != entry["keys"]:
        raise CliptexError(f"{path}: keys differ from the index; delete {path.parent}/index.json to index again")
    return pairs
