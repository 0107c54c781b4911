"""What the readers of the official layouts share: errors that name the file, samples read when they are indexed."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cliptex.errors import CliptexError


class Lazy(Sequence):
    """The samples `read(item)` of `items`, each read when it is indexed."""

    def __init__(self, items: Sequence[Any], read: Callable[[Any], dict[str, Any]]):
        self._items = items
        self._read = read

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._read(self._items[index])


def source(root: Path) -> str:
    """ "miniature" where the renderer left its mark, else "official"."""
    return "miniature" if (Path(root) / "miniature.json").exists() else "official"


def existing(path: Path, what: str) -> Path:
    """`path`, or CliptexError that says what should lie there."""
    if not path.exists():
        raise CliptexError(f"{path}: not found; {what}")
    return path


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
    """The non-empty lines of a text file, stripped."""
    return [line.strip() for line in existing(path, what).read_text().splitlines() if line.strip()]


def files_in(folder: Path, suffixes: tuple[str, ...], what: str) -> list[Path]:
    """Files of a folder by suffix (case ignored), sorted by name; CliptexError when there are none."""
    found = sorted(path for path in existing(folder, what).iterdir() if path.suffix.lower() in suffixes)
    if not found:
        raise CliptexError(f"{folder}: no {' or '.join(suffixes)} files; {what}")
    return found


def folders_in(folder: Path, what: str) -> list[str]:
    """Names of the sub-folders, sorted; CliptexError when there are none."""
    found = sorted(path.name for path in existing(folder, what).iterdir() if path.is_dir())
    if not found:
        raise CliptexError(f"{folder}: no class folders; {what}")
    return found
