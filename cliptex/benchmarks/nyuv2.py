"""NYU Depth v2, the labelled set: nyu_depth_v2_labeled.mat, splits.mat, and normals of one of three publications."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from cliptex.benchmarks.base import Benchmark
from cliptex.benchmarks.nyuv2_normals import Axes, axes_by_depth, decode_normals, store_ladicky
from cliptex.benchmarks.reading import Lazy, existing, read_mat, read_rgb, require_files
from cliptex.core.errors import CliptexError

DOWNLOAD = "download the official file to this path (docs/data.md)"
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
    def _file(self) -> Any:
        """The open HDF5 file (MATLAB v7.3)."""
        import h5py

        path = existing(self.root / "nyu_depth_v2_labeled.mat", DOWNLOAD)
        try:
            file = h5py.File(path, "r")
            shapes = {field: getattr(file.get(field), "shape", ()) for field in ("images", "depths")}
        except (OSError, RuntimeError, KeyError) as error:
            raise CliptexError(f"{path}: damaged, or not an HDF5 (MATLAB v7.3) file ({error}); {DOWNLOAD}") from error
        for field, dimensions in (("images", 4), ("depths", 3)):
            if len(shapes[field]) != dimensions:
                raise CliptexError(f"{path}: has no {dimensions}-dimensional {field!r}; {DOWNLOAD}")
        # HDF5 reverses the order of axes: MATLAB's H x W x 3 x N is N x 3 x W x H
        count, channels, width, height = shapes["images"]
        if channels != 3 or shapes["depths"] != (count, width, height):
            raise CliptexError(f"{path}: images {shapes['images']}, depths {shapes['depths']} do not match; {DOWNLOAD}")
        return file

    def read(self, part: str) -> Sequence[dict[str, Any]]:
        count = self._file["images"].shape[0]
        path = self.root / "splits.mat"
        field = "trainNdxs" if part == "train" else "testNdxs"
        splits = read_mat(path, DOWNLOAD)
        if field not in splits or splits[field].dtype.kind not in "iuf":
            raise CliptexError(f"{path}: has no numeric {field!r}; {DOWNLOAD}")
        numbers = splits[field].ravel().astype(int).tolist()
        if not numbers or min(numbers) < 1 or max(numbers) > count:
            raise CliptexError(f"{path}: {field} must contain 1-based indices up to {count}; {DOWNLOAD}")
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
        try:
            image = np.ascontiguousarray(self._file["images"][number - 1].transpose(2, 1, 0))
            depth = np.ascontiguousarray(self._file["depths"][number - 1].T).astype(np.float32)
        except (OSError, RuntimeError) as error:
            raise CliptexError(f"{self._file.filename}: image {number} is damaged ({error}); {DOWNLOAD}") from error
        depth[~(np.isfinite(depth) & (depth > 0))] = np.nan
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
        import h5py

        path = existing(self.root / LADICKY, f"run: cliptex fetch --benchmark {self.name}")
        return h5py.File(path, "r")["normals"]


PLUGIN = Nyuv2
