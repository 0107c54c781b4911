"""PASCAL VOC 2012 semantic segmentation: VOCdevkit/VOC2012 in the layout of the official archive, and SBD's masks."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cliptex.benchmarks.base import Benchmark
from cliptex.benchmarks.reading import Lazy, check_size, read_indices, read_mat, read_names, read_rgb, require_files
from cliptex.core.errors import CliptexError

CLASS_NAMES = (
    "background",
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
IGNORE = 255
UNPACK = "unpack VOCtrainval_11-May-2012.tar here"
UNPACK_SBD = "unpack SBD's benchmark.tgz here"


class Voc(Benchmark):
    """`train` and `val` of ImageSets/Segmentation; 21 classes including background; 255 (object borders) is ignored.

    The variant `trainaug` has a larger training split: all images annotated by SBD (its train and val) and VOC's train,
    without VOC's val (Hariharan et al. 2011, "Semantic contours from inverse detectors"). Images of VOC's train have
    VOC's masks; the others have SBD's masks, which have no borders.
    """

    name = "voc"
    tasks = ("semantic_segmentation",)
    eval_split = "val"
    variants = ("train", "trainaug")

    @property
    def official_counts(self) -> dict[str, int]:
        return {"train": 10_582 if self.variant == "trainaug" else 1_464, "eval": 1_449}

    def __init__(self, root: Path, mark: Mapping[str, Any] | None = None):
        super().__init__(root, mark)
        self.folder = self.root / "VOCdevkit" / "VOC2012"
        self.sbd = self.root / "benchmark_RELEASE" / "dataset"

    @property
    def class_names(self) -> list[str]:
        return list(CLASS_NAMES)

    def read(self, part: str) -> Sequence[dict[str, Any]]:
        if part == "eval":
            return Lazy(self._listed("val"), self._read)
        own = self._listed("train")
        if self.variant != "trainaug":
            return Lazy(own, self._read)
        sbd = {name for split in ("train", "val") for name in read_names(self.sbd / f"{split}.txt", UNPACK_SBD)}
        return Lazy(sorted((sbd | set(own)) - set(self._listed("val"))), self._read)

    def names(self, part: str) -> Sequence[str]:
        return self.read(part).items

    def prepare(self) -> dict[str, Any]:
        """Check that all listed images and masks exist."""
        train = self._listed("train")
        sbd = set(self.read("train").items) - set(train)
        images = [f"{name}.jpg" for name in {*train, *sbd, *self._listed("val")}]
        require_files(self.folder / "JPEGImages", images, UNPACK)
        require_files(self.folder / "SegmentationClass", [f"{name}.png" for name in self._with_voc_mask], UNPACK)
        if sbd:
            require_files(self.sbd / "cls", [f"{name}.mat" for name in sbd], UNPACK_SBD)
        return {}

    def _listed(self, split: str) -> list[str]:
        return read_names(self.folder / "ImageSets" / "Segmentation" / f"{split}.txt", UNPACK)

    @cached_property
    def _with_voc_mask(self) -> set[str]:
        return {*self._listed("train"), *self._listed("val")}

    def _read(self, name: str) -> dict[str, Any]:
        if name in self._with_voc_mask:
            path = self.folder / "SegmentationClass" / f"{name}.png"
            mask = read_indices(path)
        else:
            path = self.sbd / "cls" / f"{name}.mat"
            mask = read_sbd_mask(path)
        if ((mask >= len(CLASS_NAMES)) & (mask != IGNORE)).any():
            raise CliptexError(f"{path}: has values other than 0..20 and 255; unpack the official archive again")
        image = read_rgb(self.folder / "JPEGImages" / f"{name}.jpg")
        check_size(path, mask, image)
        return {"id": name, "image": image, "mask": mask, "truth_file": path}


def read_sbd_mask(path: Path) -> np.ndarray:
    """The class map uint8 [H, W], GTcls.Segmentation, of SBD's cls/{name}.mat."""
    content = read_mat(path, UNPACK_SBD)
    try:
        mask = content["GTcls"][0]["Segmentation"][0]
    except (LookupError, TypeError, ValueError) as error:
        raise CliptexError(f"{path}: not one of SBD's class maps ({error}); {UNPACK_SBD}") from error
    if not isinstance(mask, np.ndarray) or mask.ndim != 2 or mask.dtype.kind not in "iu":
        raise CliptexError(f"{path}: its GTcls.Segmentation is not a 2-D integer array; {UNPACK_SBD}")
    if mask.size and not 0 <= mask.min() <= mask.max() <= 255:
        raise CliptexError(f"{path}: has values {mask.min()} to {mask.max()}, not classes 0 to 255; {UNPACK_SBD}")
    return mask.astype(np.uint8)


PLUGIN = Voc
