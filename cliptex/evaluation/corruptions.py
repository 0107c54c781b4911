"""Evaluation images made worse: common corruptions at five severities, and the miniature's scenes in another light.

After Hendrycks and Dietterich 2019, "Benchmarking neural network robustness to common corruptions and perturbations",
whose strengths these are; lengths are given for images of side 224 and follow the image's size.
"""

import io
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from cliptex.benchmarks.base import Benchmark
from cliptex.benchmarks.reading import Lazy
from cliptex.config import Corruptions
from cliptex.core.errors import CliptexError
from cliptex.core.plugins import find

CLEAN = "clean"
SIDE = 224
Corruption = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]
"""(image float32 [H, W, 3] in 0..1, severity 1..5, generator) -> the same, in 0..1 after clipping."""


def _noise(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise."""
    deviation = (0.08, 0.12, 0.18, 0.26, 0.38)[severity - 1]
    return image + np.float32(deviation) * rng.standard_normal(image.shape, np.float32)


def _blur(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Gaussian blur."""
    radius = (1, 2, 3, 4, 6)[severity - 1] * min(image.shape[:2]) / SIDE
    return _floats(_picture(image).filter(ImageFilter.GaussianBlur(radius)))


def _jpeg(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """JPEG of low quality."""
    file = io.BytesIO()
    _picture(image).save(file, "JPEG", quality=(25, 18, 15, 10, 7)[severity - 1])
    return _floats(Image.open(file))


def _contrast(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Less contrast, around the mean of each channel."""
    mean = image.mean(axis=(0, 1), keepdims=True)
    return mean + (image - mean) * np.float32((0.4, 0.3, 0.2, 0.1, 0.05)[severity - 1])


def _fog(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """White fog with lumps of all sizes; finer ones are weaker by a power of their size."""
    strength, decay = ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))[severity - 1]
    height, width = image.shape[:2]
    lumps, weight, cells = np.zeros((height, width), np.float32), 1.0, 2
    while cells <= max(height, width):
        coarse = Image.fromarray(rng.random((cells, cells), np.float32), "F")
        lumps += np.float32(weight) * np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
        weight, cells = weight / decay, 2 * cells
    lumps = (lumps - lumps.min()) / max(float(lumps.max() - lumps.min()), 1e-6)
    brightest = float(image.max())
    return (image + strength * lumps[..., None]) * np.float32(brightest / (brightest + strength))


KINDS: dict[str, Corruption] = {"noise": _noise, "blur": _blur, "jpeg": _jpeg, "contrast": _contrast, "fog": _fog}


def _picture(image: np.ndarray) -> Image.Image:
    return Image.fromarray(_bytes(image))


def _floats(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("RGB"), np.float32) / 255


def _bytes(image: np.ndarray) -> np.ndarray:
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


def corrupt(image: np.ndarray, kind: str, severity: int, name: str) -> np.ndarray:
    """An image, uint8 [H, W, 3], made worse; always the same for the same `name`, whatever the severity."""
    rng = np.random.default_rng([zlib.crc32(kind.encode()), zlib.crc32(name.encode())])
    return _bytes(KINDS[kind](image.astype(np.float32) / 255, severity, rng))


def variants(options: Corruptions) -> list[str]:
    """Names of what each evaluation image is shown as: `clean`, `noise-1`, ..., and the looks."""
    return [CLEAN, *(f"{kind}-{severity}" for kind in options.kinds for severity in options.severities), *options.looks]


def variant_of(name: str) -> str:
    """Of a sample's id: `noise-1/2007_000001` -> `noise-1`."""
    return name.partition("/")[0]


class Corrupted(Benchmark):
    """A benchmark whose evaluation images come once clean, once for each corruption and severity, once in each look.

    Its training images are the clean ones. A sample's id is `{variant}/{id}`.
    """

    def __init__(self, clean: Benchmark, options: Corruptions, looks: dict[str, Benchmark]):
        """looks: the same benchmark with its evaluation scenes rendered in each of `options.looks`."""
        if "detection" in clean.tasks:
            raise CliptexError(f"study.probes.{clean.name}: detection cannot be judged under corruptions; leave it out")
        super().__init__(clean.root, {})  # the counts of official data are checked in `clean`
        self.clean, self.options, self.looks = clean, options, looks
        self.name, self.tasks, self.eval_split = clean.name, clean.tasks, clean.eval_split

    @classmethod
    def of(cls, name: str, options: Corruptions, resources: Path) -> "Corrupted":
        """From `resources`/{name} and, for each look, {name}_{look}."""
        plugin = find("benchmarks", name)
        return cls(plugin(resources / name), options, {x: plugin(resources / f"{name}_{x}") for x in options.looks})

    @property
    def identity(self) -> list[Any]:
        return [*self.clean.identity, self.options.model_dump(mode="json")]

    @property
    def class_names(self) -> list[str]:
        return self.clean.class_names

    def read(self, part: str) -> Sequence[dict[str, Any]]:
        """For "eval" all variants, one after the other."""
        if part == "train":
            return self.clean.samples(part)
        clean = self.clean.samples(part)
        most = self.options.images or len(clean)
        items = []
        for variant in variants(self.options):
            source = self.looks[variant].samples(part) if variant in self.looks else clean
            items += [(variant, source, index) for index in range(min(most, len(source)))]
        return Lazy(items, self._shown)

    def _shown(self, item: tuple[str, Sequence[dict[str, Any]], int]) -> dict[str, Any]:
        variant, source, index = item
        sample = dict(source[index])
        kind, _, severity = variant.partition("-")
        if severity:
            sample["image"] = corrupt(sample["image"], kind, int(severity), str(sample["id"]))
        return sample | {"id": f"{variant}/{sample['id']}"}
