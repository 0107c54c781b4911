"""Helpers of tasks: crop, flip and resize label grids, and compress planes of integers without loss.

Pixel centres are at (i + 0.5) / n, as when an image is cropped and then resized.
"""

import io
from functools import cache, lru_cache
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from cliptex.tasks.base import View

if TYPE_CHECKING:
    import pyarrow

WHOLE = View(top=0.0, left=0.0, height=1.0, width=1.0, flip=False)
INVALID_COLOUR = (64, 64, 64)
WEBP_MAX_SIDE = 16383
RGB = 3
"""`torchvision.io.ImageReadMode.RGB`."""
MAX_PIXELS = 200_000_000
"""Of a plane; images have at most 50 million, and labels with scores two planes."""
WEBP_METHOD, WEBP_EFFORT = 2, 50
"""A higher method takes longer and gives smaller files; so does a higher effort, but not always."""


def take_nearest(label: np.ndarray, view: View, height: int, width: int) -> np.ndarray:
    """Nearest-neighbour resampling of the view: [H, W] to [height, width]."""
    rows = ((np.arange(height) + 0.5) * (view.height / height) + view.top) * label.shape[0]
    columns = ((np.arange(width) + 0.5) * (view.width / width) + view.left) * label.shape[1]
    rows = np.minimum(rows.astype(np.intp), label.shape[0] - 1)
    columns = np.minimum(columns.astype(np.intp), label.shape[1] - 1)
    return label[rows[:, None], columns[::-1] if view.flip else columns]


def area_mean(values_HWC: np.ndarray, valid_HW: np.ndarray, view: View, height: int, width: int) -> np.ndarray:
    """Mean over the valid part of each output pixel's area, float32 [height, width, C]. An output pixel with less than
    half of its area valid is NaN."""
    planes = np.where(valid_HW, np.moveaxis(values_HWC, -1, 0), np.float32(0))
    return np.moveaxis(area_mean_of_planes(planes, valid_HW, view, height, width), 0, -1)


def area_mean_of_planes(
    planes_CHW: np.ndarray, valid_HW: np.ndarray, view: View, height: int, width: int
) -> np.ndarray:
    """`area_mean` of a contiguous float32 array [C, H, W] that is 0 where invalid, as float32 [C, height, width]."""
    mean = _mean(planes_CHW, view, height, width)
    if not valid_HW.all():
        (share,) = _mean(valid_HW[None].astype(np.float32), view, height, width)
        mean /= np.maximum(share, 0.5)
        mean[:, share < 0.5] = np.nan
    return mean


def _mean(planes_CHW: np.ndarray, view: View, height: int, width: int) -> np.ndarray:
    channels, rows, columns = planes_CHW.shape
    across = planes_CHW.reshape(-1, columns) @ _overlaps(columns, view.left, view.width, width, view.flip).T
    return _overlaps(rows, view.top, view.height, height) @ across.reshape(channels, rows, width)


@lru_cache(maxsize=8)  # the tasks of one sample share a view
def _overlaps(pixels: int, start: float, length: float, size: int, flip: bool = False) -> np.ndarray:
    """float32 [size, pixels]: share of each output pixel's extent covered by each input pixel; rows sum to 1."""
    edges = (np.arange(size + 1) * (length / size) + start) * pixels
    covered = (edges[:, None] - np.arange(pixels)).astype(np.float32)
    np.minimum(np.maximum(covered, 0, out=covered), 1, out=covered)
    overlaps = covered[1:] - covered[:-1]
    overlaps /= overlaps.sum(axis=1, keepdims=True)
    if flip:
        overlaps = np.ascontiguousarray(overlaps[::-1])  # BLAS takes no negative strides
    overlaps.flags.writeable = False
    return overlaps


@cache
def _zstd() -> "pyarrow.Codec":
    import pyarrow

    return pyarrow.Codec("zstd", compression_level=3)


def pack(plane_HW: np.ndarray) -> bytes:
    """Compress uint8 or uint16 [H, W] (little-endian) by zstd; best for planes of few values, such as classes."""
    return _zstd().compress(np.ascontiguousarray(plane_HW), asbytes=True)


def unpack(payload: bytes, height: int, width: int, dtype: str = "uint8") -> np.ndarray:
    """Inverse of `pack`. Raises ValueError if the payload is damaged."""
    _check_size(height, width)
    kind = np.dtype(dtype)
    try:
        octets = _zstd().decompress(payload, decompressed_size=height * width * kind.itemsize, asbytes=True)
    except OSError as error:
        raise ValueError(f"payload is damaged ({error})") from error
    return np.frombuffer(octets, kind).reshape(height, width)


def pack_webp(planes: np.ndarray) -> bytes:
    """Compress uint8 [H, W] or [H, W, 3] to a lossless WebP file; best for smooth planes. WebP chooses among 14
    predictors in each block, so files are smaller than PNG or zstd of differences. Method and effort were
    measured by benchmarks/store.py. Raises ValueError if a side is longer than WebP's limit of 16383."""
    if max(planes.shape[:2]) > WEBP_MAX_SIDE:
        raise ValueError(f"label is larger than {WEBP_MAX_SIDE} pixels")
    out = io.BytesIO()
    Image.fromarray(planes).save(out, "WEBP", lossless=True, exact=True, method=WEBP_METHOD, quality=WEBP_EFFORT)
    return out.getvalue()


def _check_size(height: int, width: int) -> None:
    if not (height > 0 and width > 0 and height * width <= MAX_PIXELS):
        raise ValueError(f"payload is damaged (a label of {width} x {height})")


def unpack_webp(payload: bytes | memoryview, height: int, width: int) -> np.ndarray:
    """Inverse of `pack_webp`, uint8 [height, width, 3]; one plane gives three equal channels. Raises ValueError if the
    payload is damaged."""
    _check_size(height, width)
    try:
        with Image.open(io.BytesIO(payload), formats=("WEBP",)) as image:
            if image.size != (width, height):
                raise ValueError(f"payload is damaged (an image of {image.size}, not {(width, height)})")
            return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    except (OSError, SyntaxError) as error:
        raise ValueError(f"payload is damaged ({error})") from error


def unpack_webp_with_torch(payload: bytes | memoryview, height: int, width: int) -> np.ndarray:
    """`unpack_webp` by torchvision, in half the time; for training, where torch is loaded anyway."""
    import torch
    import torchvision  # noqa: F401  registers the function

    try:
        # torchvision.io.decode_webp without its warning for each image
        planes = torch.ops.image.decode_webp(torch.frombuffer(bytearray(payload), dtype=torch.uint8), RGB)
    except (RuntimeError, ValueError, AttributeError):  # damaged (Pillow says so), or torchvision without WebP
        return unpack_webp(payload, height, width)
    pixels = planes.permute(1, 2, 0).numpy()
    if pixels.shape[:2] != (height, width):
        raise ValueError(f"payload is damaged (an image of {pixels.shape[1::-1]}, not {(width, height)})")
    return pixels
