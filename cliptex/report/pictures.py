"""How things are drawn for the page: images as data URIs, class colours and their legends, depth, normals, boxes."""

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from cliptex.core.plugins import find
from cliptex.tasks.grid import INVALID_COLOUR
from cliptex.tasks.segmentation import BACKGROUND_COLOUR, palette

MAX_SIDE_PX = 256
IGNORE = 255


@dataclass(frozen=True)
class Picture:
    """An image of the page. Without `src`, the alt text is shown in its place. title, note: shown below it."""

    src: str
    alt: str
    width: int = 0
    height: int = 0
    label: bool = False
    title: str = ""
    note: str = ""


@dataclass(frozen=True)
class Key:
    """An entry of a legend: a swatch, and what it means. shape: "", "wide" or "tall"."""

    src: str
    text: str
    shape: str = ""


def embedded(content: bytes, kind: str) -> str:
    """A file of a kind such as `image/png` as a data URI."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


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


def picture(pixels: np.ndarray, kind: str, alt: str, title: str = "", note: str = "") -> Picture:
    """A Picture of uint8 [H, W, 3]."""
    return Picture(data_uri(pixels, kind), alt, pixels.shape[1], pixels.shape[0], kind != "photo", title, note)


def swatch(colour: Sequence[int]) -> str:
    """A small square of one colour."""
    return data_uri(np.full((8, 8, 3), colour, np.uint8), "flat")


def occurring(masks: Iterable[np.ndarray]) -> np.ndarray:
    """How often each of 256 class numbers is in some masks, int64 [256]."""
    return np.sum([np.bincount(mask.ravel(), minlength=256) for mask in masks], axis=0)


class ClassColours:
    """`of`: uint8 [256, 3], a colour for each class number, the most frequent classes farthest apart.

    pixels: how often each of the 256 numbers occurs (`occurring`); classes that never do have no colour.
    """

    def __init__(self, class_names: Sequence[str], pixels: np.ndarray):
        self.class_names = class_names
        self.of = np.full((256, 3), INVALID_COLOUR, np.uint8)
        free = iter(palette()[1:])
        for value in np.argsort(-pixels, kind="stable"):
            if pixels[value] and value < len(class_names):
                background = class_names[value] == "background"
                self.of[value] = BACKGROUND_COLOUR if background else next(free)

    def legend(self, shown: Iterable[np.ndarray]) -> list[Key]:
        """An entry for every class in some masks, the most frequent first."""
        pixels = occurring(shown)
        order = [int(value) for value in np.argsort(-pixels, kind="stable") if pixels[value]]
        keys = [Key(swatch(self.of[v]), self.class_names[v]) for v in order if v < len(self.class_names)]
        return keys + [Key(swatch(INVALID_COLOUR), "left out of the metric")] * (IGNORE in order)


def depth_pixels(depth_HW: np.ndarray, low: float, high: float) -> np.ndarray:
    """uint8 [H, W, 3] of depth in metres within [low, high]: near is bright, as in the pseudo-labels."""
    from matplotlib import colormaps

    shares = np.clip((high - depth_HW) / max(high - low, 1e-6), 0, 1)
    pixels = colormaps["viridis"](np.nan_to_num(shares), bytes=True)[..., :3].copy()
    pixels[~np.isfinite(depth_HW)] = INVALID_COLOUR
    return pixels


def depth_legend(low: float, high: float) -> list[Key]:
    """The scale of depth with its ends in metres."""
    ramp = depth_pixels(np.linspace(high, low, 128)[None].repeat(12, axis=0), low, high)
    invalid = Key(swatch(INVALID_COLOUR), "no truth")
    return [Key(data_uri(ramp, "flat"), f"{high:.1f} m (far) to {low:.1f} m (near)", "wide"), invalid]


def normals_pixels(normals_HWC: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] of normals, drawn as the pseudo-labels are."""
    task = find("tasks", "normals")()
    kappa = np.ones((*normals_HWC.shape[:2], 1), np.float32)
    return task.picture(np.concatenate([normals_HWC[..., :3].astype(np.float32), kappa], axis=-1))


def hemisphere() -> Key:
    """Colours of the normals of a ball: what faces left, right, up, down and the viewer."""
    v, u = np.mgrid[-1:1:96j, -1:1:96j]
    square = u**2 + v**2
    # on a ball the outward normal at (u, v) points right by u and down by v; the stored one points inward
    inward = np.stack([-u, -v, np.sqrt(np.clip(1 - square, 0, None))], axis=-1)
    pixels = normals_pixels(inward)
    rgba = np.concatenate([pixels, np.where(square <= 1, 255, 0)[..., None].astype(np.uint8)], axis=-1)
    out = io.BytesIO()
    Image.fromarray(rgba).save(out, "PNG", optimize=True)
    return Key(embedded(out.getvalue(), "image/png"), "normals: the colours of a ball", "tall")


def normals_legend() -> list[Key]:
    """The ball, and what has no truth."""
    return [hemisphere(), Key(swatch(INVALID_COLOUR), "no truth")]


def with_boxes(image: np.ndarray, boxes: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] with the outlines of boxes (xyxy), enlarged so that the lines are thin."""
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
