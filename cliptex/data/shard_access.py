"""Random access to the samples of indexed shards: byte offsets from the tar headers, then one read per member."""

import io
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from cliptex.core.errors import CliptexError
from cliptex.data.shard_index import check_indexed, reindex_command
from cliptex.data.shards import IMAGE_SUFFIXES, Pair, image_suffix, remedy, samples, to_pair


@dataclass(frozen=True)
class SampleLocation:
    """The byte ranges of a sample's image and caption in a shard's file."""

    path: str
    """Absolute path of the shard."""
    modified_ns: int
    """Modification time of the file, so that a replaced file is opened again."""
    key: str
    image: tuple[int, int]
    """Offset and number of bytes."""
    caption: tuple[int, int]
    """Offset and number of bytes."""
    caption_suffix: str
    """`txt`, or `json` for a caption in the metadata."""

    def read(self) -> Pair:
        """Read the sample. It has metadata only if the caption is part of them.

        Raises CliptexError if the file is truncated or cannot be read.
        """
        try:
            file = _open(self.path, self.modified_ns).fileno()
            image, caption = (os.pread(file, size, start) for start, size in (self.image, self.caption))
        except OSError as error:
            raise CliptexError(f"{self.path}: cannot be read ({error}); {remedy(Path(self.path))}") from error
        if (len(image), len(caption)) != (self.image[1], self.caption[1]):
            raise CliptexError(f"{self.path}: shard is truncated; {remedy(Path(self.path))}")
        return to_pair(self.key, {IMAGE_SUFFIXES[0]: image, self.caption_suffix: caption})


@lru_cache(maxsize=256)
def _open(path: str, modified_ns: int) -> io.FileIO:
    """The open file; modified_ns only distinguishes cache entries."""
    return io.FileIO(path)


class ShardOffsets:
    """The locations of a shard's usable samples, in the order of keys; 25 bytes per sample in memory.

    Reads the tar's headers once. Raises CliptexError if the shard differs from the index.
    """

    def __init__(self, entry: dict[str, Any]):
        check_indexed(entry)
        path = Path(entry["path"]).absolute()
        self._path, self._modified_ns, self._count = str(path), path.stat().st_mtime_ns, len(entry["keys"])
        locations = {}
        for key, members in samples(path, lambda _, member: (member.offset_data, member.size)):
            image, text = image_suffix(members), "txt" if "txt" in members else "json"
            locations[key] = (*members.get(image, (0, 0)), *members.get(text, (0, 0)), text == "json")
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
