"""NYU Depth v2, the labelled set: nyu_depth_v2_labeled.mat, splits.mat, and normals of one of three publications."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from cliptex.benchmarks.base import Benchmark
from cliptex.benchmarks.hdf5 import open_array
from cliptex.benchmarks.nyuv2_normals import Axes, axes_by_depth, decode_normals, store_ladicky
from cliptex.benchmarks.reading import Lazy, existing, read_mat, read_rgb, require_files
from cliptex.core.errors import CliptexError
from cliptex.core.files import read_error, require_file

DOWNLOAD = "download the official file to this path (docs/data.md)"
MAIN_FILE = "nyu_depth_v2_labeled.mat"
MAX_PIXELS = 50_000_000
MAX_DEPTH_M = 100.0
"""The official depths end at 10 m."""
LADICKY = "normals_ladicky.h5"
FOLDERS = {"bae": ("nyu_dataset", "nyu", "."), "dsine": ("dsine_eval/nyuv2", "nyuv2")}
"""Possible folders of a publication's PNG files, since its archive and its documentation differ."""
NUM_FOR_AXES = 40
"""Number of training images from which the axes of the normals are determined."""


class Nyuv2(Benchmark):
    """The official 795 training and 654 test images, with the in-painted depth of the file, in metres.

    The variants have the same 1,449 images and normals of different publications: `bae` (Ladicky et al. 2014, as
    published by Bae et al. 2021, 8-bit PNG), `dsine` (GeoNet's, Qi et al. 2018, as published by Bae and Davison 2024,
    8-bit PNG), `ladicky` (Ladicky et al., as published with FAIR's self-supervision benchmark, Goyal et al. 2019).
    """

    name = "nyuv2"
    tasks = ("depth", "normals")
    eval_split = "test"
    variants = ("bae", "dsine", "ladicky")
    official_counts: ClassVar[dict[str, int]] = {"train": 795, "eval": 654}

    def __init__(self, root: Path, mark: Mapping[str, Any] | None = None):
        super().__init__(root, mark)
        self._axes = Axes(**self.mark["axes"]) if "axes" in self.mark else Axes()

    @property
    def class_names(self) -> list[str]:
        return []

    @cached_property
    def _arrays(self) -> tuple[Any, Any]:
        """`images` uint8 [N, 3, W, H] and `depths` [N, W, H], since HDF5 reverses the order of MATLAB's axes."""
        path = self.root / MAIN_FILE
        images, depths = _open_hdf5(path, DOWNLOAD, images=(4, "u"), depths=(3, "f"))
        count, channels, width, height = images.shape
        if channels != 3 or images.dtype.itemsize != 1 or depths.shape != (count, width, height):
            problem = f"images {images.dtype} {images.shape} and depths {depths.shape} do not match"
            raise CliptexError(f"{path}: {problem}; {DOWNLOAD}")
        if width * height > MAX_PIXELS:
            raise CliptexError(f"{path}: has images of {width} x {height} pixels; {DOWNLOAD}")
        return images, depths

    def read(self, part: str) -> Sequence[dict[str, Any]]:
        count = len(self._arrays[0])
        path = self.root / "splits.mat"
        field = "trainNdxs" if part == "train" else "testNdxs"
        splits = read_mat(path, DOWNLOAD)
        if field not in splits or splits[field].dtype.kind not in "iuf":
            raise CliptexError(f"{path}: has no numeric {field!r}; {DOWNLOAD}")
        numbers = [int(number) if number in range(1, count + 1) else 0 for number in splits[field].ravel().tolist()]
        if 0 in numbers or not 0 < len(numbers) == len(set(numbers)):
            raise CliptexError(f"{path}: {field} must contain distinct 1-based indices up to {count}; {DOWNLOAD}")
        return Lazy(numbers, lambda number: self._read(number, "train" if part == "train" else "test"))

    def names(self, part: str) -> Sequence[str]:
        return [f"image {number}" for number in self.read(part).items]

    def prepare(self) -> dict[str, Any]:
        """Convert Ladicky's normals to a file that is read by image, and determine the axes of the normals."""
        if self.variant == "ladicky" and not (self.root / LADICKY).exists():
            source = existing(self.root / "surfacenormal_metadata" / "all_normals.pklz", DOWNLOAD)
            store_ladicky(source, self.root / LADICKY)
        samples = self.read("train")
        for part, split in (("train", "train"), ("eval", "test")) if self.variant != "ladicky" else ():
            paths = [self._png(number - 1, split) for number in self.read(part).items]
            require_files(paths[0].parent, [path.name for path in paths], DOWNLOAD)
        chosen = np.linspace(0, len(samples) - 1, min(NUM_FOR_AXES, len(samples))).round().astype(int)
        pairs = ((sample["normals"], sample["depth"]) for sample in (samples[index] for index in chosen))
        axes, agreement = axes_by_depth(pairs, f"{self.root}: normals {self.variant!r}")
        return {"axes": {"order": [*axes.order], "signs": [*axes.signs]}, "cosine_with_depth": round(agreement, 3)}

    def _read(self, number: int, split: str) -> dict[str, Any]:
        """number: 1-based, as in splits.mat."""
        images, depths = self._arrays
        subject = f"{self.root / MAIN_FILE}: image {number}"
        try:
            image = np.ascontiguousarray(images[number - 1].transpose(2, 1, 0))
            depth = np.ascontiguousarray(depths[number - 1].T).astype(np.float32)
        except (OSError, RuntimeError) as error:
            raise CliptexError(f"{subject} is damaged ({error}); {DOWNLOAD}") from error
        depth[~(np.isfinite(depth) & (depth > 0))] = np.nan
        if not (deepest := np.nanmax(depth, initial=0)) <= MAX_DEPTH_M or deepest == 0:
            problem = f"has depths up to {deepest:,.0f}, but must be in metres" if deepest else "has no valid depth"
            raise CliptexError(f"{subject} {problem}; {DOWNLOAD}")
        normals, path = self._normals(number - 1, split)
        if normals.shape != image.shape:
            raise CliptexError(f"{path}: {normals.shape[:2]}, but the image is {image.shape[:2]}; {DOWNLOAD}")
        return {"id": f"{number:06d}", "image": image, "depth": depth, "normals": self._axes.apply(normals)}

    def _normals(self, index: int, split: str) -> tuple[np.ndarray, Path]:
        """The published normals of an image, and their file. index: 0-based, as in all three publications."""
        if self.variant == "ladicky":
            return self._ladicky[index].astype(np.float32), self.root / LADICKY
        path = self._png(index, split)
        return decode_normals(read_rgb(path)), path

    def _png(self, index: int, split: str) -> Path:
        name = f"norm/{index:06d}.png" if self.variant == "bae" else f"{index:06d}_normal.png"
        return self._png_folder / split / name

    @cached_property
    def _png_folder(self) -> Path:
        candidates = [self.root / folder for folder in FOLDERS[self.variant]]
        return next((folder for folder in candidates if (folder / "test").is_dir()), candidates[0])

    @cached_property
    def _ladicky(self) -> Any:
        remedy = f"run: cliptex fetch --benchmark {self.name}"
        return _open_hdf5(self.root / LADICKY, remedy, normals=(4, "f"))[0]


def _open_hdf5(path: Path, remedy: str, **arrays: tuple[int, str]) -> list[Any]:
    """Arrays of an HDF5 file (MATLAB v7.3), by their number of dimensions and kinds of numbers."""
    import h5py

    require_file(path, remedy)
    try:
        file = h5py.File(path, "r")
        return [open_array(file, name, *form) for name, form in arrays.items()]
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise read_error(error, path, "the official HDF5 (MATLAB v7.3) file", remedy) from error


PLUGIN = Nyuv2
