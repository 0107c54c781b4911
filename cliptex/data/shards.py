"""Shards: WebDataset tars of image-caption pairs, read in sequence and written reproducibly.

A sample is a run of members with the same key, by webdataset's rule: the key is the path up to the first dot of the
file name, the suffix what follows that dot. Members that are no part of a sample are counted, by reason.
`cliptex.data.shard_index` has the index, and reads single samples.
"""

import codecs
import io
import json
import os
import re
import stat
import tarfile
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from cliptex.core import paths
from cliptex.core.errors import CliptexError
from cliptex.core.files import replacing

IMAGE_SUFFIXES = (
    *("jpg", "jpeg", "png", "webp", "gif", "bmp", "jpe", "jfif", "tif", "tiff", "avif", "heic", "heif", "jxl"),
    *("jp2", "j2k", "jpx", "ppm", "pgm"),
)
KEY_AND_SUFFIX = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")
"""As `webdataset.tariterators.base_plus_ext`."""
METADATA = re.compile(r"__[^/]*__($|/)")
"""Members that `webdataset.tariterators.tar_file_iterator` skips."""
LITTER = ("thumbs.db", "desktop.ini")
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz"}
MAX_HEADER_BYTES = 1 << 20
"""Longest extended header of a member; Python's tarfile reads one into memory whatever length it claims."""
LONG_NUMBER = re.compile(rb"\d{300}")
"""Of which tarfile's search in an extended header takes quadratic time in some versions of Python."""
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
MAX_IMAGE_BYTES, MAX_TEXT_BYTES = 1 << 29, 1 << 23
"""Largest image, and largest caption or metadata, that is read."""


@dataclass(frozen=True)
class Pair:
    """One sample of a shard: encoded image, caption (None if missing), metadata, and why it cannot be used, if the
    reason is not in the image."""

    key: str
    image: bytes | None
    caption: str | None
    metadata: dict[str, Any] = field(default_factory=dict)
    problem: str | None = None


class Unusable(ValueError):
    """A sample cannot be used. The message is a short reason, the same for all such samples."""


class Sample(NamedTuple):
    """The members of a sample by lower-case suffix, as offset and number of bytes in the tar."""

    key: str
    members: dict[str, tuple[int, int]]
    problem: str | None
    """Why the sample cannot be used whatever its content."""


def write_shard(path: Path, pairs: Iterable[Pair]) -> None:
    """Write a shard atomically; the same pairs give the same bytes."""

    def members() -> Iterator[tuple[str, bytes]]:
        for pair in pairs:
            yield f"{pair.key}.jpg", pair.image
            yield f"{pair.key}.txt", pair.caption.encode()
            yield f"{pair.key}.json", json.dumps(pair.metadata).encode()

    write_tar(path, members())


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    """Write a tar of (`{key}.{suffix}`, bytes) atomically; the same members give the same bytes."""
    from webdataset.writer import TarWriter  # imports torch

    options = {"user": "", "group": "", "mode": 0o644, "mtime": 0, "encoder": False, "keep_meta": True}
    with replacing(path) as scratch, scratch.open("wb") as file, TarWriter(file, **options) as tar:
        for name, data in members:
            key, suffix = KEY_AND_SUFFIX.match(name).groups()
            tar.write({"__key__": key, suffix: data})


def iterate_shard(path: Path, ignored: Counter[str] | None = None) -> Iterator[Pair]:
    """Yield the samples of a shard in tar order, images encoded; one sample in memory at a time.

    Parameters and errors as `samples`.
    """
    with open_tar(Path(path)) as file:
        for sample in samples(file, ignored):
            yield read_pair(partial(read_member, file), *sample)


def open_tar(path: Path) -> io.FileIO:
    """Open a tar for `samples` and `read_pair`. Raises CliptexError if it is not a readable, uncompressed file."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a named pipe would wait for ever
            raise CliptexError(
                f"{path}: is a {'folder' if path.is_dir() else 'device or pipe'}; give the path of a tar"
            )
        file = _Headers(path)
    except FileNotFoundError as error:
        raise CliptexError(f"{path}: shard is missing; {remedy(path)}") from error
    except (OSError, ValueError) as error:  # ValueError: a zero character in the path
        reason = getattr(error, "strerror", error)
        raise CliptexError(f"{path}: cannot be read ({reason}); make it readable") from error
    return file


def compression(path: Path) -> str | None:
    """The compression of a file by its first bytes: gzip, bzip2 or xz; None if it is missing or not compressed."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        start = file.read(6)
    return next((name for magic, name in COMPRESSED.items() if start.startswith(magic)), None)


class _Headers(io.FileIO):
    """A file of which tarfile reads the headers only."""

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        data = super().read(size)
        if LONG_NUMBER.search(data):
            raise tarfile.ReadError("a long number in a header")
        return data


def samples(file: io.FileIO, ignored: Counter[str] | None = None) -> Iterator[Sample]:
    """Yield the samples of a tar of `open_tar` in order, from its headers.

    ignored: receives the number of members that belong to no sample, by reason. Raises CliptexError, with the file and
    the remedy, if it is truncated or not a tar, if it has two tars one after the other, if the members of a sample are
    not adjacent, or if a key has a line break.
    """
    ignored, path = Counter() if ignored is None else ignored, Path(file.name)
    seen: set[str] = set()
    key = sample = None
    for member in _members(file, path):
        name, found = member.name.rpartition("/")[2], KEY_AND_SUFFIX.match(member.name)
        if not member.isreg():
            ignored["link or device"] += 1
        elif METADATA.match(member.name):
            ignored["metadata (__name__)"] += 1
        elif name.startswith(".") or name.lower() in LITTER:
            ignored["hidden file"] += 1
        elif not found:
            ignored["no suffix"] += 1
        else:
            if found[1] != key:
                if sample:
                    yield sample
                key = found[1]
                if key in seen:
                    raise CliptexError(
                        f"{path}: the members of sample {key!r} are not adjacent; write the shard again with the"
                        " members of each sample one after the other (tar --sort=name)"
                    )
                if "\n" in key:
                    raise CliptexError(
                        f"{path}: the key {key!r} has a line break; write the shard again with another key"
                    )
                seen.add(key)
                text = key.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
                sample = Sample(text, {}, None if text == key else "name not UTF-8")
            suffix = found[2].lower()
            if suffix in sample.members:
                sample = sample._replace(problem="member twice")
                ignored["member twice"] += 1
            elif member.issparse():
                sample = sample._replace(problem="sparse member")
            sample.members.setdefault(suffix, (member.offset_data, member.size))
    if sample:
        yield sample


def _members(file: io.FileIO, path: Path) -> Iterator[tarfile.TarInfo]:
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape") as tar:
            start = -1
            while (member := tar.next()) is not None:
                tar.members.clear()  # tarfile keeps every header that it has read
                stored_end = member.offset_data if member.issparse() else member.offset_data + member.size
                if not start < member.offset < tar.offset or stored_end > size:
                    raise tarfile.ReadError("unexpected end of data")
                start = member.offset
                if not member.isdir():
                    yield member
        # tarfile accepts a file cut off between two members; a complete tar ends with empty blocks
        file.seek(tar.offset)
        if file.read(512) != b"\0" * 512:
            raise tarfile.ReadError("no end-of-archive mark")
        while block := file.read(MAX_HEADER_BYTES):
            if block.count(0) != len(block):
                raise CliptexError(
                    f"{path}: has data after the end of the tar, such as a second tar; give each tar a file of its own"
                )
    except (CliptexError, MemoryError):
        raise
    except OSError as error:
        raise CliptexError(f"{path}: cannot be read ({error}); check the disk") from error
    except Exception as error:  # of a damaged header, tarfile raises many kinds of errors
        if kind := compression(path):
            raise CliptexError(f"{path}: is compressed with {kind}; decompress it") from error
        raise CliptexError(f"{path}: shard is truncated or not a tar ({error}); {remedy(path)}") from error


def remedy(path: Path) -> str:
    """How to replace a broken shard, for error messages."""
    if path.parent.resolve() != paths.SHARDS.resolve():
        return "replace it with a complete copy"
    index = f"{path.parent}/index.json {path.parent}/batch-*.json"
    return f"run: rm -f {path} {index}   and then the same command again"


def image_suffix(members: Collection[str]) -> str:
    """The suffix of a sample's image. Raises Unusable unless there is exactly one."""
    images = [suffix for suffix in IMAGE_SUFFIXES if suffix in members]
    if len(images) == 1:
        return images[0]
    dotted = any(suffix.rpartition(".")[2] in IMAGE_SUFFIXES for suffix in members)
    raise Unusable("several images" if images else "dots in image name" if dotted else "no image")


def read_member(file: io.FileIO, offset: int, size: int) -> bytes:
    """The content of a member of an open tar. Raises CliptexError if it is truncated or cannot be read."""
    try:
        data = os.pread(file.fileno(), size, offset)
    except OSError as error:
        raise CliptexError(f"{file.name}: cannot be read ({error}); check the disk") from error
    if len(data) != size:
        raise CliptexError(f"{file.name}: shard is truncated; {remedy(Path(file.name))}")
    return data


def read_pair(
    read: Callable[[int, int], bytes], key: str, members: dict[str, tuple[int, int]], problem: str | None = None
) -> Pair:
    """Read a sample of `samples`: the image, then metadata and caption, by `read(offset, bytes)`. Broken metadata count
    as none, unless the caption should be in them. Raises what `read` does."""

    def content(suffix: str, limit: int) -> bytes:
        if members[suffix][1] > limit:
            raise Unusable("too many bytes")
        return read(*members[suffix])

    image, caption, metadata = None, None, {}
    try:
        if problem:
            raise Unusable(problem)
        image = content(image_suffix(members), MAX_IMAGE_BYTES)
        try:
            metadata = _metadata(content("json", MAX_TEXT_BYTES)) if "json" in members else {}
        except Unusable:
            if "txt" not in members:
                raise
        caption = _text(content("txt", MAX_TEXT_BYTES) if "txt" in members else metadata.get("caption"))
    except Unusable as error:
        problem = str(error)
    return Pair(key, image, caption, metadata, problem)


def _metadata(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Unusable("metadata not JSON") from error
    return value if isinstance(value, dict) else {}


def _text(caption: Any) -> str | None:
    """A caption: text, or UTF-8 or UTF-16 bytes, the latter with a byte order mark. Raises Unusable for all else."""
    try:
        if isinstance(caption, bytes):
            caption = caption.decode("utf-16" if caption.startswith(UTF_16) else "utf-8-sig")
        elif caption is not None:
            caption.encode()  # JSON can hold half a surrogate pair
        if "\0" in (caption or ""):
            raise ValueError("a zero character")
    except (ValueError, AttributeError) as error:
        raise Unusable("caption not text") from error
    return (caption or "").strip() or None


def read_shard(path: Path) -> list[Pair]:
    """All samples of a shard, sorted by key (img2dataset writes them in download order). Errors as `iterate_shard`."""
    return sorted(iterate_shard(path), key=lambda pair: pair.key)
