"""COCO-Stuff (171 classes): COCO 2017's images, and the PNG maps of stuffthingmaps_trainval2017.zip."""

from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from cliptex.benchmarks.base import Benchmark
from cliptex.benchmarks.checked import IGNORE
from cliptex.benchmarks.coco_names import coco_categories
from cliptex.benchmarks.reading import Lazy, check_size, files_in, read_indices, read_rgb, require_files
from cliptex.core.errors import CliptexError

UNPACK = "unpack train2017.zip and val2017.zip here, and stuffthingmaps_trainval2017.zip in stuffthingmaps/"
FOLDERS = {"train": "train2017", "eval": "val2017"}
IMAGES, MAPS = (".", "images"), ("stuffthingmaps", "annotations")
"""Possible parents of the folders of a split: mmdetection's, and mmsegmentation's."""


@cache
def classes() -> dict[int, str]:
    """Value in the maps -> name, of the 80 things and then the 91 stuff classes. A value is the class's number in
    labels.txt of github.com/nightrome/cocostuff, which counts from 1, minus 1; eleven numbers have no annotations."""
    lines = files("cliptex.benchmarks").joinpath("coco_stuff.tsv").read_text(encoding="utf-8").splitlines()[1:]
    things = {number - 1: name for number, name, _ in coco_categories()}
    return things | {int(number) - 1: name for number, name in (line.split("\t") for line in lines)}


class CocoStuff(Benchmark):
    """`train2017` and `val2017`; a label is the position of a value among `classes`; unlabelled pixels are 255."""

    name = "coco_stuff"
    tasks = ("semantic_segmentation",)
    eval_split = "val2017"
    official_counts: ClassVar[dict[str, int]] = {"train": 118_287, "eval": 5_000}

    @property
    def class_names(self) -> list[str]:
        return list(classes().values())

    def read(self, part: str) -> Sequence[dict[str, Any]]:
        images = files_in(self._folder(IMAGES, part), (".jpg",), UNPACK)
        maps = self._folder(MAPS, part)
        return Lazy(images, lambda path: self._read(Path(path), maps))

    def names(self, part: str) -> Sequence[str]:
        return [Path(image).name for image in self.read(part).items]

    def prepare(self) -> dict[str, Any]:
        """Check that each image has a map."""
        for part in self.parts:
            maps = [f"{Path(name).stem}.png" for name in self.names(part)]
            require_files(self._folder(MAPS, part), maps, UNPACK)
        return {}

    def _folder(self, parents: tuple[str, ...], part: str) -> Path:
        candidates = [self.root / parent / FOLDERS[part] for parent in parents]
        return next((folder for folder in candidates if folder.is_dir()), candidates[0])

    def _read(self, image: Path, maps: Path) -> dict[str, Any]:
        path = maps / f"{image.stem}.png"
        values, pixels = read_indices(path), read_rgb(image)
        check_size(path, values, pixels)
        table = np.full(256, IGNORE, np.uint8)
        table[[*classes()]] = np.arange(len(classes()))
        mask = table[values]
        if (wrong := values[(mask == IGNORE) & (values != IGNORE)]).size:
            raise CliptexError(f"{path}: has the value {wrong[0]}, which is no class of COCO-Stuff; {UNPACK}")
        return {"id": image.stem, "image": pixels, "mask": mask, "file": image, "truth_file": path}


PLUGIN = CocoStuff
