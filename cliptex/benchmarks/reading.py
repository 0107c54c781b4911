"""What the readers of the official layouts share: errors that name the file, samples read when they are indexed."""

import io
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cliptex.benchmarks.mat_structure import require_sound
from cliptex.core.errors import CliptexError
from cliptex.core.files import read_json

SOURCES = ("miniature", "official")


class Lazy(Sequence):
    """The samples `read(item)` of `items`, each read when it is indexed."""

    def __init__(self, items: Sequence[Any], read: Callable[[Any], dict[str, Any]]):
        self.items = items
        self._read = read

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._read(self.items[index])


def read_mark(root: Path) -> dict[str, Any]:
    """What lies in a benchmark's folder, as the renderer (`miniature.json`) or `cliptex fetch` (`official.json`) wrote
    down when they had finished: at least `source`; empty where neither has. Raises CliptexError where both have."""
    found = [path for path in (Path(root) / f"{source}.json" for source in SOURCES) if path.exists()]
    if len(found) > 1:
        raise CliptexError(f"{found[0]}: {found[1].name} lies beside it; a folder holds rendered or official data")
    return read_json(found[0]) | {"source": found[0].stem} if found else {}


def source(root: Path) -> str:
    """ "miniature" or "official". Raises CliptexError where nobody has checked what lies there."""
    mark = read_mark(root)
    if not mark:
        raise CliptexError(
            f"{Path(root)}: has neither miniature.json nor official.json; run: cliptex fetch --benchmark"
            f" {Path(root).name}   which checks the official data that lie there, or gets them"
        )
    return mark["source"]


def existing(path: Path, what: str) -> Path:
    """`path`, or CliptexError that says what should lie there."""
    if not path.exists():
        raise CliptexError(f"{path}: not found; {what}")
    return path


def read_mat(path: Path, what: str, **options: Any) -> dict[str, Any]:
    """Variables of a MATLAB file before version 7.3. options: scipy's."""
    from scipy.io import loadmat

    existing(path, what)
    try:
        data = path.read_bytes()
        require_sound(data)
        return loadmat(io.BytesIO(data), **options)
    except Exception as error:  # it has a kind of error for every way in which a file can be wrong
        raise CliptexError(f"{path}: damaged, or not a MATLAB file ({error}); {what}") from error


def require_files(folder: Path, names: Iterable[str], what: str) -> None:
    """CliptexError, with the first of them, where files of these names are missing in a folder."""
    there = {entry.name for entry in os.scandir(existing(folder, what))}
    if missing := sorted(set(names) - there):
        raise CliptexError(f"{folder / missing[0]}: is missing, and {len(missing) - 1:,} others are; {what}")


def read_rgb(path: Path) -> np.ndarray:
    """An image file as uint8 RGB [H, W, 3], not rotated by EXIF: masks and boxes are in the stored frame."""
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except FileNotFoundError as error:
        raise CliptexError(f"{path}: image is missing; unpack the official archive again") from error
    except Exception as error:
        raise CliptexError(f"{path}: not a readable image ({error}); unpack the official archive again") from error


def read_indices(path: Path) -> np.ndarray:
    """A palette or grey PNG as its uint8 indices [H, W]. A colour image is refused: its classes are lost."""
    try:
        with Image.open(path) as image:
            if image.mode not in ("P", "L"):
                raise CliptexError(
                    f"{path}: a mask must be a palette or grey PNG, this one is {image.mode}; unpack the archive again"
                )
            return np.asarray(image)
    except FileNotFoundError as error:
        raise CliptexError(f"{path}: mask is missing; unpack the official archive again") from error
    except OSError as error:
        raise CliptexError(f"{path}: not a readable mask ({error}); unpack the official archive again") from error


def read_lines(path: Path, what: str) -> list[str]:
    """The non-empty lines of a text file, stripped. Raises CliptexError where it is not text."""
    try:
        text = existing(path, what).read_text("utf-8")
    except UnicodeDecodeError as error:
        raise CliptexError(f"{path}: is not text ({error.reason} at byte {error.start}); {what}") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def files_in(folder: Path, suffixes: tuple[str, ...], what: str) -> list[str]:
    """Files of a folder by suffix (case ignored), sorted by name; CliptexError when there are none.

    Hidden ones, which macOS makes beside others when it unpacks, are none. Paths as text: of a million files that takes
    a third less memory.
    """
    names = sorted(entry.name for entry in os.scandir(existing(folder, what)) if not entry.name.startswith("."))
    found = [f"{folder}/{name}" for name in names if name.lower().endswith(suffixes)]
    if not found:
        raise CliptexError(f"{folder}: no {' or '.join(suffixes)} files; {what}")
    return found


def folders_in(folder: Path, what: str) -> list[str]:
    """Names of the sub-folders, sorted; CliptexError when there are none."""
    entries = os.scandir(existing(folder, what))
    found = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    if not found:
        raise CliptexError(f"{folder}: no class folders; {what}")
    return found
