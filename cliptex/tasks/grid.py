"""What the tasks share: views and resizing of label grids, and lossless packing of planes of bytes.

Every function takes pixel centres at (i + 0.5) / n, the convention of an image resized after being cropped.
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
WEBP_METHOD, WEBP_EFFORT = 2, 50


def take_nearest(label: np.ndarray, view: View, height: int, width: int) -> np.ndarray:
    """The value under each output pixel's centre: [H, W] to [height, width], flipped if the view says so."""
    rows = ((np.arange(height) + 0.5) * (view.height / height) + view.top) * label.shape[0]
    columns = ((np.arange(width) + 0.5) * (view.width / width) + view.left) * label.shape[1]
    rows = np.minimum(rows.astype(np.intp), label.shape[0] - 1)
    columns = np.minimum(columns.astype(np.intp), label.shape[1] - 1)
    return label[rows[:, None], columns[::-1] if view.flip else columns]


def area_mean(values_HWC: np.ndarray, valid_HW: np.ndarray, view: View, height: int, width: int) -> np.ndarray:
    """Mean over the part of each output pixel's area that is valid, float32 [height, width, C].

    Invalid values have no weight; an output pixel with less than half of its area valid is NaN.
    """
    planes = np.where(valid_HW, np.moveaxis(values_HWC, -1, 0), np.float32(0))
    return np.moveaxis(area_mean_of_planes(planes, valid_HW, view, height, width), 0, -1)


def area_mean_of_planes(
    planes_CHW: np.ndarray, valid_HW: np.ndarray, view: View, height: int, width: int
) -> np.ndarray:
    """`area_mean` of contiguous float32 [C, H, W] that are 0 where invalid, as float32 [C, height, width]."""
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
    """float32 [size, pixels]: share of each output pixel's extent that lies in each input pixel; rows sum to 1."""
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
    """uint8 [H, W] to bytes by zstd, without loss. The choice for planes of few values, such as classes."""
    return _zstd().compress(np.ascontiguousarray(plane_HW), asbytes=True)


def unpack(payload: bytes, height: int, width: int) -> np.ndarray:
    """The array that was packed. Raises ValueError when the payload is damaged."""
    try:
        octets = _zstd().decompress(payload, decompressed_size=height * width, asbytes=True)
    except OSError as error:
        raise ValueError(f"payload is damaged ({error})") from error
    return np.frombuffer(octets, np.uint8).reshape(height, width)


def pack_picture(planes: np.ndarray) -> bytes:
    """uint8 [H, W] or [H, W, 3] to a lossless WebP file. The choice for smooth planes.

    WebP chooses among 14 predictors in each block, hence it is smaller than PNG and than zstd of differences. More
    effort would cost much time for few bytes (benchmarks/store.py has the figures).
    Raises ValueError beyond WebP's largest side of 16383.
    """
    if max(planes.shape[:2]) > WEBP_MAX_SIDE:
        raise ValueError(f"label is larger than {WEBP_MAX_SIDE} pixels")
    out = io.BytesIO()
    Image.fromarray(planes).save(out, "WEBP", lossless=True, exact=True, method=WEBP_METHOD, quality=WEBP_EFFORT)
    return out.getvalue()


def unpack_picture(payload: bytes | memoryview, height: int, width: int) -> np.ndarray:
    """uint8 [height, width, 3]; equal channels where one was packed. Raises ValueError when the payload is damaged."""
    try:
        with Image.open(io.BytesIO(payload), formats=("WEBP",)) as image:
            if image.size != (width, height):
                raise ValueError(f"payload is damaged (a picture of {image.size}, not {(width, height)})")
            return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    except OSError as error:
        raise ValueError(f"payload is damaged ({error})") from error


def unpack_picture_with_torch(payload: bytes | memoryview, height: int, width: int) -> np.ndarray:
    """`unpack_picture` in half the time, by torchvision: for training, where it is loaded anyway."""
    import torch
    from torchvision.io import ImageReadMode, decode_webp

    try:
        planes = decode_webp(torch.frombuffer(bytearray(payload), dtype=torch.uint8), ImageReadMode.RGB)
    except (RuntimeError, ValueError):  # damaged, as Pillow will say; or torchvision was built without WebP
        return unpack_picture(payload, height, width)
    picture = planes.permute(1, 2, 0).numpy()
    if picture.shape[:2] != (height, width):
        raise ValueError(f"payload is damaged (a picture of {picture.shape[1::-1]}, not {(width, height)})")
    return picture
