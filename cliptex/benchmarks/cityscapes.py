"""Cityscapes (19 classes): leftImg8bit/ and gtFine/ in the layout of the official archives."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from cliptex.benchmarks.base import Benchmark
from cliptex.benchmarks.checked import IGNORE
from cliptex.benchmarks.reading import Lazy, check_size, existing, files_in, folders_in, read_indices, read_rgb
from cliptex.core.errors import CliptexError

UNPACK = "unpack leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip here"
IMAGE, MASKS = "_leftImg8bit.png", ("_gtFine_labelIds.png", "_gtFine_labelTrainIds.png")
"""Ends of file names. The second kind of masks is what cityscapesScripts' createTrainIdLabelImgs.py writes."""
CLASSES = {
    7: "road",
    8: "sidewalk",
    11: "building",
    12: "wall",
    13: "fence",
    17: "pole",
    19: "traffic light",
    20: "traffic sign",
    21: "vegetation",
    22: "terrain",
    23: "sky",
    24: "person",
    25: "rider",
    26: "car",
    27: "truck",
    28: "bus",
    31: "train",
    32: "motorcycle",
    33: "bicycle",
}
"""The evaluated classes by id (cityscapesScripts, helpers/labels.py); their train ids are their positions."""
LAST_ID = 33
TRAIN_ID = np.full(256, IGNORE, np.uint8)
TRAIN_ID[[*CLASSES]] = np.arange(len(CLASSES))


class Cityscapes(Benchmark):
    """`train` and `val` with fine annotations. Ids without a train id, such as "ego vehicle" and "parking", are 255
    (ignored). Masks of train ids are read where there are none of ids."""

    name = "cityscapes"
    tasks = ("semantic_segmentation",)
    official_counts: ClassVar[dict[str, int]] = {"train": 2_975, "eval": 500}

    @property
    def class_names(self) -> list[str]:
        return list(CLASSES.values())

    def read(self, part: str) -> Sequence[dict[str, Any]]:
        folder = self.root / "leftImg8bit" / ("train" if part == "train" else "val")
        cities = folders_in(folder, UNPACK)
        return Lazy(
            [path for city in cities for path in files_in(folder / city, (IMAGE.lower(),), UNPACK)],
            lambda path: self._read(Path(path)),
        )

    def names(self, part: str) -> Sequence[str]:
        return [Path(image).name for image in self.read(part).items]

    def prepare(self) -> dict[str, Any]:
        """Check that each image has a mask."""
        for part in self.parts:
            for image in self.read(part).items:
                self._mask(Path(image))
        return {}

    def _mask(self, image: Path) -> Path:
        """The mask of an image: leftImg8bit/val/lindau/x_leftImg8bit.png -> gtFine/val/lindau/x_gtFine_labelIds.png."""
        split, city = image.parts[-3:-1]
        stem = self.root / "gtFine" / split / city / image.name[: -len(IMAGE)]
        candidates = [stem.with_name(stem.name + end) for end in MASKS]
        return next((path for path in candidates if path.exists()), None) or existing(candidates[0], UNPACK)

    def _read(self, image: Path) -> dict[str, Any]:
        path = self._mask(image)
        mask = read_indices(path)
        last = LAST_ID if path.name.endswith(MASKS[0]) else len(CLASSES) - 1
        if (wrong := mask[(mask > last) & (mask != IGNORE)]).size:
            raise CliptexError(f"{path}: has the value {wrong[0]}, but must have 0..{last} and {IGNORE}; {UNPACK}")
        pixels = read_rgb(image)
        check_size(path, mask, pixels)
        mask = TRAIN_ID[mask] if last == LAST_ID else mask
        return {"id": image.name[: -len(IMAGE)], "image": pixels, "mask": mask, "truth_file": path}


PLUGIN = Cityscapes
