"""PASCAL-Context: VOC 2010's images with the publisher's MATLAB maps of 459 classes, or mmsegmentation's PNG masks."""

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cliptex.benchmarks.base import Benchmark
from cliptex.benchmarks.reading import (
    Lazy,
    check_size,
    read_indices,
    read_lines,
    read_mat,
    read_names,
    read_rgb,
    require_files,
)
from cliptex.core.errors import CliptexError

CLASS_NAMES = (
    *("aeroplane", "bag", "bed", "bedclothes", "bench", "bicycle", "bird", "boat", "book", "bottle", "building", "bus"),
    *("cabinet", "car", "cat", "ceiling", "chair", "cloth", "computer", "cow", "cup", "curtain", "dog", "door"),
    *("fence", "floor", "flower", "food", "grass", "ground", "horse", "keyboard", "light", "motorbike", "mountain"),
    *("mouse", "person", "plate", "platform", "pottedplant", "road", "rock", "sheep", "shelves", "sidewalk", "sign"),
    *("sky", "snow", "sofa", "table", "track", "train", "tree", "truck", "tvmonitor", "wall", "water", "window"),
    "wood",
)
"""The 59 most frequent classes (Mottaghi et al. 2014), in alphabetical order, as in mmsegmentation."""
NUM_ALL = 459
UNPACK = "unpack VOCtrainval_03-May-2010.tar and PASCAL-Context's trainval.tar.gz here"
CONVERT = "convert the annotations again with mmsegmentation's tools/dataset_converters/pascal_context.py"


class PascalContext(Benchmark):
    """`train` and `val` of VOC 2010.

    Variants: `context59`, where pixels of other classes are 255 (ignored), and `context60`, where they are class 0,
    "background". Masks are trainval/{name}.mat, whose numbers labels.txt names. If there is a folder
    SegmentationClassContext, it is read instead, with its own lists, which lack 2 and 1 of the images.
    """

    name = "pascal_context"
    tasks = ("semantic_segmentation",)
    variants = ("context59", "context60")

    def __init__(self, root: Path, mark: Mapping[str, Any] | None = None):
        super().__init__(root, mark)
        self.folder = self.root / "VOCdevkit" / "VOC2010"
        self.converted = (self.folder / "SegmentationClassContext").is_dir()
        """Whether the masks are mmsegmentation's: 0 background, 1..59."""

    @property
    def official_counts(self) -> dict[str, int]:
        return {"train": 4_996, "eval": 5_104} if self.converted else {"train": 4_998, "eval": 5_105}

    @property
    def class_names(self) -> list[str]:
        return [*(("background",) if self.variant == "context60" else ()), *CLASS_NAMES]

    def read(self, part: str) -> Sequence[dict[str, Any]]:
        return Lazy(self._listed(part), self._read)

    def names(self, part: str) -> Sequence[str]:
        return self._listed(part)

    def prepare(self) -> dict[str, Any]:
        """Check that all listed images and masks exist."""
        for part in self.parts:
            names = self._listed(part)
            require_files(self.folder / "JPEGImages", [f"{name}.jpg" for name in names], UNPACK)
            if self.converted:
                require_files(self.folder / "SegmentationClassContext", [f"{name}.png" for name in names], CONVERT)
            else:
                require_files(self.root / "trainval", [f"{name}.mat" for name in names], UNPACK)
        return {}

    def _listed(self, part: str) -> list[str]:
        kind = "SegmentationContext" if self.converted else "Main"
        path = self.folder / "ImageSets" / kind / ("train.txt" if part == "train" else "val.txt")
        return read_names(path, CONVERT if self.converted else UNPACK)

    @cached_property
    def _table(self) -> np.ndarray:
        """uint8 [460]: number in the MATLAB maps -> 1..59, or 0 for "background", by labels.txt ("2: aeroplane")."""
        path = self.root / "labels.txt"
        rows = [re.fullmatch(r"(\d{1,3})\s*:\s*(.+)", line) for line in read_lines(path, UNPACK)]
        numbers = {row[2].strip(): int(row[1]) for row in rows if row}
        missing = [name for name in CLASS_NAMES if not 0 < numbers.get(name, 0) <= NUM_ALL]
        if missing:
            raise CliptexError(f"{path}: has no line 'NUMBER: {missing[0]}', a number up to {NUM_ALL}; {UNPACK}")
        table = np.zeros(NUM_ALL + 1, np.uint8)
        table[[numbers[name] for name in CLASS_NAMES]] = np.arange(1, len(CLASS_NAMES) + 1)
        return table

    def _read(self, name: str) -> dict[str, Any]:
        if self.converted:
            path = self.folder / "SegmentationClassContext" / f"{name}.png"
            mask = read_indices(path)
            if (highest := mask.max(initial=0)) > len(CLASS_NAMES):
                raise CliptexError(f"{path}: has the value {highest}, but must have 0..{len(CLASS_NAMES)}; {CONVERT}")
        else:
            path = self.root / "trainval" / f"{name}.mat"
            mask = self._table[read_label_map(path)]
        image = read_rgb(self.folder / "JPEGImages" / f"{name}.jpg")
        check_size(path, mask, image)
        if self.variant == "context59":
            mask = mask - np.uint8(1)  # uint8 arithmetic wraps 0 - 1 to 255, which is the ignore label
        return {"id": name, "image": image, "mask": mask, "truth_file": path}


def read_label_map(path: Path) -> np.ndarray:
    """The class numbers [H, W], 0..459, of trainval/{name}.mat."""
    numbers = read_mat(path, UNPACK).get("LabelMap")
    if not isinstance(numbers, np.ndarray) or numbers.ndim != 2 or numbers.dtype.kind not in "iu":
        raise CliptexError(f"{path}: has no LabelMap, a 2-D integer array; {UNPACK}")
    if numbers.size and not 0 <= numbers.min() <= numbers.max() <= NUM_ALL:
        raise CliptexError(f"{path}: has values {numbers.min()} to {numbers.max()}, not 0 to {NUM_ALL}; {UNPACK}")
    return numbers


PLUGIN = PascalContext
