"""How predictions and ground truth are drawn in an album, and images of the page as data URIs with their legends.

A prediction has the form of `ProbeTask.thumbnail`; a sample is one of a benchmark's.
"""

import base64
import io
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from cliptex.core.plugins import find
from cliptex.evaluation.thumbnails import MASK_SIDE_PX, shrunk
from cliptex.tasks.grid import INVALID_COLOUR
from cliptex.tasks.segmentation import BACKGROUND_COLOUR, palette

Labels = Mapping[str, np.ndarray]
Sample = Mapping[str, Any]
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
    codec = {"photo": "jpeg", "smooth": "webp", "flat": "png"}[kind]
    image.save(out, codec, **({"optimize": True} if kind == "flat" else {"quality": 88}))
    return embedded(out.getvalue(), f"image/{codec}")


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
    pixels: `class_counts` of all masks to draw; classes that do not occur get no colour."""

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


class Drawing(ABC):
    """The drawing of one task's labels in one album. note: explanation under the album's title. content: the beginning
    of an alt text, before the image's id. lists_contents: whether `contents` stand below the image, too."""

    note: str
    content: str
    lists_contents = False

    def __init__(self, class_names: Sequence[str], images: Sequence[tuple[Sample, Sequence[Labels]]]):
        """images: every sample of the album with its predictions."""
        self.class_names = class_names

    @abstractmethod
    def truth(self, sample: Sample) -> Labels:
        """The ground truth of a sample in the form of a prediction."""

    def visible(self, sample: Sample, prediction: Labels) -> Labels:
        """The part of a prediction that is drawn."""
        return prediction

    @abstractmethod
    def pixels(self, sample: Sample, labels: Labels) -> tuple[np.ndarray, str]:
        """uint8 [H, W, 3] and its kind (`data_uri`)."""

    @abstractmethod
    def legend(self, sample: Sample, shown: Sequence[Labels]) -> list[LegendEntry]:
        """The legend below the ground truth and the predictions of a sample."""

    def contents(self, labels: Labels) -> list[str]:
        """What is drawn, in words, for the alt text."""
        return []


class _ClassDrawing(Drawing):
    """One colour a class in the whole album."""

    def __init__(self, class_names: Sequence[str], images: Sequence[tuple[Sample, Sequence[Labels]]]):
        super().__init__(class_names, images)
        shown = [
            labels
            for sample, predictions in images
            for labels in (self.truth(sample), *(self.visible(sample, prediction) for prediction in predictions))
        ]
        self.colours = ClassColours(class_names, class_counts(map(self.codes, shown)))

    @abstractmethod
    def codes(self, labels: Labels) -> np.ndarray:
        """Class numbers of what is drawn."""

    def legend(self, sample: Sample, shown: Sequence[Labels]) -> list[LegendEntry]:
        return self.colours.legend(map(self.codes, shown))


class MaskDrawing(_ClassDrawing):
    """Class masks."""

    note = "Each class has the same colour in the whole album."
    content = "classes in"

    def truth(self, sample: Sample) -> Labels:
        return {"mask": shrunk(sample["mask"], MASK_SIDE_PX)}

    def codes(self, labels: Labels) -> np.ndarray:
        return labels["mask"]

    def pixels(self, sample: Sample, labels: Labels) -> tuple[np.ndarray, str]:
        return self.colours.rgb[labels["mask"]], "flat"

    def contents(self, labels: Labels) -> list[str]:
        return [self.class_names[code] for code in np.unique(labels["mask"]) if code < len(self.class_names)]


class BoxDrawing(_ClassDrawing):
    """Bounding boxes, of each model as many as there are objects: weak detectors score below any fixed threshold."""

    note = (
        "For each model the boxes with the highest scores, as many as there are objects in the image (at least one), "
        "with class and score. AP ranks the boxes of each class separately and also counts those not drawn. Each class "
        "has the same colour in the whole album."
    )
    content = "boxes in"
    lists_contents = True

    def truth(self, sample: Sample) -> Labels:
        return {name: sample[name] for name in ("boxes", "labels")}

    def visible(self, sample: Sample, prediction: Labels) -> Labels:
        num_objects = max(1, int((~sample["crowd"]).sum()))
        return {name: values[:num_objects] for name, values in prediction.items()}

    def codes(self, labels: Labels) -> np.ndarray:
        return labels["labels"].astype(int)

    def pixels(self, sample: Sample, labels: Labels) -> tuple[np.ndarray, str]:
        return with_boxes(sample["image"], labels["boxes"], self.colours.rgb[self.codes(labels)]), "photo"

    def contents(self, labels: Labels) -> list[str]:
        classes = [self.class_names[int(code)] for code in labels["labels"]]
        if "scores" not in labels:
            return classes
        return [f"{name} {score:.2f}" for name, score in zip(classes, labels["scores"], strict=True)]


class RegionDrawing(BoxDrawing):
    """Ground-truth boxes with the classes that a model gives them."""

    note = (
        "The ground-truth boxes, each with the class whose name is nearest to it and the cosine of the two; at most "
        "20, those with the highest cosines. Each class has the same colour in the whole album."
    )

    def truth(self, sample: Sample) -> Labels:
        return {name: sample[name][~sample["crowd"]] for name in ("boxes", "labels")}

    def visible(self, sample: Sample, prediction: Labels) -> Labels:
        return prediction


class DepthDrawing(Drawing):
    """Depth maps; all of an image share one range."""

    note = "All depth maps of an image share one range, the 1st to the 99th percentile of its ground truth."
    content = "depth of"

    def truth(self, sample: Sample) -> Labels:
        return {"depth": sample["depth"]}

    def pixels(self, sample: Sample, labels: Labels) -> tuple[np.ndarray, str]:
        return depth_pixels(labels["depth"], *_depth_range(sample)), "smooth"

    def legend(self, sample: Sample, shown: Sequence[Labels]) -> list[LegendEntry]:
        return depth_legend(*_depth_range(sample))


def _depth_range(sample: Sample) -> tuple[float, float]:
    known = sample["depth"][np.isfinite(sample["depth"])]
    return tuple(np.percentile(known, [1, 99]).tolist()) if known.size else (0.0, 1.0)


class NormalsDrawing(Drawing):
    """Surface normals."""

    note = "Red, green, blue: the surface faces right, up, the viewer."
    content = "normals of"

    def truth(self, sample: Sample) -> Labels:
        return {"normals": sample["normals"]}

    def pixels(self, sample: Sample, labels: Labels) -> tuple[np.ndarray, str]:
        return normals_pixels(labels["normals"]), "smooth"

    def legend(self, sample: Sample, shown: Sequence[Labels]) -> list[LegendEntry]:
        return normals_legend()
