"""Helpers for readers of official layouts: files are read with errors that name them, samples on access."""

import io
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from cliptex.benchmarks.mat_structure import MAX_BYTES, check_structure
from cliptex.core.errors import CliptexError
from cliptex.core.files import read_checked, read_error, require_file
from cliptex.core.npz import read_npz

MARKS = ("miniature", "official")
SOURCES = (*MARKS, "subset", "own")
"""Where a benchmark's data come from. All that are not rendered have the mark `official.json`, which says which."""
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
"""Pillow's names of the formats that are decoded; for others, such as EPS, it starts programs."""
JPEG_SCAN = b"\xff\xda"
MAX_SCANNED_PIXELS = 2_000_000_000


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
    marks = [path for path in (Path(benchmark_dir) / f"{name}.json" for name in MARKS) if path.exists()]
    if len(marks) > 1:
        problem = f"the folder also has {marks[1].name}, but must have either rendered or official data"
        raise CliptexError(f"{marks[0]}: {problem}")
    if not marks:
        return {}
    mark, is_rendered = read_checked(marks[0], dict), marks[0].stem == "miniature"
    return mark | {"source": mark["source"] if not is_rendered and mark.get("source") in SOURCES[2:] else marks[0].stem}


def source(benchmark_dir: Path) -> str:
    """Source of the data, one of `SOURCES`. Raises CliptexError without a mark."""
    if mark := read_mark(benchmark_dir):
        return mark["source"]
    raise CliptexError(
        f"{Path(benchmark_dir)}: has neither miniature.json nor official.json; run: cliptex fetch --benchmark"
        f" {Path(benchmark_dir).name}   which checks the official data there, or downloads them"
    )


def existing(path: Path, remedy: str) -> Path:
    """Return `path`; raises CliptexError if it does not exist. remedy: ends the message."""
    try:
        if path.exists():
            return path
    except OSError as error:  # a name that is too long, or no permission
        raise CliptexError(f"{path}: {error.strerror}; {remedy}") from error
    raise CliptexError(f"{path}: not found; {remedy}")


def read_mat(path: Path, remedy: str, **options: Any) -> dict[str, Any]:
    """Variables of a MATLAB file before version 7.3. options: scipy's."""
    from scipy.io import loadmat

    require_file(path, remedy)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        check_structure(data)
        return loadmat(io.BytesIO(data), **options)
    except Exception as error:  # scipy raises many kinds of errors for damaged files
        raise read_error(error, path, "a MATLAB file", remedy, remedy) from error


def npz_arrays(path: Path, remedy: str) -> dict[str, np.ndarray]:
    """The arrays of an .npz file by name. Raises CliptexError for a damaged file, and for arrays of objects."""
    require_file(path, remedy)
    try:
        return read_npz(path)
    except Exception as error:  # numpy and zipfile raise many kinds of errors
        raise read_error(error, path, "an .npz file of arrays", remedy, remedy) from error


def require_files(folder: Path, names: Iterable[str], remedy: str) -> None:
    """Raise CliptexError, with the first of them, if files of these names are missing in a folder."""
    present = {entry.name for entry in os.scandir(existing(folder, remedy))}
    if missing := sorted(set(names) - present):
        raise CliptexError(f"{folder / missing[0]}: is missing, and {len(missing) - 1:,} other files; {remedy}")


def check_size(path: Path, truth: np.ndarray, image: np.ndarray) -> None:
    """Raise CliptexError if a map [H, W, ...], read from `path`, has another size than its image [H, W, 3]."""
    if truth.shape[:2] != image.shape[:2]:
        sizes = (f"{width} x {height}" for height, width in (truth.shape[:2], image.shape[:2]))
        raise CliptexError(f"{path}: {next(sizes)}, but its image has {next(sizes)} pixels; unpack the archives again")


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


def read_uint16(path: Path) -> np.ndarray:
    """Read the uint16 values [H, W] of a grey PNG with 16 bits. Raises CliptexError for other images."""

    def values(image: Image.Image) -> Image.Image:
        if not image.mode.startswith("I;16"):
            raise ValueError(f"it must be a grey PNG with 16 bits, not {image.mode}")
        return image

    return _pixels(path, "depth map", values)


def _pixels(path: Path, kind: str, convert: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    remedy = "unpack the official archive again"
    try:
        if not path.is_file():  # opening a pipe would wait for ever
            raise FileNotFoundError
        data = path.read_bytes()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow, about broken EXIF data of some official images
            try:
                image = Image.open(io.BytesIO(data), formats=FORMATS)
            except UnidentifiedImageError:
                raise ValueError(f"it is none of {', '.join(FORMATS)}") from None
            # each scan of a progressive JPEG costs as much as decoding it
            if image.width * image.height * data.count(JPEG_SCAN) > MAX_SCANNED_PIXELS and image.format != "PNG":
                raise ValueError(f"{image.width} x {image.height} pixels in {data.count(JPEG_SCAN)} scans")
            return np.asarray(convert(image))
    except Exception as error:
        raise read_error(error, path, f"a readable {kind}", remedy, remedy) from error


def read_lines(path: Path, remedy: str) -> list[str]:
    """The lines of a text file, stripped, without empty lines and comments (`#`). Raises CliptexError if it is not
    UTF-8, with or without a byte order mark."""
    require_file(path, remedy)
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CliptexError(f"{path}: is not text ({error.reason} at byte {error.start}); {remedy}") from error
    lines = (line.strip() for line in text.split("\n"))
    return [line for line in lines if line and not line.startswith("#")]


def read_names(path: Path, remedy: str) -> list[str]:
    """The lines of a list of image names, each without folder and suffix. Raises CliptexError for other lines, and for
    a name that is listed twice."""
    names = read_lines(path, remedy)
    for name, count in Counter(names).items():
        if count > 1 or not re.fullmatch(r"\w[\w.-]*", name):
            problem = f"is listed {count} times" if count > 1 else "is not the name of an image"
            raise CliptexError(f"{path}: {name[:80]!r} {problem}; {remedy}")
    return names


def files_in(folder: Path, suffixes: tuple[str, ...], remedy: str) -> list[str]:
    """Files of a folder by suffix (case ignored), sorted by name, as strings, which need a third less memory than Path
    objects. Hidden files are skipped, since macOS creates some. Raises CliptexError if there are none."""
    names = sorted(entry.name for entry in os.scandir(existing(folder, remedy)) if not entry.name.startswith("."))
    if paths := [f"{folder}/{name}" for name in names if name.lower().endswith(suffixes)]:
        return paths
    raise CliptexError(f"{folder}: no {' or '.join(suffixes)} files; {remedy}")


def is_folder(entry: os.DirEntry) -> bool:
    """Whether an entry is a folder that is not hidden."""
    try:
        return not entry.name.startswith(".") and entry.is_dir()
    except OSError:  # a link to itself
        return False


def folders_in(folder: Path, remedy: str) -> list[str]:
    """Names of the sub-folders, sorted. Raises CliptexError if there are none."""
    entries = os.scandir(existing(folder, remedy))
    if names := sorted(entry.name for entry in entries if is_folder(entry)):
        return names
    raise CliptexError(f"{folder}: no class folders; {remedy}")
