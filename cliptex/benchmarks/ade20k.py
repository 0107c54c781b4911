"""ADE20K scene parsing (150 classes): ADEChallengeData2016 in the layout of the official archive."""

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from cliptex.benchmarks.base import Benchmark
from cliptex.benchmarks.reading import Lazy, check_size, files_in, read_indices, read_lines, read_rgb, require_files
from cliptex.core.errors import CliptexError

FOLDER = "ADEChallengeData2016"
NUM_CLASSES = 150
UNPACK = "unpack ADEChallengeData2016.zip here"


class Ade20k(Benchmark):
    """`training` and `validation`. In the files, 0 is "other" and 1..150 are classes; here 255 (ignored) and 0..149."""

    name = "ade20k"
    tasks = ("semantic_segmentation",)
    official_counts: ClassVar[dict[str, int]] = {"train": 20_210, "eval": 2_000}

    @cached_property
    def class_names(self) -> list[str]:
        """First synonym of each row of objectInfo150.txt: a header, then five or six columns separated by tabs, index
        first, names last. Some columns end with a blank."""
        path = self.root / FOLDER / "objectInfo150.txt"
        rows = [[column.strip() for column in line.split("\t")] for line in read_lines(path, UNPACK)]
        rows = [row for row in rows if row[0].lower() != "idx"]
        names = [re.split("[,;]", row[-1])[0].strip() for row in rows]
        for number, (row, name) in enumerate(zip(rows, names, strict=True), 1):
            if row[0] != str(number) or len(row) not in (5, 6) or not name:
                found = " ".join(row)[:80]
                raise CliptexError(f"{path}: expected class {number} and its name, not {found!r}; {UNPACK}")
        if len(names) != NUM_CLASSES:
            raise CliptexError(f"{path}: has {len(names)} classes, not {NUM_CLASSES}; {UNPACK}")
        return names

    def read(self, part: str) -> Sequence[dict[str, Any]]:
        split = "training" if part == "train" else "validation"
        images = files_in(self.root / FOLDER / "images" / split, (".jpg",), UNPACK)
        return Lazy(images, lambda path: self._read(Path(path), split))

    def names(self, part: str) -> Sequence[str]:
        return [Path(image).name for image in self.read(part).items]

    def prepare(self) -> dict[str, Any]:
        """Check that each image has a mask, and each class a name."""
        for part, split in (("train", "training"), ("eval", "validation")):
            masks = [f"{Path(image).stem}.png" for image in self.read(part).items]
            require_files(self.root / FOLDER / "annotations" / split, masks, UNPACK)
        return {"classes": len(self.class_names)}

    def _read(self, image: Path, split: str) -> dict[str, Any]:
        path = self.root / FOLDER / "annotations" / split / f"{image.stem}.png"
        mask = read_indices(path)
        if mask.max(initial=0) > NUM_CLASSES:
            raise CliptexError(f"{path}: has values above {NUM_CLASSES}; this is not the scene-parsing annotation")
        pixels = read_rgb(image)
        check_size(path, mask, pixels)
        # uint8 arithmetic wraps 0 - 1 to 255, which is the ignore label
        return {"id": image.stem, "image": pixels, "mask": mask - np.uint8(1), "truth_file": path}


PLUGIN = Ade20k
