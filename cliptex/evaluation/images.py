"""Images of the page as data URIs: photos, masks, depth, normals and boxes, with their legends."""

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from cliptex.core.plugins import find
from cliptex.tasks.grid import INVALID_COLOUR
from cliptex.tasks.segmentation import BACKGROUND_COLOUR, palette

MAX_SIDE_PX = 256
IGNORE = 255


@dataclass(frozen=True)
class PageImage:
    """An image of the page. An empty `src` shows the alt text instead. title, note: shown below it."""

    src: str
    alt: str
    width: int = 0
    height: int = 0
    label: bool = False
    title: str = ""
    note: str = ""


@dataclass(frozen=True)
class LegendEntry:
    """A swatch and its meaning. shape: "", "wide" or "tall"."""

    src: str
    text: str
    shape: str = ""


def embedded(content: bytes, mime: str) -> str:
    """File content of a MIME type such as `image/png` as a data URI."""
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"


def data_uri(pixels: np.ndarray, kind: str) -> str:
    """uint8 [H, W, 3] as a data URI. kind: "photo" (JPEG), "smooth" (WebP) or "flat" (PNG; few colours, exact)."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if max(image.size) > MAX_SIDE_PX:
        resample = Image.Resampling.NEAREST if kind == "flat" else Image.Resampling.LANCZOS
        image.thumbnail((MAX_SIDE_PX, MAX_SIDE_PX), resample)
    out = io.BytesIO()
    if kind == "photo":
        image.save(out, "JPEG", quality=88)
    elif kind == "smooth":
        image.save(out, "WEBP", quality=88)
    else:
        image.save(out, "PNG", optimize=True)
    mime = {"photo": "image/jpeg", "smooth": "image/webp", "flat": "image/png"}[kind]
    return embedded(out.getvalue(), mime)


def page_image(pixels: np.ndarray, kind: str, alt: str, title: str = "", note: str = "") -> PageImage:
    """A PageImage of uint8 [H, W, 3]. kind: see `data_uri`."""
    return PageImage(data_uri(pixels, kind), alt, pixels.shape[1], pixels.shape[0], kind != "photo", title, note)


def swatch(colour: Sequence[int]) -> str:
    """A small square of one colour."""
    return data_uri(np.full((8, 8, 3), colour, np.uint8), "flat")


def class_counts(masks: Iterable[np.ndarray]) -> np.ndarray:
    """Number of pixels of each class number 0-255 in the masks, int64 [256]."""
    return np.sum([np.bincount(mask.ravel(), minlength=256) for mask in masks], axis=0)


class ClassColours:
    """`rgb`: uint8 [256, 3], the colour of each class number; the most frequent classes get the most distinct colours.

    pixels: `class_counts` of all masks to draw; classes that do not occur get no colour.
    """

    def __init__(self, class_names: Sequence[str], pixels: np.ndarray):
        self.class_names = class_names
        self.rgb = np.full((256, 3), INVALID_COLOUR, np.uint8)
        free = iter(palette()[1:])
        for value in np.argsort(-pixels, kind="stable"):
            if pixels[value] and value < len(class_names):
                background = class_names[value] == "background"
                self.rgb[value] = BACKGROUND_COLOUR if background else next(free)

    def legend(self, shown: Iterable[np.ndarray]) -> list[LegendEntry]:
        """An entry for every class in the masks, the most frequent first."""
        pixels = class_counts(shown)
        order = [int(value) for value in np.argsort(-pixels, kind="stable") if pixels[value]]
        entries = [LegendEntry(swatch(self.rgb[v]), self.class_names[v]) for v in order if v < len(self.class_names)]
        return entries + [LegendEntry(swatch(INVALID_COLOUR), "ignored by the metric")] * (IGNORE in order)


def depth_pixels(depth_HW: np.ndarray, low: float, high: float) -> np.ndarray:
    """uint8 [H, W, 3] of depth in metres, clipped to [low, high]; near is bright, as in the pseudo-labels."""
    from matplotlib import colormaps

    shares = np.clip((high - depth_HW) / max(high - low, 1e-6), 0, 1)
    pixels = colormaps["viridis"](np.nan_to_num(shares), bytes=True)[..., :3].copy()
    pixels[~np.isfinite(depth_HW)] = INVALID_COLOUR
    return pixels


def depth_legend(low: float, high: float) -> list[LegendEntry]:
    """The colour scale of depth, its ends in metres."""
    ramp = depth_pixels(np.linspace(high, low, 128)[None].repeat(12, axis=0), low, high)
    invalid = LegendEntry(swatch(INVALID_COLOUR), "no ground truth")
    return [LegendEntry(data_uri(ramp, "flat"), f"{high:.1f} m (far) to {low:.1f} m (near)", "wide"), invalid]


def normals_pixels(normals_HWC: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] of normals [H, W, 3], coloured like the pseudo-labels."""
    task = find("tasks", "normals")()
    kappa = np.ones((*normals_HWC.shape[:2], 1), np.float32)
    return task.picture(np.concatenate([normals_HWC[..., :3].astype(np.float32), kappa], axis=-1))


@cache
def normals_sphere() -> LegendEntry:
    """The colours of normals, shown on a sphere."""
    v, u = np.mgrid[-1:1:96j, -1:1:96j]
    square = u**2 + v**2
    # the outward normal of a sphere at (u, v) points right by u and down by v; the stored normals point inward
    inward = np.stack([-u, -v, np.sqrt(np.clip(1 - square, 0, None))], axis=-1)
    pixels = normals_pixels(inward)
    rgba = np.concatenate([pixels, np.where(square <= 1, 255, 0)[..., None].astype(np.uint8)], axis=-1)
    out = io.BytesIO()
    Image.fromarray(rgba).save(out, "PNG", optimize=True)
    return LegendEntry(embedded(out.getvalue(), "image/png"), "surface normals (colours as on a sphere)", "tall")


def normals_legend() -> list[LegendEntry]:
    """The sphere, and the colour of pixels without ground truth."""
    return [normals_sphere(), LegendEntry(swatch(INVALID_COLOUR), "no ground truth")]


def with_boxes(image: np.ndarray, boxes: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] with outlines of boxes [n, 4] (xyxy), upscaled for thin lines. colours: uint8 [n, 3]."""
    scale = max(1, round(MAX_SIDE_PX / max(image.shape[:2])))
    size = (image.shape[1] * scale, image.shape[0] * scale)
    drawn = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(drawn)
    width = max(2, round(max(size) / 100))
    for box, colour in zip(boxes, colours, strict=True):
        left, top, right, bottom = (float(edge) * scale for edge in box)
        if right > left and bottom > top:
            pen.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=(0, 0, 0), width=width + 2)
            pen.rectangle((left, top, right, bottom), outline=tuple(int(c) for c in colour), width=width)
    return np.asarray(drawn)
