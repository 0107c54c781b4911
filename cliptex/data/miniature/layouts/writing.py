"""Helpers for the writers of official layouts. They write to a temporary tree, so that plain writes are enough."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cliptex.data.images import encode_jpeg
from cliptex.data.miniature.scenes import Scene

MAT_HEADER = b"MATLAB 5.0 MAT-file, written by cliptex".ljust(116)


def save_jpeg(path: Path, scene: Scene) -> None:
    """Write the scene's image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_jpeg(scene.image, scene.jpeg_quality))


def save_png(path: Path, pixels: np.ndarray, palette: np.ndarray | None = None) -> None:
    """Write uint8 [H, W] (with `palette`, uint8 [256, 3], as a palette image) or [H, W, 3]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    if palette is not None:
        image.putpalette(palette.ravel().tolist())
    image.save(path, "PNG")


def save_text(path: Path, lines: list[str]) -> None:
    """Write lines of text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def save_mat(path: Path, content: dict[str, Any]) -> None:
    """Write a MATLAB 5 file, without scipy's time stamp in the header."""
    from scipy.io import savemat

    path.parent.mkdir(parents=True, exist_ok=True)
    out = io.BytesIO()
    savemat(out, content)
    path.write_bytes(MAT_HEADER + out.getvalue()[len(MAT_HEADER) :])


def boxes(instances: np.ndarray, count: int) -> list[tuple[int, int, int, int]]:
    """Boxes of the instances 1..count of a map [H, W]: first column, first row, last column + 1, last row + 1."""
    out = []
    for number in range(1, count + 1):
        rows, columns = np.nonzero(instances == number)
        out.append((int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1))
    return out
