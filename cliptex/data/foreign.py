"""Tars of others as plain local files, which random access needs: opened as webdataset opens them, decompressed."""

import bz2
import gzip
import shutil
import zlib
from pathlib import Path

from cliptex.core.errors import CliptexError
from cliptex.core.files import replacing
from cliptex.data.shards import compression

BLOCK = 1 << 20
OPENERS = {"gzip": gzip.open, "bzip2": bz2.open}
MAX_RATIO, MIN_LIMIT = 100, 1 << 24
"""A tar is refused if it unpacks to more than this many times its size, and to more than so many bytes."""


def copy_tar(source: str, path: Path) -> None:
    """Write to `path` what `webdataset.gopen` reads from `source`, such as `pipe:aws s3 cp s3://bucket/a.tar -`.

    Raises CliptexError if the command fails.
    """
    from webdataset.gopen import gopen  # imports torch

    try:
        with replacing(path) as scratch, gopen(source) as stream, scratch.open("wb") as file:
            shutil.copyfileobj(stream, file, BLOCK)
    except OSError as error:
        raise CliptexError(f"dataset.shards: {source} cannot be read ({error}); correct the command") from error


def decompress(packed: Path, path: Path) -> None:
    """Decompress a tar, which may be `path` itself, to `path`. Raises CliptexError if it is damaged or a bomb."""
    kind = compression(packed)
    if packed != path and path.exists() and packed.samefile(path):
        raise CliptexError(f"{packed}: is compressed, and lies where the shards are written; move it elsewhere")
    if kind not in OPENERS:
        raise CliptexError(f"{packed}: is compressed with {kind}, which is not supported; decompress it")
    left = max(MAX_RATIO * packed.stat().st_size, MIN_LIMIT)
    try:
        with replacing(path) as scratch, OPENERS[kind](packed) as stream, scratch.open("wb") as file:
            while block := stream.read(BLOCK):
                left -= len(block)
                if left < 0:
                    raise CliptexError(
                        f"{packed}: unpacks to more than {MAX_RATIO} times its size; if you trust it, decompress it"
                    )
                file.write(block)
    except (EOFError, OSError, zlib.error) as error:
        raise CliptexError(f"{packed}: cannot be decompressed ({error}); replace it with a complete copy") from error
