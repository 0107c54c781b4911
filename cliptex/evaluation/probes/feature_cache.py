"""Features of frozen encoders, computed once and kept compactly.

Reads, writes  results/features/{key}/: tokens.bin [V, T, C], scales.bin float32 [V, C] (int8 only), both little-endian
               without a header, and about.json with shape and precision.
Holds          a folder is there whole or not at all; its key is a digest of everything that its content depends on;
               all folders together, with those that are being written, take no more than a bound. It may be deleted
               at any time.

V views, T tokens of each (the cells of the map row by row, after the class token where there is one), C channels.

What is read back differs from what the encoder gave by no more than, for a value x:
    fp32   nothing
    fp16   max(2^-11 |x|, 2^-25)
    int8   m / 254, where m is the largest |value| of that channel over the view's tokens
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol, Self
from uuid import uuid4

import numpy as np
import torch

from cliptex.core.errors import CliptexError
from cliptex.core.files import sha256_json, write_json

KINDS = {"fp32": np.float32, "fp16": np.float16, "int8": np.int8}
VERSION = 3
"""Raised when the same key would have another content."""
TOKENS, SCALES, ABOUT = "tokens.bin", "scales.bin", "about.json"
HELD = "held"
"""In a folder that is being written: locked as long as the writer lives; says how many bytes there will be."""


class Rows(Protocol):
    """Where the features of views come from."""

    shape: tuple[int, int, int]
    """Views, tokens, channels."""
    computed: bool
    """Whether the encoder runs at every reading."""

    def read(self, index: np.ndarray) -> torch.Tensor:
        """float32 [len(index), T, C], on the CPU."""
        ...


class Compact:
    """Features in arrays, on disk or in memory."""

    computed = False

    def __init__(self, tokens_VTC: np.ndarray, scales_VC: np.ndarray | None):
        self.tokens, self.scales = tokens_VTC, scales_VC
        self.shape: tuple[int, int, int] = tokens_VTC.shape

    @classmethod
    def opened(cls, folder: Path) -> Self:
        """The features of a finished folder. Raises FileNotFoundError where it is none."""
        about = json.loads((folder / ABOUT).read_text())
        views, tokens, channels = about["shape"]
        kind = KINDS[about["precision"]]
        scales = np.memmap(folder / SCALES, np.float32, "r", shape=(views, channels)) if kind == np.int8 else None
        return cls(np.memmap(folder / TOKENS, kind, "r", shape=(views, tokens, channels)), scales)

    def read(self, index: np.ndarray) -> torch.Tensor:
        values = torch.from_numpy(np.array(self.tokens[index])).float()
        if self.scales is not None:
            values *= torch.from_numpy(np.array(self.scales[index]))[:, None]
        return values


class Writer:
    """Takes features batch by batch, into files of `folder`, or into memory."""

    def __init__(self, precision: str, folder: Path | None = None):
        self.precision, self.folder = precision, folder
        self.views = 0
        self._of_each: tuple[int, int] | None = None
        self._parts: list[np.ndarray] = []
        self._scales: list[np.ndarray] = []

    def append(self, tokens_BTC: torch.Tensor) -> None:
        """Keep the features of the next views. Raises CliptexError for values that cannot be kept."""
        values = tokens_BTC.float().cpu().numpy()
        self.views, self._of_each = self.views + len(values), values.shape[1:]
        largest = np.abs(values).max(initial=0)
        if not np.isfinite(largest):
            raise CliptexError("the encoder gives features that are not finite; its weights are broken, train it again")
        if self.precision == "fp16" and largest > np.finfo(np.float16).max:
            raise CliptexError(
                f"features of up to {largest:g} are beyond fp16; set features.precision to fp32 or int8 in the protocol"
            )
        if self.precision == "int8":
            scales = np.abs(values).max(1) / 127
            values = np.rint(values / np.where(scales > 0, scales, 1)[:, None])
            self._keep(SCALES, self._scales, scales)
        self._keep(TOKENS, self._parts, values.astype(KINDS[self.precision]))

    def _keep(self, name: str, parts: list[np.ndarray], values: np.ndarray) -> None:
        if self.folder is None:
            parts.append(values)
        else:
            with (self.folder / name).open("ab") as file:
                file.write(np.ascontiguousarray(values).data)

    def finish(self, about: dict[str, Any]) -> Compact | None:
        """The features, where they are in memory; else the folder is finished."""
        if self.folder is None:
            return Compact(np.concatenate(self._parts), np.concatenate(self._scales) if self._scales else None)
        write_json(self.folder / ABOUT, {"shape": [self.views, *self._of_each], "precision": self.precision, **about})
        return None


def bytes_of(shape: tuple[int, int, int], precision: str) -> int:
    """Bytes of the features of V views, T tokens, C channels."""
    views, tokens, channels = shape
    return views * channels * (tokens * np.dtype(KINDS[precision]).itemsize + 4 * (precision == "int8"))


class FeatureCache:
    """Folders of features, together no larger than `limit_bytes`; the least recently used go first."""

    def __init__(self, folder: Path, limit_bytes: float):
        self.folder, self.limit_bytes = Path(folder), limit_bytes
        self._in_use: set[str] = set()

    def key(self, values: dict[str, Any]) -> str:
        """The name of the folder for features that depend on `values`."""
        return sha256_json({"version": VERSION, **values})[:20]

    def find(self, key: str) -> Compact | None:
        """The features of a finished folder; they stay until they are released."""
        folder = self.folder / key
        try:
            os.utime(folder / ABOUT)  # used now
            found = Compact.opened(folder)
        except FileNotFoundError:
            return None
        self._in_use.add(key)
        return found

    def release(self, keys: Iterable[str]) -> None:
        """These may make room for others from now on."""
        self._in_use -= set(keys)

    @contextmanager
    def new(self, key: str, precision: str, size: float, about: dict[str, Any]) -> Iterator[Writer]:
        """A writer whose features, of about `size` bytes, are the folder `key` on success; others make room for it."""
        self._make_room(size)
        self._in_use.add(key)
        scratch = self.folder / f".{key}.{uuid4().hex}"
        scratch.mkdir(parents=True)
        try:
            writer = Writer(precision, scratch)
            with _holding(scratch, size):
                yield writer
                writer.finish(about)
            if not (self.folder / key / ABOUT).exists():
                # what is left of one whose deletion was cut short
                shutil.rmtree(self.folder / key, ignore_errors=True)
            try:
                scratch.rename(self.folder / key)
            except OSError:  # another job was first, with the same content
                if not (self.folder / key / ABOUT).exists():
                    raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _make_room(self, size: float) -> None:
        found, total = [], size
        for folder in self.folder.glob("*"):
            try:
                files, written = list(folder.iterdir()), folder.name.startswith(".")
                # what a kill has left, of writing or of deleting
                if _abandoned(folder) if written else {path.name for path in files} <= {TOKENS, SCALES}:
                    _remove(folder)
                    continue
                used = sum(path.stat().st_size for path in files)
                if written:
                    with suppress(FileNotFoundError):
                        used = max(used, int((folder / HELD).read_text()))
                else:
                    found.append(((folder / ABOUT).stat().st_mtime, used, folder))
                total += used
            except OSError:  # another job finishes or deletes it just now
                continue
        for _, used, folder in sorted(found):
            if total <= self.limit_bytes:
                return
            if folder.name not in self._in_use:
                _remove(folder)
                total -= used


def _remove(folder: Path) -> None:
    with suppress(OSError):
        (folder / ABOUT).unlink(missing_ok=True)  # first: without it the rest is not taken for whole
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _holding(scratch: Path, size: float) -> Iterator[None]:
    """Tells all processes that this one, as long as it lives, writes about `size` bytes into a folder."""
    file = scratch / HELD
    with file.with_suffix(".new").open("w") as lock:
        lock.write(f"{size:.0f}")
        lock.flush()
        with suppress(OSError):  # where a file system has no locks, nothing is taken for abandoned
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.with_suffix(".new").rename(file)  # not before it is locked
        yield
        for path in (file, file.with_suffix(".new")):
            path.unlink(missing_ok=True)


def _abandoned(scratch: Path) -> bool:
    """Whether the process that wrote into a folder has been killed."""
    try:
        with (scratch / HELD).open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # held, or just being made or finished
        return False
    return True


def fingerprint(samples: Sequence[dict[str, Any]], count: int = 8) -> str:
    """A digest of how many samples there are and of the images of a few of them, evenly spaced.

    Enough to tell a data set from another, or from itself rendered again, without reading all of it.
    """
    digest = hashlib.sha256(str(len(samples)).encode())
    for index in sorted({round(at) for at in np.linspace(0, len(samples) - 1, min(count, len(samples)))}):
        sample = samples[index]
        digest.update(f"{sample['id']} {sample['image'].shape}".encode())
        digest.update(np.ascontiguousarray(sample["image"]).tobytes())
    return digest.hexdigest()
