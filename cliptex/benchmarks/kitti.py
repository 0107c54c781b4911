"""KITTI depth, Eigen split: raw images, the annotated depth maps, and lists of both."""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from cliptex.benchmarks.base import Benchmark
from cliptex.benchmarks.reading import (
    Lazy,
    check_size,
    existing,
    read_lines,
    read_rgb,
    read_uint16,
    require_files,
)
from cliptex.core.errors import CliptexError

UNPACK = "unpack the raw drives and data_depth_annotated.zip here (docs/data.md)"
LISTS = {"train": "eigen_train_files_with_gt.txt", "eval": "eigen_test_files_with_gt.txt"}
DEPTHS = ("data_depth_annotated/train", "data_depth_annotated/val", "data_depth_annotated", "train", "val")
"""Possible parents of a drive's depth maps: the archive unpacked into a folder of its name, both of its splits merged
as in BTS, or unpacked next to the drives. The drives of Eigen's test images are in both of the archive's splits."""
UNITS_PER_METRE = 256.0
DRIVE = r"(\d{4}_\d{2}_\d{2})_drive_\d{4}_sync"
FRAME = r"image_0[23]/data/\d{10}\.(?:png|jpg)"
LINE = re.compile(rf"/?(\d{{4}}_\d{{2}}_\d{{2}})/({DRIVE})/({FRAME})\s+(\S+)(?:\s+[\d.]+)?", re.ASCII)
TRUTH = re.compile(rf"{DRIVE}/proj_depth/groundtruth/image_0[23]/\d{{10}}\.png", re.ASCII)


class Item(NamedTuple):
    """A line of a list: paths of an image and of its depth map, as listed."""

    image: str
    depth: str


class Kitti(Benchmark):
    """Eigen et al.'s 697 test images, of which 652 have an annotated depth map (Uhrig et al. 2017), and the training
    images that have one, as listed by Lee et al. 2019 (BTS). Depth is in metres; pixels without a measurement are NaN.

    Lists have lines "2011_09_26/2011_09_26_drive_0002_sync/image_02/data/0000000069.png
    2011_09_26_drive_0002_sync/proj_depth/groundtruth/image_02/0000000069.png 721.5377", with None in place of a depth
    map that does not exist; the third column, the focal length, is not used.
    """

    name = "kitti"
    tasks = ("depth",)
    eval_split = "test"
    official_counts: ClassVar[dict[str, int]] = {"train": 23_158, "eval": 652}

    @property
    def class_names(self) -> list[str]:
        return []

    def read(self, part: str) -> Sequence[dict[str, Any]]:
        return Lazy(list(self._listed(part)), self._read)

    def names(self, part: str) -> Sequence[str]:
        return [item.image for item in self._listed(part)]

    def prepare(self) -> dict[str, Any]:
        """Check that all listed images and depth maps exist."""
        for part in self.parts:
            names = defaultdict(list)
            for item in self._listed(part):
                for path in (self._image(item), self._depth(item)):
                    names[path.parent].append(path.name)
            for folder, listed in names.items():
                require_files(folder, listed, UNPACK)
        return {}

    def _listed(self, part: str) -> Iterator[Item]:
        """The images with a depth map."""
        path = self.root / LISTS[part]
        for line in read_lines(path, UNPACK):
            match = LINE.fullmatch(line)
            if not match or match[1] != match[3] or not (match[5] == "None" or TRUTH.fullmatch(match[5])):
                raise CliptexError(f"{path}: {line[:120]!r} is not an image and its depth map; {UNPACK}")
            if match[5] != "None":
                yield Item(f"{match[1]}/{match[2]}/{match[4]}", match[5])

    def _image(self, item: Item) -> Path:
        """Some copies of the raw data have JPEG files in place of the PNG files."""
        path = self.root / item.image
        other = path.with_suffix(".jpg")
        return other if not path.exists() and other.exists() else path

    def _depth(self, item: Item) -> Path:
        candidates = [self.root / parent / item.depth for parent in DEPTHS]
        return next((path for path in candidates if path.exists()), candidates[0])

    def _read(self, item: Item) -> dict[str, Any]:
        image, path = self._image(item), existing(self._depth(item), UNPACK)
        units, pixels = read_uint16(path), read_rgb(image)
        check_size(path, units, pixels)
        if not units.any():
            raise CliptexError(f"{path}: has no depth; {UNPACK}")
        depth = np.where(units > 0, units / np.float32(UNITS_PER_METRE), np.float32(np.nan))
        name = f"{item.image.split('/')[1]}_{image.parts[-3]}_{image.stem}"
        return {"id": name, "image": pixels, "depth": depth, "file": image, "truth_file": path}


PLUGIN = Kitti
