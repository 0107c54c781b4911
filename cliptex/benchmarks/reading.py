"""Helpers for readers of official layouts: files are read with errors that name them, samples on access."""

import io
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cliptex.benchmarks.mat_structure import check_structure
from cliptex.core.errors import CliptexError
from cliptex.core.files import read_json

SOURCES = ("miniature", "official")


class Lazy(Sequence):
    """The samples `read(item)` of `items`, each read on access."""

    def __init__(self, items: Sequence[Any], read: Callable[[Any], dict[str, Any]]):
        self.items = items
        self._read = read

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._read(self.items[index])


def read_mark(benchmark_dir: Path) -> dict[str, Any]:
    """The mark in a benchmark's folder, which the renderer (`miniature.json`) or `cliptex fetch` (`official.json`)
    writes last. It has at least `source`; empty without a mark. Raises CliptexError if there are both."""
    marks = [path for path in (Path(benchmark_dir) / f"{source}.json" for source in SOURCES) if path.exists()]
    if len(marks) > 1:
        problem = f"the folder also has {marks[1].name}, but must have either rendered or official data"
        raise CliptexError(f"{marks[0]}: {problem}")
    return read_json(marks[0]) | {"source": marks[0].stem} if marks else {}


def source(benchmark_dir: Path) -> str:
    """Source of the data, "miniature" or "official". Raises CliptexError without a mark."""
    if mark := read_mark(benchmark_dir):
        return mark["source"]
    raise CliptexError(
        f"{Path(benchmark_dir)}: has neither miniature.json nor official.json; run: cliptex fetch --benchmark"
        f" {Path(benchmark_dir).name}   which checks the official data there, or downloads them"
    )


def existing(path: Path, remedy: str) -> Path:
    """Return `path`; raises CliptexError if it does not exist. remedy: ends the message."""
    if not path.exists():
        raise CliptexError(f"{path}: not found; {remedy}")
    return path


def read_mat(path: Path, remedy: str, **options: Any) -> dict[str, Any]:
    """Variables of a MATLAB file before version 7.3. options: scipy's."""
    from scipy.io import loadmat

    existing(path, remedy)
    try:
        data = path.read_bytes()
        check_structure(data)
        return loadmat(io.BytesIO(data), **options)
    except Exception as error:  # scipy raises many kinds of errors for damaged files
        raise CliptexError(f"{path}: damaged, or not a MATLAB file ({error}); {remedy}") from error


def require_files(folder: Path, names: Iterable[str], remedy: str) -> None:
    """Raise CliptexError, with the first of them, if files of these names are missing in a folder."""
    present = {entry.name for entry in os.scandir(existing(folder, remedy))}
    if missing := sorted(set(names) - present):
        raise CliptexError(f"{folder / missing[0]}: is missing, and {len(missing) - 1:,} other files; {remedy}")


def read_rgb(path: Path) -> np.ndarray:
    """Read an image as uint8 RGB [H, W, 3], without the EXIF rotation, since masks and boxes refer to stored pixels."""
    return _pixels(path, "image", lambda image: image.convert("RGB"))


def read_indices(path: Path) -> np.ndarray:
    """Read the uint8 indices [H, W] of a palette or grey PNG. Raises CliptexError for a colour image."""

    def indices(image: Image.Image) -> Image.Image:
        if image.mode not in ("P", "L"):
            raise ValueError(f"it must be a palette or grey PNG, not {image.mode}")
        return image

    return _pixels(path, "mask", indices)


def _pixels(path: Path, kind: str, convert: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    try:
        with Image.open(path) as image:
            return np.asarray(convert(image))
    except FileNotFoundError as error:
        raise CliptexError(f"{path}: {kind} is missing; unpack the official archive again") from error
    except Exception as error:
        raise CliptexError(f"{path}: not a readable {kind} ({error}); unpack the official archive again") from error


def read_lines(path: Path, remedy: str) -> list[str]:
    """The non-empty lines of a text file, stripped. Raises CliptexError if it is not UTF-8."""
    try:
        text = existing(path, remedy).read_text("utf-8")
    except UnicodeDecodeError as error:
        raise CliptexError(f"{path}: is not text ({error.reason} at byte {error.start}); {remedy}") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def files_in(folder: Path, suffixes: tuple[str, ...], remedy: str) -> list[str]:
    """Files of a folder by suffix (case ignored), sorted by name, as strings, which need a third less memory than Path
    objects. Hidden files are skipped, since macOS creates some. Raises CliptexError if there are none."""
    names = sorted(entry.name for entry in os.scandir(existing(folder, remedy)) if not entry.name.startswith("."))
    if paths := [f"{folder}/{name}" for name in names if name.lower().endswith(suffixes)]:
        return paths
    raise CliptexError(f"{folder}: no {' or '.join(suffixes)} files; {remedy}")


def folders_in(folder: Path, remedy: str) -> list[str]:
    """Names of the sub-folders, sorted. Raises CliptexError if there are none."""
    entries = os.scandir(existing(folder, remedy))
    if names := sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")):
        return names
    raise CliptexError(f"{folder}: no class folders; {remedy}")
