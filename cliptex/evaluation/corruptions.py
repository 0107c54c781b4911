"""Corrupted evaluation images: common corruptions at five severities, and the miniature's scenes in other lighting.

Strengths are those of Hendrycks and Dietterich 2019, "Benchmarking neural network robustness to common corruptions and
perturbations"; lengths are for images of side 224 and scale with the image.
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
"""(image float32 [H, W, 3] in 0..1, severity 1..5, generator) -> corrupted image, in 0..1 after clipping."""


def _noise(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    deviation = (0.08, 0.12, 0.18, 0.26, 0.38)[severity - 1]
    return image + np.float32(deviation) * rng.standard_normal(image.shape, np.float32)


def _blur(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    radius = (1, 2, 3, 4, 6)[severity - 1] * min(image.shape[:2]) / SIDE
    return _to_float(Image.fromarray(_to_uint8(image)).filter(ImageFilter.GaussianBlur(radius)))


def _jpeg(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(_to_uint8(image)).save(file, "JPEG", quality=(25, 18, 15, 10, 7)[severity - 1])
    return _to_float(Image.open(file))


def _contrast(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    mean = image.mean(axis=(0, 1), keepdims=True)
    return mean + (image - mean) * np.float32((0.4, 0.3, 0.2, 0.1, 0.05)[severity - 1])


def _fog(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    # noise at all scales, weaker by a constant factor at each finer scale
    strength, decay = ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))[severity - 1]
    height, width = image.shape[:2]
    density, weight, cells = np.zeros((height, width), np.float32), 1.0, 2
    while cells <= max(height, width):
        coarse = Image.fromarray(rng.random((cells, cells), np.float32), "F")
        density += np.float32(weight) * np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
        weight, cells = weight / decay, 2 * cells
    density = (density - density.min()) / max(float(density.max() - density.min()), 1e-6)
    brightest = float(image.max())
    return (image + strength * density[..., None]) * np.float32(brightest / (brightest + strength))


KINDS: dict[str, Corruption] = {"noise": _noise, "blur": _blur, "jpeg": _jpeg, "contrast": _contrast, "fog": _fog}
"""Gaussian noise and blur, JPEG at low quality, contrast lowered around each channel's mean, white fog."""


def _to_float(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"), np.float32) / 255


def _to_uint8(image: np.ndarray) -> np.ndarray:
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


def corrupt(image: np.ndarray, kind: str, severity: int, name: str) -> np.ndarray:
    """Corrupt an image, uint8 [H, W, 3]. The random draws depend on `kind` and `name`, not on the severity."""
    rng = np.random.default_rng([zlib.crc32(kind.encode()), zlib.crc32(name.encode())])
    return _to_uint8(KINDS[kind](image.astype(np.float32) / 255, severity, rng))


def variants(options: Corruptions) -> list[str]:
    """Names of the variants of each evaluation image: `clean`, `noise-1`, ..., and the looks."""
    return [CLEAN, *(f"{kind}-{severity}" for kind in options.kinds for severity in options.severities), *options.looks]


def variant_of(name: str) -> str:
    """The variant in a sample's id: `noise-1/2007_000001` -> `noise-1`."""
    return name.partition("/")[0]


class CorruptedBenchmark(Benchmark):
    """A benchmark whose evaluation split has each image clean, with each corruption and severity, and in each look.
    The training images are the clean ones. A sample's id is `{variant}/{id}`."""

    def __init__(self, clean: Benchmark, options: Corruptions, looks: dict[str, Benchmark]):
        """looks: the same benchmark rendered in each of `options.looks`."""
        if "detection" in clean.tasks:
            raise CliptexError(
                f"study.probes.{clean.name}: detection cannot be evaluated under corruptions; remove the benchmark"
            )
        super().__init__(clean.root, {})  # the counts of official data are checked in `clean`
        self.clean, self.options, self.looks = clean, options, looks
        self.name, self.tasks, self.eval_split = clean.name, clean.tasks, clean.eval_split

    @classmethod
    def of(cls, name: str, options: Corruptions, resources: Path) -> "CorruptedBenchmark":
        """Read `resources`/{name} and, for each look, {name}_{look}."""
        plugin = find("benchmarks", name)
        looks = {look: plugin(resources / f"{name}_{look}") for look in options.looks}
        return cls(plugin(resources / name), options, looks)

    @property
    def identity(self) -> list[Any]:
        return [*self.clean.identity, self.options.model_dump(mode="json")]

    @property
    def class_names(self) -> list[str]:
        return self.clean.class_names

    def read(self, part: str) -> Sequence[dict[str, Any]]:
        """For "eval", the samples of all variants, one variant after the other."""
        clean = self.clean.samples(part)
        if part == "train":
            return clean
        limit = self.options.images or len(clean)
        items = []
        for variant in variants(self.options):
            source = self.looks[variant].samples(part) if variant in self.looks else clean
            items += [(variant, source, index) for index in range(min(limit, len(source)))]
        return Lazy(items, self._sample)

    def _sample(self, item: tuple[str, Sequence[dict[str, Any]], int]) -> dict[str, Any]:
        variant, source, index = item
        sample = dict(source[index])
        kind, _, severity = variant.partition("-")
        if severity:
            sample["image"] = corrupt(sample["image"], kind, int(severity), str(sample["id"]))
        return sample | {"id": f"{variant}/{sample['id']}"}
