"""Shards: WebDataset tars of image-caption pairs, read in sequence and written reproducibly.

A sample is a run of members with the same key: an image, `.txt` (the caption) and `.json` (metadata).
`cliptex.data.shard_index` has the index, and reads single samples.
"""

import io
import json
import tarfile
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from cliptex.core import paths
from cliptex.core.errors import CliptexError
from cliptex.core.files import replacing

Value = TypeVar("Value")
IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp")


@dataclass(frozen=True)
class Pair:
    """One sample of a shard: encoded image, caption (None if missing), metadata."""

    key: str
    image: bytes | None
    caption: str | None
    metadata: dict[str, Any] = field(default_factory=dict)


def write_shard(path: Path, pairs: Iterable[Pair]) -> None:
    """Write a shard atomically; the same pairs give the same bytes."""

    def members(pair: Pair) -> Iterator[tuple[str, bytes]]:
        yield f"{pair.key}.jpg", pair.image
        yield f"{pair.key}.txt", pair.caption.encode()
        yield f"{pair.key}.json", json.dumps(pair.metadata).encode()

    write_tar(path, chain.from_iterable(map(members, pairs)))


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    """Write a tar of (file name, bytes) atomically; the same members give the same bytes."""
    with replacing(path) as scratch, tarfile.open(scratch, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def iterate_shard(path: Path) -> Iterator[Pair]:
    """Yield the samples of a shard in tar order, images encoded; one sample in memory at a time.

    Raises CliptexError, with the file and the remedy, if it is missing, truncated or not a tar, or if the members of a
    sample are not adjacent.
    """

    def content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
        data = tar.extractfile(member).read()
        if len(data) != member.size:
            raise tarfile.ReadError("unexpected end of data")
        return data

    return (to_pair(key, members) for key, members in samples(Path(path), content))


def samples(
    path: Path, value: Callable[[tarfile.TarFile, tarfile.TarInfo], Value]
) -> Iterator[tuple[str, dict[str, Value]]]:
    """Yield key and members of each sample, as lower-case suffix -> `value(tar, member)`. Errors as `iterate_shard`."""
    seen: set[str] = set()
    key, members = None, {}
    try:
        with tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # tarfile keeps every header that it has read
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
                            f"{path}: the key {name!r} has a line break; write the shard again with another key"
                        )
                    seen.add(name)
                    if members:
                        yield key, members
                    key, members = name, {}
                members[suffix.lower()] = value(tar, member)
            end = tar.offset
        # tarfile accepts a file cut off between two members; a complete tar ends with empty blocks
        with path.open("rb") as file:
            file.seek(end)
            if file.read(512) != b"\0" * 512:
                raise tarfile.ReadError("no end-of-archive mark")
    except FileNotFoundError as error:
        raise CliptexError(f"{path}: shard is missing; {remedy(path)}") from error
    except (tarfile.TarError, OSError, EOFError) as error:
        raise CliptexError(f"{path}: shard is truncated or not a tar ({error}); {remedy(path)}") from error
    if members:
        yield key, members


def remedy(path: Path) -> str:
    """How to replace a broken shard, for error messages."""
    if path.parent.resolve() != paths.SHARDS.resolve():
        return "replace it with a complete copy"
    index = f"{path.parent}/index.json {path.parent}/batch-*.json"
    return f"run: rm -f {path} {index}   and then the same command again"


def to_pair(key: str, members: dict[str, bytes]) -> Pair:
    """The sample of a key and its members (suffix -> content). Broken metadata count as none."""
    try:
        metadata = json.loads(members["json"]) if "json" in members else {}
    except ValueError:
        metadata = {}
    metadata = metadata if isinstance(metadata, dict) else {}
    image = members.get(image_suffix(members))
    caption = members["txt"].decode("utf-8", "replace") if "txt" in members else str(metadata.get("caption") or "")
    return Pair(key, image, caption.strip() or None, metadata)


def image_suffix(members: Container[str]) -> str | None:
    """The suffix of a sample's image; None if it has no image."""
    return next((suffix for suffix in IMAGE_SUFFIXES if suffix in members), None)


def read_shard(path: Path) -> list[Pair]:
    """All samples of a shard, sorted by key (img2dataset writes them in download order). Errors as `iterate_shard`."""
    return sorted(iterate_shard(path), key=lambda pair: pair.key)
