"""What the writers of the official layouts share. They write into a scratch tree, so a plain write is enough."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cliptex.data.images import encode_jpeg
from cliptex.data.miniature.scenes import Scene

MAT_HEADER = b"MATLAB 5.0 MAT-file, written by cliptex".ljust(116)


def save_jpeg(path: Path, scene: Scene) -> None:
    """The scene's picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_jpeg(scene.image, scene.jpeg_quality))


def save_png(path: Path, pixels: np.ndarray, palette: np.ndarray | None = None) -> None:
    """uint8 [H, W] (a palette image when `palette`, uint8 [256, 3], is given) or [H, W, 3]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    if palette is not None:
        image.putpalette(palette.ravel().tolist())
    image.save(path, "PNG")


def save_text(path: Path, lines: list[str]) -> None:
    """One line each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def save_mat(path: Path, content: dict[str, Any]) -> None:
    """A MATLAB 5 file, without the time of writing that scipy puts into its header."""
    from scipy.io import savemat

    path.parent.mkdir(parents=True, exist_ok=True)
    out = io.BytesIO()
    savemat(out, content)
    path.write_bytes(MAT_HEADER + out.getvalue()[len(MAT_HEADER) :])


def boxes(instances: np.ndarray, count: int) -> list[tuple[int, int, int, int]]:
    """Per instance 1..count of a map [H, W]: first column, first row, one past the last column and row."""
    out = []
    for number in range(1, count + 1):
        rows, columns = np.nonzero(instances == number)
        out.append((int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1))
    return out
