"""Image views (squash, centre crop, sliding windows, random crops) and the matching ground-truth crops.

A view is a box of the image, resized to the encoder's input size. Evaluation uses the whole image, its centre, or
windows that cover it; training uses the same, or random boxes. Ground truth is sampled at the centres of a grid over
the box, so that it stays aligned with the image.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from cliptex.core.errors import CliptexError
from cliptex.evaluation.protocols.base import Augmentation, DenseInput, RandomCrops
from cliptex.models.encoders import INTERPOLATION

Size = tuple[int, int]
"""Height and width, pixels."""


@dataclass(frozen=True)
class ImageView:
    """A box in pixels of the image, which may extend beyond it; mirrored left to right if `flip`."""

    top: float
    left: float
    height: float
    width: float
    flip: bool = False

    def slices(self) -> tuple[slice, slice]:
        """Rows and columns of the image in a box of whole pixels."""
        return slice(int(self.top), int(self.top + self.height)), slice(int(self.left), int(self.left + self.width))


@dataclass(frozen=True)
class Windows:
    """Corners of squares of `side` that cover an image resized to `canvas`."""

    canvas: Size
    side: int
    corners: tuple[tuple[int, int], ...]


def windows(shape: Size, side: int, stride: int, shorter: int | None = None) -> Windows:
    """Sliding windows as in mmsegmentation: every `stride` pixels, the last one moved back to the border.
    shorter: length of the shorter side of the resized image; by default `side`."""
    scale = (shorter or side) / min(shape)
    canvas = (max(side, round(shape[0] * scale)), max(side, round(shape[1] * scale)))

    def starts(length: int) -> list[int]:
        count = max(0, -(-(length - side) // stride)) + 1
        return [min(number * stride, length - side) for number in range(count)]

    return Windows(canvas, side, tuple((top, left) for top in starts(canvas[0]) for left in starts(canvas[1])))


def windows_of(shape: Size, options: DenseInput, size: Size) -> Windows:
    """The windows of an image of height and width `shape`. Raises CliptexError for an input that is not square."""
    if size[0] != size[1]:
        raise CliptexError(f"input.size_px: windows are squares, not {size[0]} x {size[1]}; set it to one number")
    return windows(shape, size[0], options.stride_px or size[0], options.shorter_px)


def evaluation_views(shape: Size, options: DenseInput, size: Size) -> list[ImageView]:
    """The views of an image of height and width `shape` in evaluation."""
    height, width = shape
    if options.fit == "squash":
        return [ImageView(0, 0, height, width)]
    if options.fit == "windows":
        layout = windows_of(shape, options, size)
        scale_y, scale_x = height / layout.canvas[0], width / layout.canvas[1]
        height, width = size[0] * scale_y, size[1] * scale_x
        return [ImageView(top * scale_y, left * scale_x, height, width) for top, left in layout.corners]
    box = _centred(shape, size)
    return [ImageView((height - box[0]) // 2, (width - box[1]) // 2, *box)]


def _centred(shape: Size, size: Size) -> Size:
    """Height and width of the largest box in an image with the input's aspect ratio, whole pixels."""
    scale = min(shape[0] / size[0], shape[1] / size[1])
    return min(shape[0], round(size[0] * scale)), min(shape[1], round(size[1] * scale))


def random_views(
    shape: Size, options: DenseInput, size: Size, augment: Augmentation, rng: np.random.Generator
) -> list[ImageView]:
    """`augment.views` random boxes: the box of `evaluation_views` scaled by a random factor, at a random position.

    A box larger than the image starts at its corner and extends beyond it. Factors, positions and flips are a Latin
    hypercube sample (McKay et al. 1979): each view is uniformly distributed, and together they cover the whole range.
    """
    views, count = [], augment.views
    base = shape if options.fit == "squash" else _centred(shape, size)
    strata = rng.permuted(np.tile(np.arange(count), (4, 1)), axis=1)
    low, high = augment.scale
    for factor, y, x, flip in ((strata + rng.random((4, count))) / max(1, count)).T.tolist():
        scale = low + (high - low) * factor
        box = base[0] / scale, base[1] / scale
        margins = (max(0.0, whole - side) for whole, side in zip(shape, box, strict=True))
        top, left = (position * margin for position, margin in zip((y, x), margins, strict=True))
        views.append(ImageView(top, left, *box, flip=flip < augment.flip))
    return views


def random_crops(shape: Size, augment: RandomCrops, rng: np.random.Generator) -> list[ImageView]:
    """`augment.views` boxes of random area and aspect ratio, as in torchvision's RandomResizedCrop."""
    views = []
    for _ in range(augment.views):
        for _ in range(10):
            area = shape[0] * shape[1] * rng.uniform(*augment.area)
            ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
            height, width = round(np.sqrt(area / ratio)), round(np.sqrt(area * ratio))
            if 0 < height <= shape[0] and 0 < width <= shape[1]:
                break
        else:
            height = width = min(shape)
        top, left = (int(rng.integers(0, whole - side + 1)) for whole, side in zip(shape, (height, width), strict=True))
        views.append(ImageView(top, left, height, width, flip=bool(rng.random() < augment.flip)))
    return views


def crop_view(
    image: np.ndarray, view: ImageView, size: Size, interpolation: str, fill: Sequence[int] = (0, 0, 0)
) -> np.ndarray:
    """The view as uint8 [size[0], size[1], 3]; `fill` beyond the image."""
    height, width = image.shape[:2]
    whole = (view.top, view.left, view.height, view.width) == (0, 0, height, width)
    if whole and (height, width) == size:
        out = image
    else:
        resample = INTERPOLATION[interpolation]
        inside_height = min(view.height, height - view.top)
        inside_width = min(view.width, width - view.left)
        rows = max(1, round(size[0] * inside_height / view.height))
        columns = max(1, round(size[1] * inside_width / view.width))
        box = (view.left, view.top, min(view.left + inside_width, width), min(view.top + inside_height, height))
        out = np.asarray(Image.fromarray(image).resize((columns, rows), resample, box=None if whole else box))
        if (rows, columns) != size:
            padded = np.empty((*size, 3), np.uint8)
            padded[:] = fill
            padded[:rows, :columns] = out
            out = padded
    return out[:, ::-1] if view.flip else out


def crop_truth(array: np.ndarray, view: ImageView, size: Size, fill: float) -> np.ndarray:
    """Ground truth [H, W, ...] at the centres (nearest) of a grid of `size` cells over the view; `fill` beyond it."""
    positions, inside = [], []
    for axis, (start, length) in enumerate(((view.top, view.height), (view.left, view.width))):
        position = np.floor(start + (np.arange(size[axis]) + 0.5) * length / size[axis]).astype(int)
        inside.append((position >= 0) & (position < array.shape[axis]))
        positions.append(np.where(inside[-1], position, 0))
    rows, columns = positions
    out = array[rows][:, columns]
    outside = ~(inside[0][:, None] & inside[1])
    if outside.any():
        out[outside] = fill
    return out[:, ::-1] if view.flip else out
