"""PASCAL VOC 2012 semantic segmentation: VOCdevkit/VOC2012 as the official archive unpacks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cliptex.benchmarks.base import Benchmark
from cliptex.benchmarks.reading import Lazy, read_indices, read_lines, read_rgb
from cliptex.errors import CliptexError

CLASS_NAMES = (
    "background",
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


class Voc(Benchmark):
    """`train` and `val` of ImageSets/Segmentation; 21 classes with background, the border 255 is ignored."""

    name = "voc"
    tasks = ("semantic_segmentation",)
    eval_split = "val"

    def __init__(self, root: Path):
        super().__init__(root)
        self.folder = self.root / "VOCdevkit" / "VOC2012"

    @property
    def class_names(self) -> list[str]:
        return list(CLASS_NAMES)

    def samples(self, part: str) -> Sequence[dict[str, Any]]:
        listing = self.folder / "ImageSets" / "Segmentation" / f"{'train' if part == 'train' else 'val'}.txt"
        return Lazy(read_lines(listing, "unpack VOCtrainval_11-May-2012.tar here"), self._read)

    def _read(self, name: str) -> dict[str, Any]:
        path = self.folder / "SegmentationClass" / f"{name}.png"
        mask = read_indices(path)
        if ((mask > 20) & (mask != 255)).any():
            raise CliptexError(f"{path}: holds values other than 0..20 and 255; unpack the official archive again")
        return {"id": name, "image": read_rgb(self.folder / "JPEGImages" / f"{name}.jpg"), "mask": mask}


PLUGIN = Voc
