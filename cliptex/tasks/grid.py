"""What the tasks share: views and resizing of label grids, and lossless packing of integer planes.

Every function takes pixel centres at (i + 0.5) / n, the convention of an image resized after being cropped.
"""

from functools import cache, lru_cache
from typing import TYPE_CHECKING

import numpy as np

from cliptex.tasks.base import View

if TYPE_CHECKING:
    import pyarrow

WHOLE = View(top=0.0, left=0.0, height=1.0, width=1.0, flip=False)
INVALID_COLOUR = (64, 64, 64)


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
    rows = _overlaps(values_HWC.shape[0], view.top, view.height, height)
    columns = _overlaps(values_HWC.shape[1], view.left, view.width, width)
    if view.flip:
        columns = columns[::-1]
    if valid_HW.all():
        return _mean(rows, columns, values_HWC)
    values_HWC = np.where(valid_HW[..., None], values_HWC, np.float32(0))
    mean = _mean(rows, columns, np.concatenate([values_HWC, valid_HW[..., None]], axis=-1, dtype=np.float32))
    share = mean[..., -1:]
    return np.where(share >= 0.5, mean[..., :-1] / np.maximum(share, 0.5), np.float32(np.nan))


@lru_cache(maxsize=8)  # the tasks of one sample share a view
def _overlaps(pixels: int, start: float, length: float, size: int) -> np.ndarray:
    """float32 [size, pixels]: share of each output pixel's extent that lies in each input pixel; rows sum to 1."""
    edges = (np.arange(size + 1) * (length / size) + start) * pixels
    covered = np.clip(edges[:, None] - np.arange(pixels), 0, 1)
    overlaps = covered[1:] - covered[:-1]
    overlaps = (overlaps / overlaps.sum(axis=1, keepdims=True)).astype(np.float32)
    overlaps.flags.writeable = False
    return overlaps


def _mean(rows: np.ndarray, columns: np.ndarray, values_HWC: np.ndarray) -> np.ndarray:
    height, width, channels = values_HWC.shape
    halfway = rows @ np.ascontiguousarray(values_HWC).reshape(height, width * channels)
    return columns @ halfway.reshape(-1, width, channels)


@cache
def _zstd() -> "pyarrow.Codec":
    import pyarrow

    return pyarrow.Codec("zstd", compression_level=3)


def pack(planes: np.ndarray, *, predict: bool) -> bytes:
    """Unsigned integers [..., H, W] to bytes, without loss.

    predict: store the difference of each value from left + up - upper left (modulo), which makes smooth planes small.
    Integers wider than a byte are stored as planes of bytes, differences as 0, -1, 1, -2, ..., so that the high bytes
    of small ones are 0.
    """
    if predict:
        planes = np.diff(planes, axis=-1, prepend=planes.dtype.type(0))
        planes = np.diff(planes, axis=-2, prepend=planes.dtype.type(0))
        if planes.itemsize > 1:
            signed = planes.view(np.dtype(f"i{planes.itemsize}"))
            planes = ((signed << 1) ^ (signed >> (8 * planes.itemsize - 1))).view(planes.dtype)
    octets = np.ascontiguousarray(planes).reshape(-1, 1).view(np.uint8)  # little-endian, as every platform of torch is
    return _zstd().compress(np.ascontiguousarray(octets.T), asbytes=True)


def unpack(payload: bytes | memoryview, shape: tuple[int, ...], dtype: type, *, predict: bool) -> np.ndarray:
    """The array of `shape` and `dtype` that was packed. Raises ValueError when the payload is damaged."""
    dtype = np.dtype(dtype)
    count = int(np.prod(shape))
    try:
        octets = _zstd().decompress(payload, decompressed_size=count * dtype.itemsize, asbytes=True)
    except OSError as error:
        raise ValueError(f"payload is damaged ({error})") from error
    low, *higher = np.frombuffer(octets, np.uint8).reshape(dtype.itemsize, *shape)
    planes = low.astype(dtype, copy=False)
    for place, octet in enumerate(higher, start=1):
        planes |= octet.astype(dtype) << (8 * place)
    if predict:
        if dtype.itemsize > 1:
            planes = (planes >> 1) ^ -(planes & 1)
        planes = np.cumsum(np.cumsum(planes, axis=-2, dtype=dtype), axis=-1, dtype=dtype)
    return planes
