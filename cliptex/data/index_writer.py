"""Write the samples' file and find what only all shards together show: keys that occur twice, repeated images.

Two passes, with one shard in memory. The first writes rows, hashes of keys and digests of images to unnamed scratch
files; the second marks repeated images. Beyond that, memory is 9 bytes per pair, while hashes or digests are sorted.
"""

import hashlib
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa

from cliptex.core.errors import CliptexError
from cliptex.data.samples_file import LOCATION, SCHEMA, write_batches

OK, NO_IMAGE, REPEATED = "ok", "no image", "repeated image"
HELD_OUT = 4096
"""Number of samples with the smallest key digests that the index lists."""
CHUNK = 1 << 24


class FirstPass:
    """The rows of all shards on disk.

    shards: description and table of each, in order, with the columns `LOCATION`. folder: for the scratch files, which
    have 74 bytes and the key for each pair.
    """

    def __init__(self, shards: Iterable[tuple[dict[str, Any], pa.Table]], folder: Path):
        self.descriptions: list[dict[str, Any]] = []
        self.num_rows: list[int] = []
        self.reasons: dict[str, int] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self._rows, self._hashes, self._digests = (tempfile.TemporaryFile(dir=folder) for _ in range(3))  # noqa: SIM115
        with pa.ipc.new_file(self._rows, SCHEMA) as writer:
            for description, table in shards:
                writer.write_batch(self._add(description, table))
        self._reader = pa.ipc.open_file(self._rows)
        self._require_unique()

    def close(self) -> None:
        """Delete the scratch files."""
        for file in (self._rows, self._hashes, self._digests):
            file.close()

    def _add(self, description: dict[str, Any], table: pa.Table) -> pa.RecordBatch:
        keys, statuses = table["key"].to_pylist(), table["status"].to_pylist()
        if len(set(keys)) < len(keys):
            (duplicate, _), *_ = Counter(keys).most_common(1)
            raise duplicate_key(description["path"], duplicate, description["path"])
        self.descriptions.append(description)
        self.num_rows.append(table.num_rows)
        named = (hash(key) for key, status in zip(keys, statuses, strict=True) if status != NO_IMAGE)
        np.fromiter(named, np.int64).tofile(self._hashes)
        codes = [0 if status == OK else self._code(status) for status in statuses]
        usable = [number for number, code in enumerate(codes) if code == 0]
        self._digests.write(bytes.fromhex("".join(table["sha256"].take(pa.array(usable, pa.int64())).to_pylist())))
        columns = {"key": keys, "reason": pa.array(codes, pa.uint16())}
        columns |= {name: table[name].combine_chunks().cast(SCHEMA.field(name).type) for name in LOCATION}
        return pa.record_batch([columns[name] for name in SCHEMA.names], schema=SCHEMA)

    def _code(self, reason: str) -> int:
        return self.reasons.setdefault(reason, len(self.reasons) + 1)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The rows of each shard."""
        return (self._reader.get_batch(number) for number in range(len(self.descriptions)))

    def _require_unique(self) -> None:
        """Raise CliptexError if a key occurs twice. Samples without an image do not matter: many tars have a README of
        their own."""
        suspects = set(_repeated(_read(self._hashes, np.int64), 1))  # equal keys, or a hash collision
        seen: dict[str, str] = {}
        no_image = self.reasons.get(NO_IMAGE)
        for description, batch in zip(self.descriptions, self.batches(), strict=True) if suspects else ():
            for key, code in zip(batch["key"].to_pylist(), batch["reason"].to_pylist(), strict=True):
                if code != no_image and hash(key) in suspects:
                    if key in seen:
                        raise duplicate_key(description["path"], key, seen[key])
                    seen[key] = description["path"]

    def frequent(self, max_repeats: int) -> np.ndarray:
        """The first 64 bits, sorted, of the digests that occur more than `max_repeats` times."""
        count = self._digests.seek(0, 2) // 32
        short = np.empty(count, np.uint64)
        self._digests.seek(0)
        for start in range(0, count, CHUNK):
            part = np.frombuffer(self._digests.read(32 * CHUNK), np.uint8).reshape(-1, 32)
            short[start : start + len(part)] = first_64_bits(part)
        return np.array(sorted(set(_repeated(short, max_repeats))), np.uint64)

    def image_digests(self) -> Iterator[np.ndarray]:
        """The digests of the images of each shard's usable samples, uint8 [N, 32]."""
        self._digests.seek(0)
        for batch in self.batches():
            count = int((np.asarray(batch["reason"]) == 0).sum())
            yield np.frombuffer(self._digests.read(32 * count), np.uint8).reshape(-1, 32)


class SecondPass:
    """Marks repeated images and writes the samples' file. After `write`: usable and dropped samples of each shard,
    counts of reasons, digest -> count of repeated images, ids of the samples with the smallest key digests."""

    def __init__(self, first: FirstPass, max_repeats: int):
        self._first, self._frequent = first, first.frequent(max_repeats)
        self.counts: list[tuple[int, int]] = []
        self.repeated: Counter[str] = Counter()
        self._by_code = np.zeros(1 << 16, np.int64)
        self._smallest = (np.zeros(0, np.uint64), np.zeros(0, np.int64))
        self._num_usable = 0

    def write(self, path: Path) -> None:
        write_batches(path, map(self._marked, self._first.batches(), self._first.image_digests()))

    def _marked(self, batch: pa.RecordBatch, digests: np.ndarray) -> pa.RecordBatch:
        codes = np.array(batch["reason"])
        (usable,) = np.nonzero(codes == 0)
        again = np.isin(first_64_bits(digests), self._frequent) if len(self._frequent) else np.zeros(len(usable), bool)
        if again.any():
            self.repeated.update(digest.tobytes().hex() for digest in digests[again])
            codes[usable[again]] = self._first._code(REPEATED)
            columns = {**dict(zip(SCHEMA.names, batch.columns, strict=True)), "reason": pa.array(codes)}
            for name in LOCATION:
                values = np.where(codes == 0, batch[name].to_numpy(zero_copy_only=False), 0)
                columns[name] = pa.array(values).cast(SCHEMA.field(name).type)
            batch = pa.record_batch([columns[name] for name in SCHEMA.names], schema=SCHEMA)
        self._by_code += np.bincount(codes, minlength=len(self._by_code))
        count = int((codes == 0).sum())
        self._note_digests(batch["key"].filter(pa.array(codes == 0)).to_pylist())
        self.counts.append((count, len(codes) - count))
        return batch

    def _note_digests(self, keys: list[str]) -> None:
        data = b"".join(hashlib.sha256(key.encode()).digest()[:8] for key in keys)
        digests, ids = np.frombuffer(data, ">u8").astype(np.uint64), self._num_usable + np.arange(len(keys))
        self._num_usable += len(keys)
        old_digests, old_ids = self._smallest
        if len(old_ids) == HELD_OUT:
            below = digests < old_digests[-1]
            digests, ids = digests[below], ids[below]
        digests, ids = np.concatenate([old_digests, digests]), np.concatenate([old_ids, ids])
        order = np.argsort(digests, kind="stable")[:HELD_OUT]
        self._smallest = digests[order], ids[order]

    @property
    def held_out_order(self) -> list[int]:
        return self._smallest[1].tolist()

    @property
    def dropped(self) -> Counter[str]:
        """Reason -> number of dropped samples."""
        return Counter(
            {reason: count for reason, code in self._first.reasons.items() if (count := int(self._by_code[code]))}
        )


def duplicate_key(path: str, key: str, other: str) -> CliptexError:
    return CliptexError(f"{path}: key {key!r} is also in {other}; keys must be unique over all shards")


def first_64_bits(digests: np.ndarray) -> np.ndarray:
    """Of SHA-256 digests [N, 32]; enough to find repeated images."""
    return np.ascontiguousarray(digests[:, :8]).view(np.uint64)[:, 0]


def _read(file: IO[bytes], kind: type) -> np.ndarray:
    file.seek(0)
    return np.fromfile(file, kind)


def _repeated(values: np.ndarray, times: int) -> Iterator[int]:
    """Values that occur more than `times` times; sorts in place."""
    values.sort()
    for start in range(0, max(len(values) - times, 0), CHUNK):
        part = values[start : start + CHUNK + times]
        yield from part[times:][part[times:] == part[:-times]].tolist()
