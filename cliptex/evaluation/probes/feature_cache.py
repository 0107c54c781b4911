"""A cache on disk for the features of frozen encoders.

Reads, writes  results/features/{key}/: tokens.bin [V, T, C], scales.bin float32 [V, C] (int8 only), both little-endian
               without a header, and about.json with shape, precision and the files' CRC-32.
Holds          a folder is complete or does not exist; its key is a digest of everything that its content depends on;
               the total size, including folders that are being written, stays below a limit. Folders may be deleted at
               any time.

V views, T tokens per view (the cells of the map row by row, after the class token if there is one), C channels.

Largest difference between a value x of the encoder and the value read back:
    fp32   0
    fp16   max(2^-11 |x|, 2^-25)
    int8   m / 254, where m is the largest |value| of that channel over the view's tokens
"""

import fcntl
import hashlib
import json
import logging
import os
import shutil
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol, Self
from uuid import uuid4

import numpy as np
import torch

from cliptex.core.errors import CliptexError
from cliptex.core.files import sha256_json, write_json
from cliptex.core.finite import require_finite

log = logging.getLogger("cliptex")
KINDS = {"fp32": np.float32, "fp16": np.float16, "int8": np.int8}
VERSION = 4
"""Increase it when the content of a folder changes for the same key."""
TOKENS, SCALES, ABOUT = "tokens.bin", "scales.bin", "about.json"
Loaded = tuple[torch.Tensor, torch.Tensor | None]
"""Tokens [B, T, C] in the stored precision, and for int8 the scales float32 [B, C]."""
RESERVED = "held"
"""File in a folder that is being written: the expected number of bytes, locked while the writer is alive."""


class FeatureSource(Protocol):
    """Features of views that can be read in any order."""

    shape: tuple[int, int, int]
    """Views, tokens, channels."""
    computed: bool
    """Whether the encoder runs on every read."""

    def load(self, index: np.ndarray) -> Loaded:
        """As stored, on the CPU."""
        ...

    def read(self, index: np.ndarray) -> torch.Tensor:
        """float32 [len(index), T, C], on the CPU."""
        tokens_BTC, scales_BC = self.load(index)
        return tokens_BTC.float() if scales_BC is None else tokens_BTC.float().mul_(scales_BC[:, None])


class StoredFeatures(FeatureSource):
    """Features in arrays, memory-mapped or in memory."""

    computed = False

    def __init__(self, tokens_VTC: np.ndarray, scales_VC: np.ndarray | None):
        # plain arrays, since indexing a memmap costs more
        self.tokens, self.scales = np.asarray(tokens_VTC), None if scales_VC is None else np.asarray(scales_VC)
        self.shape: tuple[int, int, int] = tokens_VTC.shape

    @classmethod
    def opened(cls, folder: Path) -> Self:
        """The features of a finished folder. Raises FileNotFoundError if there is none, and LookupError, TypeError or
        ValueError if a file has changed since it was written."""
        metadata = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        for name, checksum in metadata["crc32"].items():
            if _checksum(folder / name) != checksum:
                raise ValueError(f"{name} has changed since it was written")
        views, tokens, channels = metadata["shape"]
        kind = KINDS[metadata["precision"]]
        scales = np.memmap(folder / SCALES, np.float32, "r", shape=(views, channels)) if kind == np.int8 else None
        return cls(np.memmap(folder / TOKENS, kind, "r", shape=(views, tokens, channels)), scales)

    @property
    def num_bytes(self) -> int:
        """Bytes as stored."""
        return self.tokens.nbytes + (0 if self.scales is None else self.scales.nbytes)

    def load(self, index: np.ndarray) -> Loaded:
        index = np.asarray(index)  # an array, for which indexing copies
        return tuple(None if part is None else torch.from_numpy(part[index]) for part in (self.tokens, self.scales))

    def in_memory(self) -> Self:
        """A copy that no longer reads the files."""
        return type(self)(*(None if part is None else np.array(part) for part in (self.tokens, self.scales)))


class Writer:
    """Stores features batch by batch, in files of `folder` or in memory."""

    def __init__(self, precision: str, folder: Path | None = None):
        self.precision, self.folder = precision, folder
        self.views = 0
        self._view_shape: tuple[int, int] | None = None
        self._parts: list[np.ndarray] = []
        self._scales: list[np.ndarray] = []
        self._checksums: dict[str, int] = {}

    def append(self, tokens_BTC: torch.Tensor, subject: str = "features") -> None:
        """Append the features of the next views. Raises CliptexError for values that the precision cannot hold.
        subject: names model and images in the error."""
        values = tokens_BTC.float().cpu().numpy()
        self.views, self._view_shape = self.views + len(values), values.shape[1:]
        largest = np.abs(values).max(initial=0)
        if not np.isfinite(largest):
            require_finite(values, subject, "check the weights of the model")
        if self.precision == "fp16" and largest > np.finfo(np.float16).max:
            raise CliptexError(
                f"{subject}: values of up to {largest:g} exceed the range of fp16; set features.precision to fp32 or"
                " int8 in the protocol"
            )
        if self.precision == "int8":
            scales = np.abs(values).max(1) / 127
            values = np.rint(values / np.where(scales > 0, scales, 1)[:, None])
            self._store(SCALES, self._scales, scales)
        self._store(TOKENS, self._parts, values.astype(KINDS[self.precision]))

    def _store(self, name: str, parts: list[np.ndarray], values: np.ndarray) -> None:
        if self.folder is None:
            parts.append(values)
        else:
            data = np.ascontiguousarray(values).data
            self._checksums[name] = zlib.crc32(data, self._checksums.get(name, 0))
            with (self.folder / name).open("ab") as file:
                file.write(data)

    def finish(self, metadata: dict[str, Any]) -> StoredFeatures | None:
        """Return the features if they are in memory; otherwise complete the folder and return None."""
        if self.folder is None:
            return StoredFeatures(np.concatenate(self._parts), np.concatenate(self._scales) if self._scales else None)
        shape = [self.views, *self._view_shape]
        own = {"shape": shape, "precision": self.precision, "crc32": self._checksums}
        write_json(self.folder / ABOUT, own | metadata)
        return None


def bytes_of(shape: tuple[int, int, int], precision: str) -> int:
    """Bytes of the features of V views, T tokens, C channels."""
    views, tokens, channels = shape
    return views * channels * (tokens * np.dtype(KINDS[precision]).itemsize + 4 * (precision == "int8"))


class FeatureCache:
    """Folders of features with a total size of at most `limit_bytes`; the least recently used are deleted first."""

    def __init__(self, folder: Path, limit_bytes: float):
        self.folder, self.limit_bytes = Path(folder), limit_bytes
        self._in_use: set[str] = set()

    def key(self, values: dict[str, Any]) -> str:
        """The name of the folder for features that depend on `values`."""
        return sha256_json({"version": VERSION, **values})[:20]

    def find(self, key: str) -> StoredFeatures | None:
        """The features of a finished folder, which is not deleted until `release`; None if there is none.
        One that has changed since it was written is deleted, so that it is made again."""
        folder = self.folder / key
        try:
            for name in (ABOUT, TOKENS, SCALES):
                if (folder / name).exists() and not (folder / name).is_file():  # reading a pipe would wait for ever
                    raise ValueError(f"{name} is not a file")
            os.utime(folder / ABOUT)  # mark as used
            features = StoredFeatures.opened(folder)
        except FileNotFoundError:
            return None
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError, RecursionError, OSError) as error:
            log.warning("%s: %s; the features are computed again", folder, error)
            _remove(folder)
            return None
        self._in_use.add(key)
        return features

    def release(self, keys: Iterable[str]) -> None:
        """Allow these folders to be deleted."""
        self._in_use -= set(keys)

    @contextmanager
    def new(self, key: str, precision: str, size: float, metadata: dict[str, Any]) -> Iterator[Writer]:
        """A writer for the folder `key`, of about `size` bytes; other folders are deleted to make space for it.
        The folder appears under its name when the context ends without an error."""
        self._make_room(size)
        self._in_use.add(key)
        scratch = self.folder / f".{key}.{uuid4().hex}"
        scratch.mkdir(parents=True)
        try:
            writer = Writer(precision, scratch)
            with _reserved_space(scratch, size):
                yield writer
                writer.finish(metadata)
            if not (self.folder / key / ABOUT).exists():
                # the rest of an interrupted deletion
                shutil.rmtree(self.folder / key, ignore_errors=True)
            try:
                scratch.rename(self.folder / key)
            except OSError:  # another job wrote the same content first
                if not (self.folder / key / ABOUT).exists():
                    raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _make_room(self, size: float) -> None:
        finished, total = [], size
        for folder in self.folder.glob("*"):
            try:
                files, is_scratch = list(folder.iterdir()), folder.name.startswith(".")
                # left by a process that was killed while writing or deleting
                if _abandoned(folder) if is_scratch else {path.name for path in files} <= {TOKENS, SCALES}:
                    _remove(folder)
                    continue
                used = sum(path.stat().st_size for path in files)
                if is_scratch:
                    with suppress(FileNotFoundError):
                        used = max(used, int((folder / RESERVED).read_text(encoding="utf-8")))
                else:
                    finished.append(((folder / ABOUT).stat().st_mtime, used, folder))
                total += used
            except OSError:  # another job is finishing or deleting it
                continue
        for _, used, folder in sorted(finished):
            if total <= self.limit_bytes:
                return
            if folder.name not in self._in_use:
                _remove(folder)
                total -= used


def _checksum(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while chunk := file.read(2**22):
            checksum = zlib.crc32(chunk, checksum)
    return checksum


def _remove(folder: Path) -> None:
    with suppress(OSError):
        (folder / ABOUT).unlink(missing_ok=True)  # first, so that a partly deleted folder does not count as complete
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _reserved_space(scratch: Path, size: float) -> Iterator[None]:
    """Reserve `size` bytes for a folder that is being written, for as long as this process is alive."""
    file = scratch / RESERVED
    with file.with_suffix(".new").open("w", encoding="utf-8") as lock:
        lock.write(f"{size:.0f}")
        lock.flush()
        with suppress(OSError):  # without locks in the file system, no folder counts as abandoned
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.with_suffix(".new").rename(file)  # only after it is locked
        yield
        for path in (file, file.with_suffix(".new")):
            path.unlink(missing_ok=True)


def _abandoned(scratch: Path) -> bool:
    """Whether the process that was writing a folder was killed."""
    try:
        with (scratch / RESERVED).open("r+", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # locked, or being created or finished
        return False
    return True


def fingerprint(samples: Sequence[dict[str, Any]], count: int = 8) -> str:
    """A digest of the number of samples and of a few evenly spaced images.
    It distinguishes data sets, and renderings of the same data set, without reading all of it."""
    digest = hashlib.sha256(str(len(samples)).encode())
    for index in sorted({round(position) for position in np.linspace(0, len(samples) - 1, min(count, len(samples)))}):
        sample = samples[index]
        digest.update(f"{sample['id']} {sample['image'].shape}".encode())
        digest.update(np.ascontiguousarray(sample["image"]).tobytes())
    return digest.hexdigest()
